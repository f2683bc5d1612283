"""The life of a replica as a table, and what holds for every order of events."""

from hypothesis import given
from hypothesis import strategies as st
from moefleet_runtime.ending import Failure
from moefleet_runtime.life import (
    CanaryFailed,
    CanaryPassed,
    DrainWanted,
    EngineStarted,
    Event,
    Failed,
    Fetching,
    HostUp,
    Life,
    ResumeWanted,
    State,
    StepFailed,
    StreamsChanged,
    Terminated,
    advance,
)

DIED = Failed(Failure("EngineDied", "killed by signal 9"))
SERVING: tuple[Event, ...] = (HostUp(), EngineStarted(), CanaryPassed())
DRAIN = DrainWanted("ScaleDown")

TABLE: list[tuple[str, tuple[Event, ...], State]] = [
    ("born", (), State.STARTING),
    ("weights come over the network", (Fetching("0 %"),), State.FETCHING),
    ("and come", (Fetching("0 %"), Fetching("50 %")), State.FETCHING),
    ("and are here", (Fetching("0 %"), HostUp()), State.LOADING),
    (
        "a late word of the fetch changes nothing",
        (Fetching("0 %"), HostUp(), Fetching("100 %")),
        State.LOADING,
    ),
    ("drain while fetching", (Fetching("0 %"), DRAIN), State.DRAINED),
    (
        "and fetching goes on under it",
        (Fetching("0 %"), DRAIN, Fetching("9 %"), ResumeWanted()),
        State.FETCHING,
    ),
    ("death while fetching", (Fetching("0 %"), DIED), State.FAILED),
    ("the host makes the engine", (HostUp(),), State.LOADING),
    ("the canary runs", (HostUp(), EngineStarted()), State.WARMING),
    ("the canary passed", SERVING, State.SERVING),
    ("no canary, no service", (HostUp(), CanaryPassed()), State.LOADING),
    ("a failed canary is the end", (HostUp(), EngineStarted(), CanaryFailed("no token")), State.FAILED),
    ("a failed step asks for the canary again", (*SERVING, StepFailed("x")), State.WARMING),
    ("and it passes", (*SERVING, StepFailed("x"), CanaryPassed()), State.SERVING),
    ("drain with streams", (*SERVING, StreamsChanged(2), DRAIN), State.DRAINING),
    ("the last stream ends", (*SERVING, StreamsChanged(1), DRAIN, StreamsChanged(0)), State.DRAINED),
    ("drain without streams", (*SERVING, DRAIN), State.DRAINED),
    ("resume", (*SERVING, StreamsChanged(2), DRAIN, ResumeWanted()), State.SERVING),
    ("resume of a drained one", (*SERVING, DRAIN, ResumeWanted()), State.SERVING),
    ("resume of what does not drain", (*SERVING, ResumeWanted()), State.SERVING),
    ("drain while loading", (HostUp(), DRAIN), State.DRAINED),
    ("resume gives back what was underneath", (HostUp(), DRAIN, ResumeWanted()), State.LOADING),
    ("loading goes on under a drain", (HostUp(), DRAIN, EngineStarted(), CanaryPassed()), State.DRAINED),
    ("and shows after it", (HostUp(), DRAIN, EngineStarted(), CanaryPassed(), ResumeWanted()), State.SERVING),
    ("SIGTERM with streams", (*SERVING, StreamsChanged(1), Terminated()), State.DRAINING),
    ("SIGTERM cannot be undone", (*SERVING, StreamsChanged(1), Terminated(), ResumeWanted()), State.DRAINING),
    ("death while serving", (*SERVING, DIED), State.FAILED),
    ("death while draining", (*SERVING, StreamsChanged(1), DRAIN, DIED), State.FAILED),
    ("death while loading", (HostUp(), DIED), State.FAILED),
    (
        "nothing raises the dead",
        (*SERVING, DIED, EngineStarted(), CanaryPassed(), ResumeWanted()),
        State.FAILED,
    ),
]


def live(events: tuple[Event, ...]) -> Life:
    life = Life(born_s=100.0)
    for number, event in enumerate(events):
        life = advance(life, event, 101.0 + number)
    return life


def test_each_row_of_the_table_ends_in_its_state() -> None:
    wrong = [
        (name, live(events).state.name) for name, events, state in TABLE if live(events).state is not state
    ]
    assert wrong == []


def test_the_start_is_timed_once() -> None:
    life = live(SERVING)
    assert life.start_s == 3.0
    assert live((*SERVING, StepFailed("x"), CanaryPassed())).start_s == 3.0
    assert live(SERVING[:2]).start_s == 0.0


def test_the_first_reason_to_drain_stays_and_sigterm_keeps_it() -> None:
    assert live((*SERVING, DRAIN, DrainWanted("Rollout"))).drain == "ScaleDown"
    assert live((*SERVING, DRAIN, Terminated())).drain == "ScaleDown"
    assert live((*SERVING, Terminated())).drain == "Terminated"


def test_an_explanation_is_empty_only_while_serving() -> None:
    for name, events, state in TABLE:
        assert (live(events).explanation == "") == (state is State.SERVING), name


def test_it_is_over_when_told_to_stop_and_empty_or_when_it_failed() -> None:
    assert not live(SERVING).over
    assert not live((*SERVING, DRAIN)).over
    assert not live((*SERVING, StreamsChanged(1), Terminated())).over
    assert live((*SERVING, StreamsChanged(1), Terminated(), StreamsChanged(0))).over
    assert live((*SERVING, StreamsChanged(1), DIED)).over


EVENTS = st.one_of(
    st.sampled_from(
        [
            Fetching("50 %"),
            HostUp(),
            EngineStarted(),
            CanaryPassed(),
            CanaryFailed("x"),
            StepFailed("x"),
            DIED,
            DRAIN,
            ResumeWanted(),
            Terminated(),
        ]
    ),
    st.integers(0, 3).map(StreamsChanged),
)


@given(st.lists(EVENTS, max_size=20))
def test_whatever_comes_it_takes_work_only_when_warm_whole_and_wanted(events: list[Event]) -> None:
    life = Life(born_s=0.0)
    failed = terminated = False
    for event in events:
        before = life
        life = advance(life, event, 1.0)
        assert advance(life, event, 1.0).state is life.state, "an event twice is the event once"
        failed |= isinstance(event, Failed | CanaryFailed)
        terminated |= isinstance(event, Terminated) and not before.failure
        assert (life.state is State.FAILED) == failed
        assert life.terminated == terminated
        if life.takes_work:
            assert CanaryPassed() in events
            assert not failed
            assert not terminated
            assert life.drain is None
        if life.state is State.DRAINED:
            assert life.active == 0
