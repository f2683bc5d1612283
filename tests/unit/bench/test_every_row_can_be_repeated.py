"""The command beside a row names a bench that exists, for extra rows too."""

from __future__ import annotations

import pytest
from moefleet_bench.benches import BENCHES
from moefleet_bench.report import command

NAMES = {name for bench in BENCHES for name in bench.names}


@pytest.mark.parametrize("bench", BENCHES, ids=lambda b: b.names[0])
def test_promised_and_extra_rows_name_a_bench_that_makes_them(bench) -> None:  # type: ignore[no-untyped-def]
    for row in (*bench.names, f"{bench.names[0]}_flat_out"):
        only = command(bench, row).removeprefix("make bench ONLY=")
        assert only in NAMES
        assert only in bench.names
