"""Durations are text on the wire and seconds inside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator.api.durations import format_duration, parse_duration_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15m", 900),
        ("2s", 2),
        ("100ms", 0.1),
        ("0.1s", 0.1),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        ("0s", 0),
        ("2m500ms", 120.5),
    ],
)
def test_parse(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "-1s", "1d", "1 s", "s", "1m ", "1us", "1e3s", "1s\n"])
def test_what_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="wanted a duration such as"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.08, "80ms"),
        (1, "1s"),
        (2.5, "2.5s"),
        (60, "1m"),
        (5400, "1h30m"),
        (0.9996, "1s"),
        (3661, "1h1m1s"),
    ],
)
def test_format(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=168 * 3_600_000))
def test_what_is_written_reads_back(milliseconds: int) -> None:
    assert parse_duration_s(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000)
