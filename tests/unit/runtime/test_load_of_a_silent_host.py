"""A host that says nothing must not look idle: whoever sends work where the least is outstanding would send it all there."""

import pytest
from moefleet_runtime.ending import Failure
from moefleet_runtime.engine.base import EngineInfo, EngineLoad, EngineRequest, Finish, TokenDelta
from moefleet_runtime.host import client as host_client
from moefleet_runtime.host.client import EngineClient
from moefleet_runtime.host.messages import Deltas, Load, Started


class Nobody:
    def engine_started(self, info: EngineInfo) -> None: ...
    def engine_failed(self, failure: Failure) -> None: ...
    def engine_step_failed(self, message: str) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(host_client.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def client(clock: list[float]) -> EngineClient:
    made = EngineClient(Nobody(), stall_s=60.0)
    made.received(Started(EngineInfo("m", 4096, 100, (0,), 1 << 20, 64, 256, "test")))
    return made


def test_what_was_sent_counts_until_the_host_reports_it(client: EngineClient, clock: list[float]) -> None:
    client.submit(EngineRequest("a", (1,) * 200, max_tokens=8))
    client.submit(EngineRequest("b", (1,) * 50, max_tokens=2))
    clock[0] += 30.0
    assert client.unreported_tokens == (250, 10)

    client.received(Load(EngineLoad(active=2, outstanding_prefill_tokens=250, outstanding_decode_tokens=10)))
    assert client.unreported_tokens == (0, 0)


def test_a_report_that_may_have_crossed_a_request_does_not_answer_for_it(
    client: EngineClient, clock: list[float]
) -> None:
    client.submit(EngineRequest("old", (1,) * 200, max_tokens=8))
    clock[0] += 5.0
    client.submit(EngineRequest("new", (1,) * 50, max_tokens=2))
    clock[0] += 0.01
    client.received(Load(EngineLoad(active=1)))
    assert client.unreported_tokens == (50, 2)


def test_what_has_ended_or_was_given_up_is_no_work(client: EngineClient) -> None:
    client.submit(EngineRequest("a", (1,) * 200, max_tokens=8))
    given_up = client.submit(EngineRequest("b", (1,) * 50, max_tokens=2))
    client.received(Deltas([TokenDelta("a", (5,), finish=Finish.STOP)]))
    client.abort(given_up)
    assert client.unreported_tokens == (0, 0)
