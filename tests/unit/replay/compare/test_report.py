"""The page that is given away: whole without a network, and with everything that speaks against us."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from moefleet_replay.compare import Study
from moefleet_replay.compare_jobs import Results
from moefleet_replay.compare_verdict import Key
from moefleet_replay.report import arrival_hashes, comparison_html, comparison_json, tuned_elsewhere
from moefleet_replay.report_plots import frontier, timeline
from moefleet_replay.report_run import run_html
from moefleet_replay.report_text import comparison_markdown
from moefleet_replay.result import DecisionLine, RunResult, Summary, Timeline
from moefleet_studies import all_runs, make_study, outcome, setting

STUDY = make_study(
    (
        setting("ours", 1, default=True),
        setting("ours", 2),
        setting("oracle", 1, default=True),
        setting("calm", 1, default=True),
        setting("calm", 2),
        setting("other", 1, default=True),
    ),
    segments=("a", "b<c>"),
    others=("side",),
    tuning=("a",),
)
WORLD = {
    "ours": outcome(0.995, 100, 20),
    "ours:knob=2": outcome(0.98, 90, 20),
    "oracle": outcome(0.999, 95, 10),
    "calm": outcome(0.95, 90, 25),
    "calm:knob=2": outcome(0.992, 130, 25),
    "other": outcome(0.97, 80, 50),
}
VOID = {"meta", "path", "use", "line", "rect", "circle", "ellipse", "polygon", "polyline", "br", "hr"}


def results(study: Study = STUDY, **changed: dict[str, float]) -> Results:
    runs = all_runs(study, lambda key: {**WORLD, **changed}[key.setting])
    line = Timeline([0.0, 60.0], [1.0, 2.0], [1.0] * 2, [1.0] * 2, [2.0, 2.0], [0.0, 1.0], [0.0] * 2, [1.5, 2.5], [60, 120], [60, 60])  # fmt: skip
    made = Results()
    for key, summary in runs.items():
        made.runs[key] = {
            "summary": dict(summary), "compile_s": 0.0, "extra": {}, "timeline": {n: getattr(line, n) for n in Timeline.__slots__},
            "setup": {"arrivals_sha256": f"hash of {key.segment} {key.seed}"},
        }  # fmt: skip
    return made


class Tags(HTMLParser):
    """Everything opened is closed, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [
            (tag, value)
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "data") and not (value or "").startswith("#")
        ]
        assert tag not in ("script", "link", "iframe", "img")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def whole(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    assert tags.fetched == []
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_page_is_whole_and_loads_nothing() -> None:
    page = comparison_html(STUDY, results(), ["moefleet", "replay", "compare", "a study.toml"])
    whole(page)
    assert "moefleet replay compare &#x27;a study.toml&#x27;" in page
    # Names of segments are text, not markup.
    assert "b&lt;c&gt;" in page
    assert "b<c>" not in page
    for said in ("Every single request", "negative binomial", "Where to attack it", "hash of a 0"):
        assert said in page
    # Pooled, three segments, and the days of ours, and of two peers.
    assert page.count("<svg ") == 1 + 3 + 3


def test_the_text_has_the_verdict_every_cell_and_what_is_against_us() -> None:
    made = results(ours=outcome(0.98, 100, 20))
    del made.runs[Key("other", "side", "announcement", 0)]
    text = comparison_markdown(STUDY, made, ["moefleet", "x"])
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert ["FAIL", "holds", "announcement"] in [row[:3] for row in rows]
    # Three seeds of each, but for the one that was taken out; below the criterion a cell is marked.
    assert ["`ours` (default)", *["~98.00% 100 h"] * 3] in rows
    assert ["`calm:knob=2`", *["99.20% 130 h"] * 3] in rows
    assert "- a (announcement): ours has 98.000 %" in text
    assert comparison_markdown(STUDY, made, ["moefleet", "x"]) == text


def test_the_same_results_give_the_same_page() -> None:
    assert comparison_html(STUDY, results(), ["x"]) == comparison_html(STUDY, results(), ["x"])


def test_what_speaks_against_us_is_on_the_page() -> None:
    page = comparison_html(STUDY, results(other=outcome(0.9905, 70, 50)), ["x"])
    against = page[page.index("<h2>Against us") : page.index("<h2>Every cell")]
    assert "FAIL: peers (announcement): GPU-hours 200.0 ± 0.0 against 140.0" in against
    assert (
        "a (announcement): 1 settings of peers hold for less, the cheapest other with 99.050 % for 70.0" in against
    )  # fmt: skip
    assert "side (announcement)" in against
    page = comparison_html(STUDY, results(), ["x"])
    assert "Nothing was found against ours in these runs." in page


def test_a_run_that_failed_is_on_the_page() -> None:
    found = results()
    found.failed[Key("other", "a", "announcement", 0)] = "ValueError: <broke>"
    assert "ValueError: &lt;broke&gt;" in comparison_html(STUDY, found, ["x"])


def test_the_document_has_every_run_and_the_verdict() -> None:
    found = results()
    document = json.loads(json.dumps(comparison_json(STUDY, found, ["x"])))
    assert [(v["rule"], v["word"]) for v in document["verdict"]] == [
        ("holds", "PASS"), ("peers", "PASS"), ("oracle", "PASS"), ("calm", "PASS"),
    ]  # fmt: skip
    assert len(document["runs"]) == len(found.runs) == 6 * 3 * 3
    assert len(document["cells"]) == 6 * 3
    # Ours is shown at its default, whatever its other settings cost.
    assert [(c["policy"], c["setting"]) for c in document["cheapest"]] == [
        ("oracle", "oracle"), ("ours", "ours"), ("calm", "calm:knob=2"), ("other", "other"),
    ]  # fmt: skip


def test_arrivals_that_differ_between_runs_are_shown_as_a_fault() -> None:
    found = results()
    found.runs[Key("other", "a", "announcement", 1)]["setup"] = {"arrivals_sha256": "another"}
    hashes = arrival_hashes(found)
    assert hashes["a", 1] == "DIFFERS BETWEEN RUNS"
    assert hashes["a", 0] == "hash of a 0"


def test_tuned_elsewhere_picks_on_one_segment_and_judges_on_the_others() -> None:
    rows = {r["policy"]: r for r in tuned_elsewhere(STUDY, results().summaries, "announcement")}
    assert rows["calm"]["setting"] == "calm:knob=2"
    assert (rows["calm"]["held"], rows["calm"]["of"], rows["calm"]["gpu_hours"]) == (1, 1, 130)
    assert rows["other"]["setting"] is None


@pytest.mark.parametrize("attainment", [0.0, 1.0])
def test_a_frontier_at_its_ends_can_be_drawn(attainment: float) -> None:
    page = comparison_html(STUDY, results(other=outcome(attainment, 0.001)), ["x"])
    whole(page)
    assert "nan" not in page.lower().replace("announcement", "")


def test_nothing_to_draw_is_still_a_picture() -> None:
    assert frontier([], 0.99, "empty").startswith("<svg ")
    assert timeline(Timeline(), "empty", 0.99).startswith("<svg ")


def test_a_run_is_a_page_with_its_decisions() -> None:
    summary = Summary("p", 10, 1.0, 1.0, 1.0, 1.0, 8.0, 0.5, 0.1, 0.2, 0.3, 0.05, 1, 2, 3, 0.1)
    line = Timeline([0.0], [1.0], [1.0], [1.0], [2.0], [0.0], [0.0], [1.5], [60], [60])
    page = run_html(RunResult(summary, line, [DecisionLine(3600.0, 1, 2, "because <x>")], 0.0, {"seed": 0}))
    whole(page)
    assert "<td>1.000</td><td>1</td><td>2</td><td>because &lt;x&gt;</td>" in page
