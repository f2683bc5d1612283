"""A start that gets on is never ended; one that stands still is."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.process_tree import work_bytes
from moefleet_runtime.starting import BLIND_S, HANDOVER_SHARE, LEAST_BYTES, LOOK_S, StartWatch

MIB = 1 << 20
QUIET = LEAST_BYTES - 1


def watched(
    looks: list[tuple[float, int, tuple[int, ...]]], *, stall_s: float = 60.0, budget_s: float = 0.0
) -> StartWatch:
    watch = StartWatch(0.0, stall_s, budget_s)
    for now_s, work, marks in looks:
        watch.look(now_s, work, marks)
    return watch


@pytest.mark.parametrize(
    ("what", "looks", "at_s", "stalled_s"),
    [
        ("just born", [], 59.0, 0.0),
        ("nothing ever seen", [], 61.0, 61.0),
        ("it reads", [(2.0 * n, MIB * n, ()) for n in range(100)], 250.0, 0.0),
        ("it read", [(2.0 * n, MIB * n, ()) for n in range(10)], 80.0, 62.0),
        (
            "what any idle process does is no progress",
            [(2.0 * n, QUIET * n, ()) for n in range(20)],
            61.0,
            61.0,
        ),
        ("bytes come over the network", [(2.0 * n, 0, (8, 1000 * n)) for n in range(40)], 100.0, 0.0),
        ("a phase ended", [(2.0, 0, (8,)), (50.0, 0, (2,))], 109.0, 0.0),
        ("a process of it ended", [(2.0, 9 * MIB, ()), (30.0, MIB, ())], 89.0, 0.0),
        ("the whole machine stood still", [(2.0, 0, ()), (5000.0, 0, ())], 5050.0, 0.0),
    ],
)
def test_progress(
    what: str, looks: list[tuple[float, int, tuple[int, ...]]], at_s: float, stalled_s: float
) -> None:
    assert watched(looks).stalled_s(at_s) == stalled_s, what


@pytest.mark.parametrize(
    ("what", "looks", "handed_over"),
    [
        ("early", [(2.0, MIB, ()), (70.0, 2 * MIB, ())], False),
        ("late, and it gets on", [(2.0, MIB, ()), (76.0, 2 * MIB, ())], True),
        (
            "late, and it has not got on for long",
            [(2.0, MIB, ()), *((2.0 * n, MIB, ()) for n in range(2, 60))],
            False,
        ),
    ],
)
def test_late_in_the_budget_the_liveness_probe_takes_over(
    what: str, looks: list[tuple[float, int, tuple[int, ...]]], handed_over: bool
) -> None:
    assert HANDOVER_SHARE == 0.75
    assert watched(looks, budget_s=100.0).handed_over is handed_over, what


def test_without_a_budget_nobody_counts() -> None:
    assert not watched([(1e6, MIB, ())]).handed_over


@given(st.lists(st.tuples(st.floats(0.1, BLIND_S), st.integers(0, 4 * MIB)), min_size=1, max_size=60))
def test_progress_in_every_stall_limit_is_never_ended(steps: list[tuple[float, int]]) -> None:
    """And the other way round: without any for the limit, always."""
    watch = StartWatch(0.0, 60.0, 0.0)
    now_s, work, last_s = 0.0, 0, 0.0
    for wait_s, more in steps:
        now_s, work = now_s + wait_s, work + more
        if now_s >= watch.next_look_s:
            assert (watch.stalled_s(now_s) > 0) == (now_s - last_s >= 60.0)
            seen = watch._progress_at_s
            watch.look(now_s, work, ())
            if watch._progress_at_s != seen:
                last_s = now_s
    assert watch.stalled_s(last_s + 59.9) == 0.0
    assert watch.stalled_s(last_s + 60.1) > 60.0
    assert LOOK_S < BLIND_S


def test_what_a_child_reads_and_maps_is_seen_and_what_it_waits_for_is_not() -> None:
    code = (
        "import sys; print('up', flush=True)\n"
        "for line in sys.stdin:\n"
        "    if line == 'read\\n': open('/dev/zero', 'rb').read(8 << 20)\n"
        "    if line == 'touch\\n': bytearray(b'x') * (16 << 20)\n"
        "    if line == 'spin\\n': [n * n for n in range(200000)] and None\n"
        "    print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None and child.stdout is not None  # noqa: PT018
        child.stdout.readline()
        grown = {}
        for what in ("nothing", "read", "touch"):
            before = work_bytes(os.getpid())
            child.stdin.write(f"{what}\n")
            child.stdout.readline()
            grown[what] = work_bytes(os.getpid()) - before
        child.stdin.close()
    assert grown["nothing"] < LEAST_BYTES
    assert grown["read"] >= 8 << 20
    assert grown["touch"] >= 16 << 20
