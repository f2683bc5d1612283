"""The GPU kernels under Triton's interpreter: the same numbers as plain torch, whatever lies where in the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from moefleet_testing.kernel_differences import CASES, TYPES

WITHIN = {"float32": 1e-5, "float16": 3e-3}


@pytest.fixture(scope="module")
def differences() -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "moefleet_testing.kernel_differences"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", CASES)
def test_decode_mixes_what_each_context_holds_and_nothing_else(
    differences: dict[str, float], name: str, kind: str
) -> None:
    # NaN is not below anything.
    assert differences[f"{name}, {kind}"] < WITHIN[kind]
