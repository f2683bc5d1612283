"""What the driver says of the GPUs, asked by a process of its own: a CUDA context here would cost half a GB on GPU 0 for ever."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from typing import Final

from moefleet_runtime.engine.base import StartFailed

MIB: Final = 1 << 20
QUERY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    total_bytes: int
    free_bytes: int


def read_devices() -> tuple[Device, ...]:
    """Empty where there is no driver to ask. Raises StartFailed when there is one and it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True)
        return parse_devices(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", "") or error
        raise StartFailed(
            "EngineUnavailable", f"the GPU driver does not answer: {str(said).strip()[:300]}", permanent=False
        ) from error


def parse_devices(text: str) -> tuple[Device, ...]:
    devices = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, total, free = (part.strip() for part in line.rsplit(",", 2))
        devices.append(Device(name, int(total) * MIB, int(free) * MIB))
    return tuple(devices)


def check_devices(devices: tuple[Device, ...], *, wanted: int, needed_bytes: int) -> None:
    """Enough of them, and free: workers that outlived an earlier engine keep their memory."""
    if not devices:
        return
    if len(devices) < wanted:
        raise StartFailed(
            "EngineArgumentInvalid",
            f"engine.parallelism.tensor: wanted {wanted} GPUs, this container has {len(devices)}"
            f" ({devices[0].name})",
        )
    for number, device in enumerate(devices[:wanted]):
        if device.free_bytes < needed_bytes:
            raise StartFailed(
                "OutOfMemory",
                f"GPU {number} ({device.name}) has {device.free_bytes / 1e9:.1f} of {device.total_bytes / 1e9:.1f} GB free,"
                f" the engine needs {needed_bytes / 1e9:.1f} GB: another process holds the rest",
                permanent=False,
            )
