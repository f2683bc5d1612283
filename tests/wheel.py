"""Builds the wheel, installs it with one extra at a time into an empty environment and imports what that image ships.

A package that an image's code imports and its extra does not declare fails here, and only here: the development
environment has everything.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# What each image ships, and the lock its dependencies come from. The image of TensorRT-LLM is stood in for by the
# constraints that are known of it: its engine module is imported, its `tensorrt_llm` is not there.
IMAGES: dict[str, tuple[str | None, list[str]]] = {
    "operator": (
        "operator/requirements.txt",
        ["moefleet_operator", "moefleet_perf", "moefleet_trtllm", "moefleet"],
    ),
    # `helm test` runs the probe of the command line from the gateway's image.
    "gateway": ("runtime/requirements-gateway.txt", ["moefleet_gateway", "moefleet", "moefleet_cli.probe"]),
    "runtime": (
        "runtime/requirements-runtime.txt",
        ["moefleet_runtime", "moefleet_weights", "moefleet_perf", "moefleet_trtllm", "moefleet"],
    ),
    "torch": (
        "runtime/requirements-torch.txt",
        ["moefleet_runtime", "moefleet_weights", "moefleet_perf", "moefleet_trtllm", "moefleet"],
    ),
    "tensorrt-llm": (
        None,
        ["moefleet_runtime", "moefleet_weights", "moefleet_perf", "moefleet_trtllm", "moefleet"],
    ),
    "replay": ("operator/requirements-replay.txt", ["moefleet_replay", "moefleet_cli", "moefleet_perf"]),
    "cli": ("operator/requirements-cli.txt", ["moefleet_cli", "moefleet"]),
    # No image: what a consumer's program installs.
    "client": (None, ["moefleet.client"]),
}
CONSTRAINTS = ROOT / "tests/constraints-tensorrt-llm.txt"
# Modules that need more than the image's own extra, with the reason.
NOT_SHIPPED = {
    image: {
        "moefleet_runtime.engine.torch": "the image `torch` ships it",
        "moefleet_weights.fp8": "the image `torch` ships it",
        "moefleet_weights.shard": "the image `torch` ships it",
        "moefleet_weights.convert": "the image `torch` ships it",
        "moefleet_runtime.engine.tensorrt_llm.deepseek_v2": "torch comes with the image of TensorRT-LLM",
        "moefleet_runtime.engine.tensorrt_llm.deepseek_v2_model": "made from classes of tensorrt_llm",
    }
    for image in ("runtime", "tensorrt-llm")
} | {
    "torch": {"moefleet_runtime.engine.tensorrt_llm.deepseek_v2_model": "made from classes of tensorrt_llm"},
    "operator": {"moefleet.client": "the extra `client` brings what it needs"},
    "cli": {"moefleet.client": "the extra `client` brings what it needs"},
}

IMPORT_ALL = """
import importlib, pkgutil, sys
skipped = set(sys.argv[1].split(",")) - {""}
failed = count = 0
for root in sys.argv[2:]:
    package = importlib.import_module(root)
    inside = getattr(package, "__path__", ())  # a module has none
    names = [root] + [m.name for m in pkgutil.walk_packages(inside, root + ".", onerror=lambda name: None)]
    for name in names:
        if any(name == s or name.startswith(s + ".") for s in skipped):
            continue
        count += 1
        try:
            importlib.import_module(name)
        except Exception as error:
            failed += 1
            print(f"  {name}: {type(error).__name__}: {error}")
print(f"  {count} modules imported, {failed} failed")
sys.exit(1 if failed or count == 0 else 0)
"""


def main() -> int:
    chosen = sys.argv[1:] or list(IMAGES)
    bad: list[str] = []
    with tempfile.TemporaryDirectory(prefix="moefleet-wheel-") as folder:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, str(ROOT)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        (wheel,) = Path(folder).glob("*.whl")
        print(f"built {wheel.name}: {wheel.stat().st_size / 1e3:.0f} kB", flush=True)
        for image in chosen:
            lock, packages = IMAGES[image]
            print(f"{image}: {lock or CONSTRAINTS.relative_to(ROOT)}", flush=True)
            home = Path(folder) / image
            venv.create(home, with_pip=True)
            python = str(home / "bin/python")
            pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            if lock:
                subprocess.run([*pip, "--require-hashes", "-r", str(ROOT / lock)], check=True)
                # With its extra, without an index: anything that the lock lacks cannot be found and fails.
                subprocess.run([*pip, "--no-index", f"{wheel}[{image}]"], check=True)
            else:
                subprocess.run([*pip, "-c", str(CONSTRAINTS), f"{wheel}[{image}]"], check=True)
            skipped = ",".join(NOT_SHIPPED.get(image, {}))
            done = subprocess.run([python, "-c", IMPORT_ALL, skipped, *packages], cwd=folder, check=False)
            if done.returncode:
                bad.append(image)
    if bad:
        print(f"undeclared dependencies or broken modules in: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
