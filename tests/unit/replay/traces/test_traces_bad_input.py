"""Everything that cannot be run says which row, column or field, and what was wanted."""

from pathlib import Path

import numpy as np
import pytest
from moefleet_replay.traces import ArrivalShape, TraceError, TraceSpec, open_trace, parse_days

TRACES = Path(__file__).parents[3] / "support/traces"
RATES = TRACES / "servegen/m-large_5h_7h.csv"
LENGTHS = TRACES / "servegen/m-large_0h_12h_lengths.npz"
HEADER = "t_s,rps,agg_idc\n"


@pytest.mark.parametrize(
    ("story", "text", "said"),
    [
        (
            "a row is missing",
            "0,9,2\n600,9,2\n1800,9,2\n",
            r"row 4: t_s 1800, wanted 1200 \(rows are 600 s apart\)",
        ),
        ("a row comes twice", "0,9,2\n600,9,2\n600,9,2\n", "row 4: t_s 600 does not come after 600"),
        ("rows are out of order", "0,9,2\n600,9,2\n300,9,2\n", "row 4: t_s 300 does not come after 600"),
        ("windows of half seconds", "0.5,9,2\n1.0,9,2\n", "row 2: t_s 0.5, wanted whole seconds"),
        ("a rate is negative", "0,9,2\n600,-1,2\n", "row 3: rps is '-1', wanted a number, 0 or more"),
        ("a rate is not a number", "0,9,2\n600,nan,2\n", "row 3: rps is 'nan'"),
        ("a rate is infinite", "0,9,2\n600,inf,2\n", "row 3: rps is 'inf'"),
        ("a rate is not there", "0,9,2\n600,,2\n", "row 3: rps is ''"),
        ("a row is cut", "0,9,2\n600\n", "row 3: rps is None"),
        ("a dispersion is a word", "0,9,wild\n", "row 2: agg_idc is 'wild'"),
        ("nobody ever came", "0,0,2\n600,0,2\n", "row 2 to 3: rps is below 1 in all of them"),
        ("nothing below the header", "", "no row below the header"),
    ],
)
def test_rates(tmp_path, story, text, said):
    path = tmp_path / "rates.csv"
    path.write_text(HEADER + text)
    with pytest.raises(TraceError, match=said):
        open_trace(TraceSpec(rates=path, lengths=LENGTHS))


@pytest.mark.parametrize(
    ("header", "said"),
    [("t_s,rps\n", "no column agg_idc; found t_s, rps"), ("", "no column t_s, rps, agg_idc; found nothing")],
)
def test_columns(tmp_path, header, said):
    path = tmp_path / "rates.csv"
    path.write_text(header)
    with pytest.raises(TraceError, match=said):
        open_trace(TraceSpec(rates=path, lengths=LENGTHS))


ONE = np.ones(4, np.int32)


@pytest.mark.parametrize(
    ("story", "arrays", "said"),
    [
        ("nothing that is known", {"input": ONE}, "no key in_<start> or out_<start>"),
        ("half a pair", {"in_0": ONE}, "no key out_0"),
        ("empty", {"in_0": ONE[:0], "out_0": ONE[:0]}, "in_0 is empty"),
        ("unequal", {"in_0": ONE, "out_0": ONE[:2]}, "in_0 has 4 samples and out_0 2"),
        (
            "fractions",
            {"in_0": ONE * 1.5, "out_0": ONE},
            r"in_0 is float64 of shape \(4,\), wanted whole numbers",
        ),
        ("a table", {"in_0": ONE.reshape(2, 2), "out_0": ONE}, r"in_0 is int32 of shape \(2, 2\)"),
        ("objects", {"in_0": np.array([{}, {}]), "out_0": ONE}, "cannot be read as lengths"),
        (
            "negative tokens",
            {"in_0": ONE, "out_0": -ONE},
            "out_0 has samples from -1 to -1 tokens, wanted 1 to",
        ),
        ("no tokens at all", {"in_0": ONE, "out_0": 0 * ONE}, "out_0 has samples from 0 to 0 tokens"),
        ("too many tokens", {"in_0": ONE * 100_000_000, "out_0": ONE}, "in_0 has samples from 100000000"),
        (
            "a window is missing",
            {f"{k}_{s}": ONE for k in ("in", "out") for s in (0, 21600, 64800)},
            r"no key in_43200 \(in_21600 is followed by in_64800\)",
        ),
        ("too short", {"in_0": ONE, "out_0": ONE}, "lengths from 0 s to 21600 s, wanted 18000 s to 25200 s"),
        ("too late", {"in_21600": ONE, "out_21600": ONE}, "lengths from 21600 s to 43200 s, wanted 18000 s"),
    ],
)
def test_lengths(tmp_path, story, arrays, said):
    path = tmp_path / "lengths.npz"
    np.savez(path, **arrays)
    with pytest.raises(TraceError, match=said):
        open_trace(TraceSpec(rates=RATES, lengths=path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"rates": TRACES / "none.csv", "lengths": LENGTHS},
            "none.csv: cannot be read as rates: .*No such file",
        ),
        (
            {"rates": RATES, "lengths": TRACES / "none.npz"},
            "none.npz: cannot be read as lengths: .*No such file",
        ),
        ({"rates": RATES, "lengths": RATES}, "m-large_5h_7h.csv: cannot be read as lengths"),
        ({"rates": LENGTHS, "lengths": LENGTHS}, "cannot be read as rates"),
        ({"rates": RATES}, "rates, lengths: wanted both"),
        ({}, "rates, lengths: wanted both, or a trace instead"),
        ({"rates": RATES, "lengths": LENGTHS, "trace": "azure:x"}, "cannot be together with rates"),
        ({"rates": RATES, "lengths": LENGTHS, "scale": 0.0}, "scale: wanted a number above 0, found 0"),
        ({"rates": RATES, "lengths": LENGTHS, "scale": -1.0}, "scale: wanted a number above 0, found -1"),
        ({"rates": RATES, "lengths": LENGTHS, "scale": float("nan")}, "scale: .* found nan"),
        ({"rates": RATES, "lengths": LENGTHS, "scale": 1e6}, "at most 20,000,000 are made; lower the scale"),
        (
            {"rates": RATES, "lengths": LENGTHS, "days": (0.0, 1.0)},
            "days: 0:1 is 0 s to 86400 s, and .* has 18000 s to 25200 s",
        ),
        (
            {"rates": RATES, "lengths": LENGTHS, "days": (2.0, 1.0)},
            "days: wanted A:B with 0 <= A < B, found 2:1",
        ),
        ({"rates": RATES, "lengths": LENGTHS, "days": (float("nan"), 1.0)}, "days: wanted A:B"),
        ({"rates": RATES, "lengths": LENGTHS, "seed": -1}, "seed: wanted 0 or more, found -1"),
        ({"trace": "azure"}, "trace: wanted KIND:PATH with KIND one of azure, mooncake, .*; found 'azure'"),
        ({"trace": "csv:x"}, "found 'csv:x'"),
        ({"trace": "azure:none.csv"}, "none.csv: cannot be read as a table"),
        ({"trace": "mooncake:none.jsonl"}, "none.jsonl: cannot be read as JSON lines"),
        ({"trace": "demand:none.jsonl"}, "none.jsonl: cannot be read as JSON lines"),
        ({"trace": "synthetic:wave"}, "no shape 'wave'; there are constant, step, ramp, surge"),
        (
            {"trace": "synthetic:step,height=2"},
            "synthetic step: no parameter 'height'; there are duration_s, rate",
        ),
        ({"trace": "synthetic:step,factor=much"}, "wanted parameter=number once each, found 'factor=much'"),
        ({"trace": "synthetic:step,factor=2,factor=3"}, "once each, found 'factor=3'"),
        ({"trace": "synthetic:step,factor=0"}, "synthetic step: factor is 0, wanted 0.01 to 1000"),
        ({"trace": "synthetic:step,rate=nan"}, "synthetic step: rate is nan"),
        ({"trace": "synthetic:sinusoid,low=30"}, "synthetic sinusoid: low 30 is above high 24"),
        ({"trace": "synthetic:step", "scale": 0.0}, "scale: wanted a number above 0"),
        ({"trace": "synthetic:step", "days": (0.0, 1.0)}, "days: a synthetic trace has none"),
    ],
)
def test_options(options, said):
    with pytest.raises(TraceError, match=said):
        open_trace(TraceSpec(arrivals=ArrivalShape.LINEAR, **options))


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00.1,5,6\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,API log\n"
BLOCK = '{"timestamp": 5, "input_length": 600, "output_length": 9, "hash_ids": [1, 2]}\n'


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("azure", AZURE + "yesterday,5,6\n", "row 3: TIMESTAMP is 'yesterday'"),
        ("azure", AZURE + ",5,6\n", "row 3: TIMESTAMP is ''"),
        ("azure", AZURE + "2023-11-16 17:59:59.1,5,6\n", "row 3: TIMESTAMP is before the row above it"),
        ("azure", AZURE + "2023-11-16 18:00:01.1,0,6\n", "row 3: ContextTokens is 0, wanted 1 to 10,000,000"),
        ("azure", AZURE + "2023-11-16 18:00:01.1,5,0\n", "row 3: GeneratedTokens is 0"),
        ("azure", AZURE + "2023-11-16 18:00:01.1,5,6.5\n", "row 3: GeneratedTokens is '6.5'"),
        ("azure", AZURE + "2023-11-16 18:00:01.1,5\n", "row 3: 2 fields, wanted 3"),
        ("azure", "TIMESTAMP,ContextTokens\n", "no column GeneratedTokens; found TIMESTAMP, ContextTokens"),
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no row below the header"),
        ("burstgpt", BURST + "4,ChatGPT,1,1,2,API log\n", "row 3: Timestamp is before the row above it"),
        ("burstgpt", BURST + "-4,ChatGPT,1,1,2,API log\n", "row 3: Timestamp is '-4'"),
        ("burstgpt", BURST + "6,ChatGPT,0,1,1,API log\n", "row 3: Request tokens is 0, wanted 1 or more"),
        ("burstgpt", BURST + "6,ChatGPT,1,-1,0,API log\n", "row 3: Response tokens is -1"),
        ("burstgpt", BURST.replace(",18,", ",0,"), "no request that was answered"),
        ("mooncake", BLOCK + "{\n", "row 2: not JSON"),
        ("mooncake", BLOCK + "7\n", "row 2: int, wanted an object"),
        ("mooncake", BLOCK + '{"timestamp": 6}\n', "row 2: no field input_length"),
        ("mooncake", BLOCK + BLOCK.replace("5", "4", 1), "row 2: timestamp is before the row above it"),
        ("mooncake", BLOCK.replace("600", "0"), "row 1: input_length is 0, wanted 1 to"),
        ("mooncake", BLOCK.replace("9", "true"), "row 1: output_length is True"),
        ("mooncake", BLOCK.replace("[1, 2]", "[1, 2, 3]"), "row 1: 3 hash_ids, and the prompt has 2 blocks"),
        ("mooncake", BLOCK.replace("[1, 2]", '["a"]'), "row 1: hash_ids is not a list of whole numbers"),
        ("mooncake", "", "no row"),
        ("bailian", BLOCK.replace('"timestamp": 5', '"timestamp": "5"'), "row 1: timestamp is '5'"),
        ("demand", "{}\n", "row 1: wanted format moefleet-demand, version 1"),
    ],
)
def test_recorded_traces(tmp_path, kind, text, said):
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        open_trace(TraceSpec(trace=f"{kind}:{path}"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"days": (1.0, 2.0)}, "days: 1:2 is 86400 s to 172800 s, and azure code_495s_720s.csv has 160 s"),
        ({"days": (0.0, 2.0)}, "days: 0:2 is 0 s to 172800 s"),
        ({"scale": 1e-9}, "scale: 1e-09 of 998 requests leaves none"),
        ({"scale": 1e6}, "scale: 1e\\+06 makes 998,000,000 requests, and at most 50,000,000 fit in memory"),
        ({"scale": 0.0}, "scale: wanted a number above 0, found 0"),
    ],
)
def test_options_of_recorded_traces(options, said):
    with pytest.raises(TraceError, match=said):
        open_trace(TraceSpec(trace=f"azure:{TRACES}/azure2023/code_495s_720s.csv", **options))


@pytest.mark.parametrize(("text", "days"), [("0:2", (0.0, 2.0)), ("2:4.5", (2.0, 4.5))])
def test_days(text, days):
    assert parse_days(text) == days


@pytest.mark.parametrize("text", ["2", "a:b", "1:", "1:2:3", ""])
def test_days_that_are_none(text):
    with pytest.raises(TraceError, match="days: wanted A:B, two numbers"):
        parse_days(text)
