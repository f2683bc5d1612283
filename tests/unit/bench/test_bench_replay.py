"""The pure parts of the replay's bench, and that a decision can be timed at all: its world has to make the law work."""

from __future__ import annotations

import pytest
from moefleet_bench.replay import Day, arguments_of, day_rows, decide_times_ms
from moefleet_replay.compare_run import checked


def test_the_day_of_the_bench_can_be_run_and_another_put_in_its_place() -> None:
    assert checked(arguments_of({})).calibration.name == "deepseek-v2-8xh800"
    given = arguments_of({"BENCH_RATES": "r.csv", "BENCH_LENGTHS": "l.npz", "BENCH_DAYS": "2:3"})
    assert (given.trace.rates, given.trace.lengths, given.trace.days) == ("r.csv", "l.npz", "2:3")
    with pytest.raises(ValueError, match="BENCH_RATES and BENCH_LENGTHS together"):
        arguments_of({"BENCH_RATES": "r.csv"})


def test_rows_say_how_much_was_run() -> None:
    rows = {row.name: row for row in day_rows(Day(17_280_000, 14.5, 0.2, 254.0))}
    assert (rows["replay_day_s"].value, rows["replay_day_s"].against) == (14.5, "17.3 million requests")
    assert (rows["replay_rss"].value, rows["replay_rss"].unit) == (254.0, "MiB")


def test_decisions_are_timed_one_by_one_after_the_history() -> None:
    took_ms = decide_times_ms(30, history_s=3600, decisions=100)
    assert len(took_ms) == 100
    assert all(t > 0 for t in took_ms)
