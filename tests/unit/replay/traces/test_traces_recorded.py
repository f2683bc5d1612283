"""Traces of requests: what is read, what a warm cache would have had, and what copies and thinning leave as it was."""

from pathlib import Path

import numpy as np
import pytest
from moefleet.gateway.v1 import gateway_pb2
from moefleet_replay.traces import TraceError, TraceSpec, fingerprint, open_trace
from moefleet_replay.traces.demand import header, line

TRACES = Path(__file__).parents[3] / "support/traces"
AZURE = f"azure:{TRACES}/azure2023/code_495s_720s.csv"
MOONCAKE = f"mooncake:{TRACES}/mooncake/conversation_160.jsonl"


def everything(trace, **options):
    source = open_trace(TraceSpec(trace=trace, **options))
    return source, source.between(0.0, source.duration_s)


def test_azure_is_read_as_it_is():
    source, made = everything(AZURE)
    assert (len(made), source.duration_s) == (998, 160.0)
    assert (made.at_s[0], made.at_s[1]) == (0.0, pytest.approx(0.094697, abs=1e-9))
    assert (made.input_tokens[:2].tolist(), made.output_tokens[:2].tolist()) == ([1307, 1016], [15, 7])
    assert source.describe == "code_495s_720s.csv (azure), as recorded"


def test_azure_2024_has_a_zone_and_no_trailing_zeros(tmp_path):
    path = tmp_path / "week.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:01+00:00,2399,6\n"
        "2024-05-11 00:00:01.009930+00:00,76,15\n"
    )
    _, made = everything(f"azure:{path}")
    np.testing.assert_allclose(made.at_s, [0.0, 0.99007, 86401.0], atol=1e-9)
    # The last day may be a short one.
    second, made = everything(f"azure:{path}", days=(1.0, 2.0))
    assert (second.duration_s, made.at_s.tolist(), made.input_tokens.tolist()) == (2.0, [1.0], [76])


def test_mooncake_prefixes_that_an_infinite_cache_would_have():
    _, made = everything(MOONCAKE)
    assert len(made) == 160
    # Row 1 is the first to come; rows 2 to 4 share its first block of 512 tokens with it and nothing more.
    assert made.cached_tokens[:4].tolist() == [0, 512, 512, 512]
    assert (made.cached_tokens < made.input_tokens).all()
    assert (made.at_s[0], made.at_s[-1]) == (0.0, 57.0)


@pytest.mark.parametrize(
    ("story", "ids", "lengths", "cached"),
    [
        ("nothing was seen before", [[1, 2]], [1024], [0]),
        ("the leading ids count", [[1, 2], [1, 3]], [1024, 1024], [0, 512]),
        ("an id behind a new one does not", [[1, 2], [3, 2]], [1024, 1024], [0, 0]),
        ("one token at least is computed", [[1, 2], [1, 2]], [1024, 1024], [0, 1023]),
        ("nor more than the prompt has", [[1, 2], [1, 2]], [600, 600], [0, 599]),
    ],
)
def test_cached_tokens(tmp_path, story, ids, lengths, cached):
    path = tmp_path / "blocks.jsonl"
    path.write_text(
        "".join(
            f'{{"timestamp": {n}, "input_length": {tokens}, "output_length": 9, "hash_ids": {blocks}}}\n'
            for n, (blocks, tokens) in enumerate(zip(ids, lengths, strict=True))
        )
    )
    assert everything(f"mooncake:{path}")[1].cached_tokens.tolist() == cached


def test_bailian_has_seconds_and_blocks_of_16(tmp_path):
    path = tmp_path / "qwen.jsonl"
    path.write_text(
        '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 40, "output_length": 132, '
        '"type": "text", "turn": 1, "hash_ids": [7, 8, 9]}\n'
        '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 61.114, "input_length": 60, "output_length": 20, '
        '"type": "text", "turn": 2, "hash_ids": [7, 8, 10, 11]}\n'
    )
    _, made = everything(f"bailian:{path}")
    assert (made.at_s.tolist(), made.cached_tokens.tolist()) == ([0.5, 61.114], [0, 32])


def test_burstgpt_days_are_calendar_days_and_failures_are_left_out(tmp_path):
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "86405,ChatGPT,472,18,490,Conversation log\n"
        "86445,ChatGPT,1087,0,1087,Conversation log\n"
        "86518,GPT-4,417,276,693,API log\n"
    )
    source, made = everything(f"burstgpt:{path}")
    assert (made.at_s.tolist(), made.output_tokens.tolist()) == ([5.0, 118.0], [18, 276])
    assert source.warnings == ("burst.csv: 1 failed requests (0 response tokens) left out",)


@pytest.mark.parametrize("trace", [AZURE, MOONCAKE])
def test_copies_keep_the_pace_and_the_sizes(trace):
    once, one = everything(trace)
    source, many = everything(trace, scale=12, seed=4)
    assert source.duration_s == once.duration_s
    assert len(many) == 12 * len(one)
    # The same requests, each twelve times, sizes and hits together.
    sizes = (
        np.sort(one.input_tokens * 1e6 + one.output_tokens),
        np.sort(many.input_tokens * 1e6 + many.output_tokens),
    )
    np.testing.assert_array_equal(np.repeat(sizes[0], 12), sizes[1])
    assert many.cached_tokens.sum() == 12 * one.cached_tokens.sum()
    assert (np.diff(many.at_s) >= 0).all()
    assert 0 <= many.at_s[0] <= many.at_s[-1] < source.duration_s
    # Not in step: no two copies have a time in common, apart from the trace's own.
    assert len(np.unique(many.at_s)) >= 11 * len(np.unique(one.at_s))


def test_a_copy_is_turned_by_thirty_seconds_at_most_and_keeps_its_gaps(tmp_path):
    path = tmp_path / "three.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:00:00.0,1,1\n2023-11-16 18:01:20.0,2,2\n2023-11-16 18:03:20.5,3,3\n"
    )
    source, made = everything(f"azure:{path}", scale=200, seed=1)
    assert source.duration_s == 201.0
    moved = made.at_s[abs(made.at_s - 80.0) < 40] - 80.0
    assert len(moved) == 200
    assert (moved.min(), moved.max()) == (pytest.approx(-30, abs=2), pytest.approx(30, abs=2))
    assert np.abs(moved).max() <= 30
    # What falls off an end comes in at the other: the first and the last are one gap of half a second there.
    rest = np.where(made.at_s > 140, made.at_s - 201.0, made.at_s)[abs(made.at_s - 80.0) > 40]
    assert len(rest) == 400
    np.testing.assert_allclose(np.sort(rest), np.sort(np.concatenate([moved, moved - 0.5])), atol=1e-9)


@pytest.mark.parametrize(("scale", "expected"), [(0.25, 0.25), (2.5, 2.5), (1.0, 1.0)])
def test_thinning_and_parts_of_copies(scale, expected):
    _, one = everything(AZURE)
    source, made = everything(AZURE, scale=scale, seed=9)
    error = 4 * np.sqrt(len(one) * 0.25)
    assert abs(len(made) - expected * len(one)) < error
    assert everything(AZURE, scale=scale, seed=9)[1].at_s.tolist() == made.at_s.tolist()
    if scale == 0.25:
        assert set(made.at_s.tolist()) <= set(one.at_s.tolist())
    if scale != 1.0:
        assert fingerprint(everything(AZURE, scale=scale, seed=10)[1]) != fingerprint(made)
    assert f"x{scale:g}" in source.name or scale == 1.0


def sample(seq, arrivals, lengths, *, gateway="gw-1", served=(0, 0), prompt=0, cached=0):
    made = gateway_pb2.DemandSample(gateway_uid=gateway, incarnation="i", seq=seq, time_s=1000.0 + 5 * seq)
    made.fleets.add(namespace="ns", fleet="other", arrivals=10**6)
    said = made.fleets.add(
        namespace="ns",
        fleet="chat",
        arrivals=arrivals,
        prompt_tokens=prompt,
        predicted_cached_tokens=cached,
        served_requests=served[0],
        served_output_tokens=served[1],
    )
    for (prompt_log2, output_log2), count in lengths.items():
        said.lengths.add(prompt_log2=prompt_log2, output_log2=output_log2, count=count)
    return made


def recorded(tmp_path, samples):
    path = tmp_path / "demand.jsonl"
    path.write_text(header("ns", "chat") + "".join(line(one, "ns", "chat") for one in samples))
    return f"demand:{path}"


def test_recorded_demand_comes_back(tmp_path):
    samples = [
        sample(1, 100, {(9, 6): 100}, prompt=70_000, cached=35_000),
        sample(2, 300, {(9, 6): 200, (12, 6): 100}, prompt=700_000, cached=35_000, served=(100, 20_000)),
        # One is lost; counts are cumulative, so no request is.
        sample(4, 350, {(9, 6): 250, (12, 6): 100}, prompt=735_000, cached=35_000, served=(200, 40_000)),
        sample(7, 40, {(5, 3): 40}, gateway="gw-2", prompt=2000),
        sample(8, 60, {(5, 3): 60}, gateway="gw-2", prompt=3000),
    ]
    source, made = everything(recorded(tmp_path, samples), seed=1)
    # From 5 s before the first sample ever; the second gateway was counting before it was recorded.
    assert (len(made), source.duration_s) == (370, 40.0)
    assert np.histogram(made.at_s, [0, 5, 10, 20, 35, 40])[0].tolist() == [100, 200, 50, 0, 20]
    first = made.at_s < 5
    assert made.input_tokens[first].sum() == pytest.approx(70_000, rel=0.01)
    assert made.cached_tokens[first].sum() == pytest.approx(35_000, rel=0.01)
    assert not made.cached_tokens[~first].any()
    assert ((made.input_tokens[first] >= 2**9 * 0.5) & (made.input_tokens[first] <= 2**10 * 2)).all()
    # 200 tokens is the mean of what ended; the gateway had predicted 64 to 127.
    assert made.output_tokens.mean() == pytest.approx(200, rel=0.01)
    assert [warning.split(":")[0] for warning in source.warnings] == [
        "outputs are drawn from what the gateway predicted"
    ]


@pytest.mark.parametrize(
    ("story", "samples", "said"),
    [
        ("one sample counts nothing", [sample(5, 9, {(1, 1): 9})], "no two samples of one gateway"),
        (
            "counts only grow",
            [sample(2, 9, {(1, 1): 9}), sample(3, 8, {(1, 1): 9})],
            "row 3: a count is lower than in row 2",
        ),
        (
            "twice",
            [sample(2, 9, {(1, 1): 9}), sample(2, 9, {(1, 1): 9})],
            "row 3: seq 2 does not come after row 2",
        ),
        (
            "arrivals without lengths",
            [sample(2, 9, {}), sample(3, 10, {})],
            "row 3: 1 arrivals and no lengths",
        ),
        ("an impossible bucket", [sample(2, 9, {(60, 1): 1})], r"row 2: lengths has \[60, 1, 1\]"),
        ("nobody came", [sample(2, 9, {}), sample(3, 9, {})], "0 requests arrived"),
    ],
)
def test_a_recording_that_cannot_be(tmp_path, story, samples, said):
    with pytest.raises(TraceError, match=said):
        open_trace(TraceSpec(trace=recorded(tmp_path, samples)))
