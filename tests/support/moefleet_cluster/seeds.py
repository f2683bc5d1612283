"""A containerd store with the stable images already unpacked, as one tar file: nodes start from it.

Importing costs 9-11 s of processor time (26,000 files are unpacked and hashed), copying a finished store 2-3 s, once for each node of each
cluster. `python -m moefleet_cluster.seeds ARCHIVE TARGET` makes one, in a mount namespace of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import host_folders
from .build import locked
from .layers import ImageError
from .namespaces import environment
from .node_documents import CONTAINERD_RUN, CONTAINERD_SOCKET
from .processes import DIE_WITH_PARENT, Processes
from .programs import programs_folder

START_LIMIT_S = 60.0
STOP_GRACE_S = 20.0


def ensure(archive: Path) -> Path:
    """The seed of an archive, beside it; made when it is missing. Older seeds go: each has a gigabyte.

    Raises:
        ImageError: when containerd cannot make it.
    """
    target = archive.parent / f"seed-{archive.stem}.tar"
    with locked(archive.parent.with_name("seeds.lock")):
        if target.exists():
            return target
        begin = time.monotonic()
        print("images: unpacking once for all nodes", flush=True)
        partial = target.with_suffix(".partial")
        command = [
            *DIE_WITH_PARENT, "unshare", "--mount", "--propagation", "private",
            sys.executable, "-m", "moefleet_cluster.seeds", str(archive), str(partial),
        ]  # fmt: skip
        with host_folders.held():
            done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            partial.unlink(missing_ok=True)
            raise ImageError(f"containerd could not unpack {archive.name}:\n{done.stderr.strip()[-2000:]}")
        partial.rename(target)
        for old in archive.parent.glob("seed-*.tar"):
            if old != target:
                old.unlink()
        print(f"images: unpacked in {time.monotonic() - begin:.0f} s", flush=True)
    return target


def configuration(root: Path) -> str:
    return f"""version = 3
root = '{root}'
state = '{CONTAINERD_RUN}/state'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images',
  'io.containerd.cri.v1.runtime']
[grpc]
  address = '{CONTAINERD_SOCKET}'
[ttrpc]
  address = '{CONTAINERD_SOCKET}.ttrpc'
"""


def make(archive: Path, target: Path) -> None:
    programs = programs_folder()
    with tempfile.TemporaryDirectory(prefix="moefleet-seed-") as scratch:
        folder = Path(scratch)
        root = folder / "root"
        for place in (CONTAINERD_RUN, root):
            place.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "tmpfs", str(place)], check=True)
        (folder / "containerd.toml").write_text(configuration(root))
        processes = Processes(folder)
        processes.start(
            "containerd", str(programs / "containerd"), "--config", str(folder / "containerd.toml")
        )
        ctr = [str(programs / "ctr"), "-a", str(CONTAINERD_SOCKET), "-n", "k8s.io"]

        def answers() -> bool:
            return subprocess.run([*ctr, "version"], capture_output=True, check=False).returncode == 0

        processes.wait_until("containerd", answers, START_LIMIT_S)
        subprocess.run([*ctr, "images", "import", "--snapshotter", "overlayfs", str(archive)], check=True)
        # It closes its databases on SIGTERM; a killed one could leave them half written.
        processes.stop("containerd", STOP_GRACE_S)
        subprocess.run(["tar", "-C", str(root), "-cf", str(target), "."], check=True)
        subprocess.run(["umount", str(root)], check=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
