"""A hub: the parts of the API that clients fetch with. That it is hub-like, huggingface_hub itself says (a test)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from moefleet_weights_rig.web import Reply

# Files from this size on are kept apart from git, with their SHA-256, and served by another host.
LARGE_BYTES = 10_000


@dataclass(slots=True)
class Hub:
    """Commits of one repository; `refs` name them. Large files are redirected to `elsewhere`, as hubs do."""

    repository: str
    commits: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    elsewhere: str = ""
    # What the API says, against what is served: digests to lie about.
    lies: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        text = json.dumps({name: hashlib.sha256(body).hexdigest() for name, body in files.items()})
        commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit

    def answer(self, path: str) -> Reply | None:
        api = f"/api/models/{self.repository}"
        if path == api:
            return self._info("main")
        if path.startswith(f"{api}/revision/"):
            return self._info(path.removeprefix(f"{api}/revision/"))
        if path.startswith(f"{api}/tree/"):
            return self._tree(path.removeprefix(f"{api}/tree/"))
        if path.startswith(f"/{self.repository}/resolve/"):
            revision, _, name = path.removeprefix(f"/{self.repository}/resolve/").partition("/")
            return self._resolve(revision, name)
        return None

    def elsewhere_answer(self, path: str) -> Reply | None:
        """The host that has the large files: by content, without any token."""
        wanted = path.rpartition("/")[2]
        for files in self.commits.values():
            for body in files.values():
                if hashlib.sha256(body).hexdigest() == wanted:
                    return Reply(body=body, headers={"ETag": f'"{wanted}"'})
        return None

    def _files(self, revision: str) -> tuple[str, Mapping[str, bytes]] | None:
        commit = self.refs.get(revision, revision)
        files = self.commits.get(commit)
        return None if files is None else (commit, files)

    def _info(self, revision: str) -> Reply | None:
        found = self._files(revision)
        if found is None:
            return None
        commit, files = found
        return _json(
            {"id": self.repository, "sha": commit, "siblings": [{"rfilename": n} for n in files], "private": False,
             "tags": [], "downloads": 0, "likes": 0}
        )  # fmt: skip

    def _tree(self, revision: str) -> Reply | None:
        found = self._files(revision)
        if found is None:
            return None
        entries = []
        for name, body in found[1].items():
            digest = self.lies.get(name) or hashlib.sha256(body).hexdigest()
            large = len(body) >= LARGE_BYTES
            lfs = {"lfs": {"oid": digest, "size": len(body), "pointerSize": 134}} if large else {}
            entries.append({"type": "file", "path": name, "size": len(body), "oid": git_sha1(body), **lfs})
        return _json([*entries, {"type": "directory", "path": "original", "size": 0, "oid": "0" * 40}])

    def _resolve(self, revision: str, name: str) -> Reply | None:
        found = self._files(revision)
        body = found[1].get(name) if found else None
        if found is None or body is None:
            return None
        if len(body) < LARGE_BYTES:
            return Reply(body=body, headers={"ETag": f'"{git_sha1(body)}"', "X-Repo-Commit": found[0]})
        digest = hashlib.sha256(body).hexdigest()
        return Reply(
            302,
            headers={
                "Location": f"{self.elsewhere}/blobs/{digest}",
                "X-Repo-Commit": found[0],
                "X-Linked-Size": str(len(body)),
                "X-Linked-ETag": f'"{digest}"',
            },
        )


def git_sha1(body: bytes) -> str:
    return hashlib.sha1(f"blob {len(body)}\0".encode() + body, usedforsecurity=False).hexdigest()


def _json(value: object) -> Reply:
    return Reply(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})
