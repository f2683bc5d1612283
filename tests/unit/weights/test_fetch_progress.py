"""How far a fetch is, in words that people read in a condition."""

import pytest
from moefleet_weights.progress import Meter, Progress, duration, size


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (
            Progress("fetching", 87_320_000_000, 236_000_000_000, 1.1e9),
            "37 % of 236 GB, 1.1 GB/s, 2 min left",
        ),
        (Progress("fetching", 0, 236_000_000_000, 0.0), "0 % of 236 GB, 0 B/s"),
        (
            Progress("waiting", 118_000_000_000, 236_000_000_000, 5e8),
            "another pod fetches: 50 % of 236 GB, 500 MB/s, 4 min left",
        ),
        (Progress("waiting"), "another pod fetches"),
        (Progress("asking"), "asks what there is"),
        (Progress("checking", 10, 10, 0.0), "100 % of 10 B, checksums"),
        (Progress("done", 9_990_504, 9_990_504), "100 % of 10 MB"),
    ],
)
def test_words(progress: Progress, text: str) -> None:
    assert str(progress) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (9_960, "10 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"),
     (1.1e9, "1.1 GB"), (471e9, "471 GB"), (2.5e12, "2.5 TB"), (9e15, "9000 TB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (59, "59 s"), (60, "1 min"), (150, "2 min"), (3570, "1.0 h"), (9000, "2.5 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_speed_is_of_the_last_ten_seconds() -> None:
    meter = Meter()
    assert meter.bytes_per_s(0, 0) == 0
    assert [meter.bytes_per_s(t, 100 * t) for t in range(1, 31)] == [100.0] * 30
    # Then nothing comes: after the window the speed is nought, and it fell on the way.
    speeds = [meter.bytes_per_s(t, 3000) for t in range(31, 45)]
    assert speeds[0] == 90.0
    assert speeds == sorted(speeds, reverse=True)
    assert speeds[-1] == 0.0
