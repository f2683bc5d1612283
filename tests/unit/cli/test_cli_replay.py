"""`moefleet replay`, `policies` and `plan` from the outside: what is printed, what is written, and how bad input ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from moefleet_cli.app import run
from moefleet_cli.exits import Exit
from moefleet_cli.plan import sparkline
from moefleet_replay.policies import REGISTRY

# Five minutes of 5 requests/s: what a fleet of one replica does not notice.
QUIET = ["--trace", "synthetic:constant,duration_s=300,rate=5"]
FIELDS = {
    "policy", "requests", "attainment", "ttft_attainment", "tpot_attainment", "windows_5min_ok", "gpu_hours", "cost_per_mtok",
    "ttft_p50_s", "ttft_p99_s", "ttft_p999_s", "tpot_p99_s", "replica_starts", "scaling_actions", "peak_replicas", "wall_s",
}  # fmt: skip


def replay(*arguments: str, policy: str = "static:replicas=1", seed: str = "0") -> int:
    return run(["replay", *arguments, "--policy", policy, "--seed", seed])


def test_a_run_writes_the_named_fields_and_nothing_else_beside_its_setup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert replay(*QUIET, "--json", str(out), "--plot", str(tmp_path / "plot.html")) == Exit.OK
    document = json.loads(out.read_text())
    assert set(document) == FIELDS | {"setup"}
    # 5/s for 300 s: 1,500 on average, with an index of dispersion of 8.
    assert 1000 < document["requests"] < 2000
    assert document["attainment"] == 1.0
    # One replica of 8 GPUs for at least the 300 s that requests arrive.
    assert 8 * 300 / 3600 <= document["gpu_hours"] < 8 * 400 / 3600
    assert document["peak_replicas"] == 1
    shown = capsys.readouterr().out
    assert "inside the objective" in shown
    assert "100.000 %" in shown
    assert (tmp_path / "plot.html").read_text().count("<svg ") == 1


def test_standard_output_is_the_document_alone_when_a_script_asks(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(*QUIET, "--json", "-", "--output", "json") == Exit.OK
    first = json.loads(capsys.readouterr().out)
    assert replay(*QUIET, "--json", "-") == Exit.OK
    said = capsys.readouterr()
    second = json.loads(said.out)
    assert "inside the objective" in said.err
    for measured in ("wall_s",):
        first.pop(measured), second.pop(measured)
    first["setup"].pop("compile_s"), second["setup"].pop("compile_s")
    assert first == second
    assert replay(*QUIET, "--json", "-", seed="1") == Exit.OK
    third = json.loads(capsys.readouterr().out)
    assert third["setup"]["arrivals_sha256"] != first["setup"]["arrivals_sha256"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "nobody"], "policy 'nobody' is unknown; there are"),
        (["--policy", "hpa-arrival:targett=0.5"], "policy hpa-arrival: knob 'targett' is unknown; there are target"),
        (["--policy", "hpa-arrival:target=2"], "policy hpa-arrival: target: wanted 0.01 to 1"),
        (["--calibration", "h900"], "calibration 'h900' is unknown; known are"),
        (["--objective", "tpot=15ms"], "cannot meet the objective at any load: step.aS"),
        (["--objective", "ttft=10ms"], "cannot meet the objective at any load: step.aS"),
        (["--objective", "ttft=2"], "objective: ttft: wanted a duration as 2s or 100ms, found '2'"),
        (["--objective", "speed=2s"], "objective: wanted ttft=2s,tpot=100ms,attainment=99"),
        (["--objective", "attainment=100"], "objective: attainment: wanted percent above 0 and below 100"),
        (["--cold-start", "240"], "cold start '240': wanted lognormal:MEDIAN,P95"),
        (["--cold-start", "lognormal:420,240"], "cold start: wanted 0 < median <= p95"),
        (["--min", "5", "--max", "4"], "min and max: wanted 1 <= min <= max"),
        (["--scale", "0"], "scale: wanted a number above 0"),
        (["--arrivals", "round"], "arrivals: wanted linear or step, found 'round'"),
        (["--trace", "tape:x"], "trace: wanted KIND:PATH with KIND one of azure"),
        (["--trace", "synthetic:nothing"], "synthetic: no shape 'nothing'; there are constant"),
        (["--days", "2"], "days: wanted A:B"),
        (["--seed", "-1"], "seed: wanted 0 or more"),
    ],
)  # fmt: skip
def test_bad_input_is_named_and_ends_as_wrong_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    # Later options win.
    assert run(["replay", *QUIET, "--policy", "static", "--seed", "0", *arguments]) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_a_row_of_a_bad_trace_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("t_s,rps,agg_idc\n0,5,2\n600,minus,2\n")
    lengths = tmp_path / "lengths.npz"
    assert replay("--rates", str(rates), "--lengths", str(lengths)) == Exit.USAGE
    assert "row 3: rps is 'minus', wanted a number, 0 or more" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [["--policy", "static"], ["--seed", "0"], []])
def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str], missing: list[str]) -> None:
    assert run(["replay", *QUIET, *missing]) == Exit.USAGE
    assert "missing" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(*QUIET, "--json", str(tmp_path / "new" / "x.json")) == Exit.OK
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert replay(*QUIET, "--json", str(blocked / "x.json")) == Exit.FAILED
    assert f"cannot write {blocked / 'x.json'}" in capsys.readouterr().err


def test_policies_are_listed_with_knobs_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["policies", "--output", "json"]) == Exit.OK
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(REGISTRY)
    target = next(k for k in rows["hpa-arrival"]["knobs"] if k["name"] == "target")
    assert (target["low"] <= target["default"] <= target["high"], target["tuned"]) == (True, True)
    assert all(row["source"] and row["summary"] for row in rows.values())
    assert run(["policies"]) == Exit.OK
    text = capsys.readouterr().out
    assert "*target=0.6 (0.01 to 1) share of the configured capacity" in text


def test_a_plan_from_a_rate(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--rate", "200", "--input-tokens", "600", "--output-tokens", "200"]
    assert run([*arguments, "--peak-factor", "1", "--headroom", "0", "--output", "json"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["least_replicas"], document["most_replicas"]) == (3, 3)
    assert document["gpu_hours"] == pytest.approx(3 * 8 * 24)
    assert document["cost"] == pytest.approx(3 * 8 * 24 * 14)
    assert run([*arguments, "--peak-factor", "3"]) == Exit.OK
    text = capsys.readouterr().out
    assert "▂" in text
    assert "█" in text
    assert "the time per output token" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "1"], "rate: wanted --rate, --input-tokens and --output-tokens, or a trace"),
        (["--rate", "1", "--trace", "synthetic:constant"], "rate: give a rate with lengths, or a trace, not both"),
        (["--rate", "0", "--input-tokens", "1", "--output-tokens", "1"], "rate: wanted"),
        (["--rate", "1", "--input-tokens", "1", "--output-tokens", "1", "--objective", "tpot=5ms"], "at any load"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_made(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:  # fmt: skip
    assert run(["plan", *arguments]) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_a_sparkline_shows_the_highest_of_what_shares_a_character() -> None:
    assert sparkline([0, 0, 8, 0], 2) == "▁█"
    assert sparkline([1, 2, 3], 72) == "▃▆█"
    assert sparkline([0, 0], 72) == "▁▁"


@pytest.mark.parametrize(
    "command", [["policies"], ["plan", "--rate", "1"], ["replay", "--policy", "static", "--seed", "0"]]
)
def test_without_the_extra_the_command_says_which_one(command: list[str]) -> None:
    # A process of its own: here everything is imported already.
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        f"from moefleet_cli.app import run\nsys.exit(run({command!r}))"
    )
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == Exit.FAILED
    assert (
        f"`moefleet {command[0]}` needs the extra `replay` (numpy is missing): pip install 'moefleet[replay]'"
        in done.stderr
    )


def test_a_plan_from_a_trace_is_what_the_policy_had_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--trace", "synthetic:constant,duration_s=1800,rate=5", "--output", "json"]
    assert run([*arguments, "--no-replay"]) == Exit.OK
    formula = json.loads(capsys.readouterr().out)
    assert (formula["source"], formula["attainment"], formula["most_replicas"]) == ("closed form", None, 1)
    plot = tmp_path / "plan.html"
    assert run([*arguments, "--policy", "static:replicas=3", "--plot", str(plot)]) == Exit.OK
    found = json.loads(capsys.readouterr().out)
    # One replica at first, three as soon as the policy is asked, which is within its first minute.
    assert (found["source"], found["attainment"], found["most_replicas"]) == ("replay", 1.0, 3)
    assert (1800 * 3 - 60 * 2) * 8 / 3600 <= found["gpu_hours"] < 2000 * 3 * 8 / 3600
    assert found["cost"] == pytest.approx(found["gpu_hours"] * 14)
    assert found["input_tokens"] == formula["input_tokens"]
    assert plot.read_text().count("<svg ") == 1
