"""The environment in which `tensorrt_llm` is imported and spawns its MPI workers, which inherit it."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Final

from moefleet_trtllm.api import VERSION

from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.tensorrt_llm.memory import Layout

# Of the scheduler that started us: OpenMPI would take them for its own and wait for ranks that do not exist.
FOREIGN_PREFIXES: Final = ("SLURM_", "PMIX_", "MPI_")
AUTOTUNER_CACHE: Final = "TLLM_AUTOTUNER_CACHE_PATH"


def clean(environment: MutableMapping[str, str]) -> None:
    for name in [n for n in environment if n.startswith(FOREIGN_PREFIXES)]:
        del environment[name]
    if os.geteuid() == 0:
        # Pods have a user of their own; by hand, mpirun refuses root without both.
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
        environment.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def autotuner_file(folder: Path, *, device: str, layout: Layout) -> Path:
    """The engine does not check that its cache is of this version and hardware: the name does."""
    words = f"{VERSION} {device or 'unknown'} {layout}"
    return folder / f"autotuner-{re.sub(r'[^a-z0-9.]+', '-', words.lower()).strip('-')}.json"


def keep_autotuner_cache(
    environment: MutableMapping[str, str], *, folder: str, device: str, layout: Layout
) -> None:
    """`folder` as the fleet gives it; without one, the cache folder of the user, if that can be written."""
    if AUTOTUNER_CACHE in environment:
        return
    file = autotuner_file(
        Path(folder) if folder else _default_folder(environment), device=device, layout=layout
    )
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(file.parent, os.W_OK)
    except OSError:
        writable = False
    if writable:
        environment[AUTOTUNER_CACHE] = str(file)
    elif folder:
        raise StartFailed("EngineArgumentInvalid", f"engine.args.autotunerCache: {folder} cannot be written")


def _default_folder(environment: Mapping[str, str]) -> Path:
    cache = environment.get("XDG_CACHE_HOME") or str(
        Path(environment.get("HOME") or tempfile.gettempdir()) / ".cache"
    )
    return Path(cache) / "moefleet"
