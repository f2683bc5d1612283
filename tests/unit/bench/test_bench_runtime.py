"""What the runtime's benches make of their rounds."""

from __future__ import annotations

from io import StringIO

from moefleet_bench.first_token import IN_A_ROW, median_added, prompt
from moefleet_bench.torch_streams import rows
from rich.console import Console


def test_a_ratio_is_taken_round_by_round_so_that_a_busy_minute_is_no_result() -> None:
    rounds = {
        "1": {"ours": [200.0, 100.0, 220.0], "transformers": [100.0, 50.0, 100.0]},
        "8": {"ours": [800.0] * 3, "transformers": [500.0] * 3},
        "32": {"ours": [2000.0] * 3, "transformers": [1000.0] * 3},
    }
    one, eight, many = rows(rounds, Console(file=StringIO()))
    assert (one.name, one.value, one.ratio) == ("torch_1", 200.0, 2.0)
    assert (eight.name, eight.ratio) == ("torch_8", 1.6)
    assert (many.name, many.ratio) == ("torch_32", 2.0)
    rounds["8"]["llama.cpp"] = [1000.0, 1600.0, 800.0]
    assert [(row.name, row.ratio) for row in rows(rounds, Console(file=StringIO()))][1:3] == [
        ("torch_8", 1.6),
        ("torch_8_llama", 0.8),
    ]


def test_no_prompt_of_a_run_begins_like_another() -> None:
    prompts = [tuple(prompt(n, 16)) for n in range(2_000)]
    assert len(set(prompts)) == len(prompts)
    assert all(3 <= token < 2048 for p in prompts for token in p)


def test_what_the_server_adds_is_counted_inside_rows_so_a_machine_that_slows_down_adds_nothing() -> None:
    direct = [10.0] * IN_A_ROW + [14.0] * IN_A_ROW + [9.0] * IN_A_ROW
    through = [ms + 1.5 for ms in direct]
    # One row was asked while something else ran.
    through[:IN_A_ROW] = [40.0] * IN_A_ROW
    assert median_added(through, direct) == 1.5
