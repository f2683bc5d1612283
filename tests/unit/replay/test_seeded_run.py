"""The same arguments give the same bytes: in this process, in another one, whatever Python hashes, and since the golden file was made.

The golden file is that of a peer, so that it moves only when the fleet, the kernel or the report do; GOLDEN=write writes it anew.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import seeded

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "replay" / "seeded.json"


def test_a_seeded_run_is_what_it_always_was():
    text = seeded.seeded("hpa-arrival")
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("policy", ["hpa-arrival", "dynamo-both", "moefleet"])
def test_another_process_with_other_hashes_gives_the_same_bytes(policy):
    def elsewhere(hash_seed: str) -> str:
        paths = os.pathsep.join(str(ROOT / part) for part in ("operator", "runtime", "protos"))
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": paths}
        command = [sys.executable, seeded.__file__, policy]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    first = elsewhere("0")
    assert first == elsewhere("1") == seeded.seeded(policy)


def test_what_is_pinned_has_everything_in_it():
    golden = GOLDEN.read_text(encoding="utf-8")
    for zero in ('"preemptions": 0.0', '"retries": 0.0', '"surge_minutes": 0.0', '"scaling_actions": 0'):
        assert zero not in golden, zero
