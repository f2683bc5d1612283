"""`moefleet history` and `moefleet undo`: what is listed, what would change field by field, and what is refused."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from moefleet_cli.app import run
from moefleet_cli.exits import Exit
from moefleet_cli.history import difference, history_table, newest_first, undo
from moefleet_cli.options import InputError
from moefleet_operator.api import API_VERSION, PLURAL
from rich.console import Console

FLEET_PATH = f"/apis/{API_VERSION}/namespaces/n/{PLURAL}/f"
REVISIONS_PATH = "/apis/apps/v1/namespaces/n/controllerrevisions"


def parts(image: str, **args: Any) -> dict[str, Any]:
    return {"model": {"name": "m", "source": "file:///m"}, "engine": {"image": image, "args": args}}


def fleet(image: str = "runtime:3", **args: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "f", "namespace": "n", "uid": "u", "resourceVersion": "77"},
        "spec": {**parts(image, **args), "scaling": {"minReplicas": 2, "maxReplicas": 9}},
        "status": {"revision": "cccccccc"},
    }


def entry(revision: str, number: int, verdict: str, spec: dict[str, Any], owner: str = "u") -> dict[str, Any]:
    labels = {"moefleet.io/fleet": "f", "moefleet.io/revision": revision}
    annotations = {}
    if verdict:
        labels["moefleet.io/verdict"] = verdict
    if verdict == "refused":
        labels["moefleet.io/verdict-reason"] = "CanarySlower"
        annotations["moefleet.io/verdict-message"] = "each further token takes 90 ms"
    return {
        "metadata": {
            "name": f"f-{revision}", "namespace": "n", "uid": f"uid-{revision}", "labels": labels, "annotations": annotations,
            "ownerReferences": [{"uid": owner, "controller": True}],
        },
        "data": {"spec": spec},
        "revision": number,
    }  # fmt: skip


KEPT = [
    entry("aaaaaaaa", 1, "good", parts("runtime:1")),
    entry("bbbbbbbb", 2, "good", parts("runtime:2", speed=2)),
    entry("cccccccc", 3, "refused", parts("runtime:3")),
    # Of a fleet of this name that was deleted.
    entry("dddddddd", 9, "good", parts("runtime:9"), owner="another"),
]
HISTORY = newest_first(KEPT, fleet())


def test_the_newest_comes_first_and_only_the_fleets_own() -> None:
    assert [r.revision for r in HISTORY] == ["cccccccc", "bbbbbbbb", "aaaaaaaa"]


def test_the_table_says_what_is_wanted_and_why_it_was_refused() -> None:
    screen = Console(file=io.StringIO(), width=200)
    screen.print(history_table(HISTORY, "cccccccc"))
    assert isinstance(screen.file, io.StringIO)
    first, second = screen.file.getvalue().splitlines()[1:3]
    assert first.split(maxsplit=6) == ["3", "*", "cccccccc", "refused", "runtime:3", "file:///m", "CanarySlower: each further token takes 90 ms"]  # fmt: skip
    assert second.split() == ["2", "bbbbbbbb", "good", "runtime:2", "file:///m"]


@pytest.mark.parametrize(
    ("to", "revision", "patch"),
    [
        (None, "bbbbbbbb", {"engine": {"image": "runtime:2", "args": {"speed": 2}}}),
        ("aaaaaaaa", "aaaaaaaa", {"engine": {"image": "runtime:1"}}),
        ("1", "aaaaaaaa", {"engine": {"image": "runtime:1"}}),
        ("3", "cccccccc", {}),
    ],
)
def test_what_an_undo_would_change(to: str | None, revision: str, patch: dict[str, Any]) -> None:
    found = undo(fleet(), HISTORY, to)
    assert (found.to.revision, found.patch) == (revision, patch)


def test_what_came_since_is_taken_away_and_what_is_no_part_of_a_revision_stays() -> None:
    body = fleet(speed=3, startSeconds=4)
    body["spec"]["replica"] = {"gpus": 4}
    found = undo(body, HISTORY, "aaaaaaaa")
    assert found.patch == {
        "engine": {"image": "runtime:1", "args": {"speed": None, "startSeconds": None}},
        "replica": None,
    }
    assert set(difference(body["spec"], found.patch)) == {
        '- spec.replica: {"gpus": 4}',
        "- spec.engine.args.speed: 3",
        "- spec.engine.args.startSeconds: 4",
        '- spec.engine.image: "runtime:3"',
        '+ spec.engine.image: "runtime:1"',
    }


def test_without_a_good_one_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(InputError, match="no earlier revision has proved itself") as refusal:
        undo(fleet(), newest_first(KEPT[2:], fleet()), None)
    assert refusal.value.code is Exit.FAILED
    with pytest.raises(InputError, match=r"found 'bbbb'; there are 3 \(cccccccc\)"):
        undo(fleet(), newest_first(KEPT[2:], fleet()), "bbbb")


@contextmanager
def api_server(folder: Path, answer: int = 200) -> Iterator[tuple[str, list[tuple[str, str, Any]]]]:
    """Yields a kubeconfig and the patches that came: path, content type, body."""
    patches: list[tuple[str, str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {FLEET_PATH: fleet(), REVISIONS_PATH: {"items": KEPT}}.get(self.path.partition("?")[0])
            self._say(200 if found is not None else 404, found or {"kind": "Status", "code": 404})

        def do_PATCH(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            patches.append((self.path, self.headers["content-type"], body))
            said = {"kind": "Status", "code": answer, "message": "spec.engine.image: too long"}
            self._say(answer, fleet() if answer == 200 else said)

        def _say(self, status: int, body: Any) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = folder / "kubeconfig"
    config.write_text(
        json.dumps(
            {
                "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
                "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "n"}}],
            }
        )
    )  # fmt: skip
    try:
        yield str(config), patches
    finally:
        server.shutdown()
        server.server_close()


def test_an_undo_patches_what_was_read_and_says_what_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with api_server(tmp_path) as (kubeconfig, patches):
        assert run(["undo", "f", "--kubeconfig", kubeconfig]) == Exit.OK
        (path, kind, body), *_ = patches
        assert path.partition("?") == (FLEET_PATH, "?", "fieldManager=moefleet-cli")
        assert kind == "application/merge-patch+json"
        assert body == {
            "metadata": {"resourceVersion": "77"},
            "spec": {"engine": {"image": "runtime:2", "args": {"speed": 2}}},
        }
        said = capsys.readouterr().out
        assert '- spec.engine.image: "runtime:3"\n+ spec.engine.image: "runtime:2"\n' in said
        assert said.endswith("n/f goes from revision cccccccc to revision bbbbbbbb (number 2)\n")


def test_a_dry_run_asks_the_api_server_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with api_server(tmp_path) as (kubeconfig, patches):
        assert run(["undo", "f", "--dry-run", "--kubeconfig", kubeconfig, "-o", "json"]) == Exit.OK
        assert "dryRun=All" in patches[0][0]
        document = json.loads(capsys.readouterr().out)
        assert document == {
            "fleet": "f", "namespace": "n", "from": "cccccccc", "to": "bbbbbbbb", "dryRun": True, "changed": False,
            "patch": {"engine": {"image": "runtime:2", "args": {"speed": 2}}},
        }  # fmt: skip


def test_what_is_wanted_already_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with api_server(tmp_path) as (kubeconfig, patches):
        assert run(["undo", "f", "--to", "cccccccc", "--kubeconfig", kubeconfig]) == Exit.OK
        assert patches == []
        assert "already asks for revision cccccccc (number 3): nothing to change" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (409, Exit.FAILED, "somebody has changed f at the same time: nothing was changed"),
        (422, Exit.CLUSTER, "changing fleet f: 422 spec.engine.image: too long"),
    ],
)
def test_a_refusal_is_said_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: int, code: Exit, words: str
) -> None:
    with api_server(tmp_path, answer) as (kubeconfig, _):
        assert run(["undo", "f", "--kubeconfig", kubeconfig]) == code
        assert words in capsys.readouterr().err
        assert run(["undo", "f", "--to", "5", "--kubeconfig", kubeconfig]) == Exit.USAGE
        assert run(["history", "g", "--kubeconfig", kubeconfig]) == Exit.CLUSTER


def test_history_as_a_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with api_server(tmp_path) as (kubeconfig, _):
        assert run(["history", "f", "--kubeconfig", kubeconfig, "-o", "json"]) == Exit.OK
        first, *others = json.loads(capsys.readouterr().out)
        assert (first["number"], first["verdict"], first["wanted"]) == (3, "refused", True)
        assert [r["wanted"] for r in others] == [False, False]
