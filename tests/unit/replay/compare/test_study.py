"""The study file: the criterion that is fixed in it, its settings, and a sentence for every mistake in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from moefleet_replay.compare import StudyError, load_study, narrowed, settings_of, spread
from moefleet_replay.compare_cache import Cache, code_digest, run_key
from moefleet_replay.compare_jobs import cached_runs, run_study
from moefleet_replay.compare_run import RunArguments, TraceArguments
from moefleet_replay.compare_verdict import Key, judged
from moefleet_replay.policies import REGISTRY
from moefleet_replay.policy import PolicyError

STUDIES = Path(__file__).parents[4] / "operator/studies"
PRODUCTION = STUDIES / "production.toml"

SMALL = """
[criterion]
ours = "hpa-arrival"
oracle = "oracle"
calm = "hpa-served"
attainment = 0.99
peers_ratio = 0.85
oracle_ratio = 1.1
actions_ratio = 1.0
[setup]
seeds = [0, 1]
calibrations = ["announcement"]
objective = "ttft=2s,tpot=100ms,attainment=99"
cold_start = "lognormal:240,420"
min = 1
max = 200
gpu_hour_price = 14.0
[[segments]]
name = "calm"
trace = "synthetic:constant"
headline = true
[[segments]]
name = "jump"
trace = "synthetic:step"
[policies]
only = ["hpa-arrival", "hpa-served", "oracle"]
settings = 2
[pruning]
enabled = true
one_seed_margin = 0.003
"""


def small(tmp_path: Path, text: str = SMALL) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


def test_the_criterion_of_production_is_the_one_that_was_fixed_before_the_first_run() -> None:
    data = tomllib.loads(PRODUCTION.read_text())
    assert data["criterion"] == {
        "ours": "moefleet", "oracle": "oracle", "calm": "hpa-arrival",
        "attainment": 0.99, "peers_ratio": 0.85, "oracle_ratio": 1.10, "actions_ratio": 1.0,
    }  # fmt: skip
    headline = {
        (s["name"], s.get("days"), s.get("scale", 1.0)) for s in data["segments"] if s.get("headline")
    }
    assert headline == {
        ("m-large 0:2", "0:2", 1.0), ("m-large 2:4", "2:4", 1.0), ("m-large 4:6", "4:6", 1.0),
        ("m-mid 0:2", "0:2", 0.25), ("m-mid 2:4", "2:4", 0.25), ("m-mid 4:6", "4:6", 0.25),
        ("mix shift", None, 1.0),
    }  # fmt: skip
    assert {(s["name"], s["scale"]) for s in data["segments"] if not s.get("headline")} == {("azure conv x45", 45.0), ("mooncake conv x12", 12.0)}  # fmt: skip
    assert data["setup"]["seeds"] == [0, 1, 2]
    assert data["setup"]["calibrations"] == ["announcement", "aic"]


def test_the_short_study_is_production_with_fewer_seeds_and_settings() -> None:
    short, whole = (tomllib.loads((STUDIES / f"{name}.toml").read_text()) for name in ("short", "production"))
    assert short["criterion"] == whole["criterion"]
    assert {**short["setup"], "arrivals": "linear"} == {**whole["setup"], "seeds": [0]}
    assert sorted(map(str, short["segments"])) == sorted(map(str, whole["segments"]))
    assert short["policies"]["grid"]["moefleet"] == []


def test_everybody_has_the_same_number_of_settings() -> None:
    data = tomllib.loads(PRODUCTION.read_text())
    count = data["policies"]["settings"]
    assert {name: len(values) for name, values in data["policies"]["grid"].items()} == dict.fromkeys(
        data["policies"]["grid"], count
    )
    for name, values in data["policies"]["grid"].items():
        if name in REGISTRY:
            assert len(settings_of(REGISTRY[name], values, count)) in (count, count + 1)


def test_settings_are_the_default_and_the_values(tmp_path: Path) -> None:
    study = load_study(small(tmp_path), tmp_path)
    assert [s.text for s in study.of("hpa-arrival")] == [
        "hpa-arrival",
        "hpa-arrival:target=0.01",
        "hpa-arrival:target=1",
    ]
    assert [s.default for s in study.of("hpa-arrival")] == [True, False, False]
    assert study.policies == ("oracle", "hpa-arrival", "hpa-served")
    narrow = load_study(small(tmp_path), tmp_path, "segments=jump;seeds=1;defaults")
    assert [s.name for s in narrow.segments] == ["jump"]
    assert narrow.seeds == (1,)
    assert all(s.default for s in narrow.settings)


def test_a_knob_is_spread_by_ratios_when_its_range_is_wide() -> None:
    assert spread(1, 1000, 4) == [1, 10, 100, 1000]
    assert spread(0, 1, 3) == [0, 0.5, 1]
    assert spread(0.3, 1.5, 3) == [0.3, 0.9, 1.5]


@pytest.mark.parametrize(
    ("old", "new", "error", "said"),
    [
        ('ours = "hpa-arrival"', 'ours = "nobody"', PolicyError, "criterion.ours: policy 'nobody' is unknown; there are"),
        ("peers_ratio = 0.85", 'peers_ratio = "low"', StudyError, "criterion.peers_ratio: wanted a number, found 'low'"),
        ("seeds = [0, 1]", "seeds = []", StudyError, "seeds: wanted a list of int, found []"),
        ("headline = true", "headline = false", StudyError, "at least one with headline = true"),
        ('trace = "synthetic:step"', 'traze = "synthetic:step"', StudyError, "segments[1]: wanted fields of"),
        ("[setup]", "[setup", StudyError, "cannot be read as a study"),
        ("tpot=100ms", "tpot=10ms", ValueError, "cannot meet the objective at any load: step.aS"),
        ('"oracle"]', '"oracle", "magic"]', PolicyError, "policies: 'magic' is unknown"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(
    tmp_path: Path, old: str, new: str, error: type[Exception], said: str
) -> None:  # fmt: skip
    with pytest.raises(error, match=re.escape(said)):
        load_study(small(tmp_path, SMALL.replace(old, new)), tmp_path)


def test_a_subset_of_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="subset: segments: x unknown; there are calm, jump"):
        load_study(small(tmp_path), tmp_path, "segments=x")


class Counted:
    """Stands for a run, and can be cut: the criterion's numbers come from the arguments alone."""

    def __init__(self, cut_after: int | None = None) -> None:
        self.made: list[RunArguments] = []
        self._cut_after = cut_after

    def __call__(self, arguments: RunArguments) -> dict[str, object]:
        if len(self.made) == self._cut_after:
            raise KeyboardInterrupt
        self.made.append(arguments)
        summary = {
            "attainment": 0.999,
            "gpu_hours": 10.0 + arguments.seed,
            "scaling_actions": 3,
            "requests": 100,
        }
        return {"summary": summary, "compile_s": 0.0, "setup": {}, "extra": {}}


def test_a_study_that_was_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    study = load_study(small(tmp_path), tmp_path)
    cache = Cache(tmp_path / "cache")
    cut = Counted(cut_after=5)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, cache, jobs=1, prune=False, execute=cut)
    rest = Counted()
    results = run_study(study, cache, jobs=1, prune=False, execute=rest)
    assert len(cut.made) == 5
    assert not set(map(repr, cut.made)) & set(map(repr, rest.made))
    assert len(cut.made) + len(rest.made) == len(results.runs) == len(study.settings) * 2 * 2
    again = Counted()
    assert run_study(study, cache, jobs=1, prune=False, execute=again).runs == results.runs
    assert again.made == []
    assert results.runs[Key("oracle", "jump", "announcement", 1)]["summary"]["gpu_hours"] == 11.0


def test_what_the_cache_has_is_judged_alone_and_the_rest_is_named(tmp_path: Path) -> None:
    study = load_study(small(tmp_path), tmp_path)
    cache = Cache(tmp_path / "cache")
    assert cached_runs(study, cache)[1].runs == {}
    done = run_study(narrowed(study, "policies=oracle"), cache, jobs=1, prune=False, execute=Counted())
    cut, found = cached_runs(study, cache)
    assert found.runs == done.runs
    assert cut.policies == ("oracle",)
    assert cut.criterion == study.criterion
    left = [s.text for s in study.settings if s.policy != "oracle"]
    assert cut.name == f"study (not run: {', '.join(left)})"
    assert cut.segments == study.segments
    # Ours here is hpa-arrival: from the moment that it has run, only where it has is anything judged.
    quick = narrowed(study, "policies=hpa-arrival;segments=calm;defaults")
    run_study(quick, cache, jobs=1, prune=False, execute=Counted())
    cut, found = cached_runs(study, cache)
    assert [s.name for s in cut.segments] == ["calm"]
    assert {key.segment for key in found.runs} == {"calm"}
    assert cut.name.endswith(", jump)")
    words = {line.rule: line.word for line in judged(cut, found.summaries)}
    # Nobody of calm's policy has run: nothing to compare with.
    assert words == {"holds": "PASS", "peers": "PASS", "oracle": "PASS", "calm": "FAIL"}


def test_a_run_that_cannot_be_made_is_told_and_the_others_are_made(tmp_path: Path) -> None:
    study = load_study(small(tmp_path), tmp_path)

    def execute(arguments: RunArguments) -> dict[str, object]:
        if arguments.policy.startswith("oracle:"):
            raise ValueError("no future")
        return Counted()(arguments)

    results = run_study(study, Cache(tmp_path / "cache"), jobs=1, prune=False, execute=execute)
    assert {k.setting for k in results.failed} == {
        s.text for s in study.settings if s.text.startswith("oracle:")
    }
    assert set(results.failed.values()) == {"ValueError: no future"}
    assert not {k.setting for k in results.runs} & {k.setting for k in results.failed}


def test_code_that_changes_under_a_study_ends_it(tmp_path: Path) -> None:
    study = load_study(small(tmp_path), tmp_path)
    cache = Cache(tmp_path / "cache")
    with pytest.raises(StudyError, match="the code changed while the study ran"):
        run_study(
            study, cache, jobs=1, prune=False, execute=lambda a: {**Counted()(a), "code": "of yesterday"}
        )
    assert not (tmp_path / "cache").exists()


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    tiny = SMALL.replace("synthetic:constant", "synthetic:constant,duration_s=120,rate=5")
    tiny = tiny.replace("synthetic:step", "synthetic:step,duration_s=120,rate=5,at_s=60")
    study = load_study(small(tmp_path, tiny), tmp_path, "defaults")
    one = run_study(study, Cache(tmp_path / "one"), jobs=1)
    two = run_study(study, Cache(tmp_path / "two"), jobs=2)
    assert not one.failed
    assert not two.failed
    assert set(one.runs) == set(two.runs)
    assert len(one.runs) == 3 * 2 * 2
    for key, made in one.runs.items():
        for result in (made, two.runs[key]):
            result["summary"].pop("wall_s")
            result.pop("compile_s")
        assert made == two.runs[key]
    hashes = {(k.segment, k.seed): r["setup"]["arrivals_sha256"] for k, r in one.runs.items()}
    # Every policy met the same requests, and another seed or trace is other requests.
    assert {r["setup"]["arrivals_sha256"] for r in one.runs.values()} == set(hashes.values())
    assert len(set(hashes.values())) == 4


BASE = RunArguments(TraceArguments(trace="synthetic:constant"), "hpa-arrival")


@pytest.mark.parametrize(
    "other",
    [
        RunArguments(TraceArguments(trace="synthetic:constant", scale=2), "hpa-arrival"),
        RunArguments(TraceArguments(trace="synthetic:step"), "hpa-arrival"),
        RunArguments(BASE.trace, "hpa-arrival:target=0.5"),
        RunArguments(BASE.trace, "hpa-served"),
        RunArguments(BASE.trace, "hpa-arrival", calibration="aic"),
        RunArguments(BASE.trace, "hpa-arrival", cold_start="lognormal:20,40"),
        RunArguments(BASE.trace, "hpa-arrival", seed=1),
    ],
)
def test_another_run_has_another_key(other: RunArguments) -> None:
    assert run_key(other) != run_key(BASE)


def test_the_same_run_has_the_same_key_however_it_is_spelt(tmp_path: Path) -> None:
    assert run_key(RunArguments(BASE.trace, "hpa-arrival:target=0.60")) == run_key(BASE)
    # Where a trace lies says nothing about what is in it.
    keys = set()
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        path = tmp_path / folder / "trace.csv"
        path.parent.mkdir()
        path.write_text(text)
        keys.add(run_key(RunArguments(TraceArguments(trace=f"azure:{path}"), "hpa-arrival")))
    assert len(keys) == 2


def test_the_code_of_a_policy_is_its_family_and_not_the_others() -> None:
    assert code_digest("hpa-arrival") == code_digest("hpa-served")
    assert code_digest("hpa-arrival") != code_digest("oracle")


def test_half_a_file_in_the_cache_is_no_result(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store("k", {"summary": {"attainment": 1.0}})
    (tmp_path / "k.json.gz").write_bytes((tmp_path / "k.json.gz").read_bytes()[:-12])
    assert cache.load("k") is None
    assert cache.load("never") is None


def test_work_on_our_policy_leaves_the_results_of_peers_alone(tmp_path: Path) -> None:
    """In a copy of the sources that is edited, told by processes of their own: digests are kept for a process's life."""
    root = Path(__file__).parents[4]
    for folder in ("operator", "runtime"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def digests() -> list[str]:
        code = (
            "from moefleet_replay.compare_cache import code_digest as d; print(d('hpa-arrival'), d('oracle'))"
        )
        path = os.pathsep.join([str(tmp_path / "operator"), str(tmp_path / "runtime"), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
        )  # fmt: skip
        return done.stdout.split()

    def edit(name: str) -> None:
        with (tmp_path / "operator" / name).open("a") as file:
            file.write("\n# edited\n")

    first = digests()
    for name in ("moefleet_operator/scaling/law.py", "moefleet_replay/report.py", "moefleet_replay/policies/knative.py"):  # fmt: skip
        edit(name)
    assert digests() == first
    edit("moefleet_replay/policies/hpa.py")
    second = digests()
    assert (second[0] != first[0], second[1] == first[1]) == (True, True)
    edit("moefleet_replay/kernel.py")
    assert not set(digests()) & {*first, *second}
