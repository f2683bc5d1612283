"""The hub against real gRPC servers on loopback: streams break, lie, restart, fall silent, and come back."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest
from moefleet.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from moefleet.replica.v1 import replica_pb2, replica_pb2_grpc
from moefleet_operator.core.events import EndpointView, Key, ReplicaLoad
from moefleet_operator.scaling import Policy, Reason, Supply, decide
from moefleet_operator.telemetry import (
    GatewayTarget,
    ReplicaTarget,
    TelemetryHub,
    gateway_token,
    replica_token,
    streams,
)
from moefleet_perf import load_calibration

KEY = bytes(range(32))
CHAT = Key("team", "chat")
POLICY = Policy(1, 10, tpot_s=0.1, ttft_s=2.0, calibration=load_calibration("deepseek-v2-8xh800"))
# Long enough for a machine that is busy with other tests; nothing is asserted about how long it took.
PATIENCE_S = 60.0


class Port:
    """A gRPC server that can go away and come back at the same address."""

    def __init__(self, add):
        self._add = add
        self._server = None
        self.port = 0

    async def up(self):
        self._server = grpc.aio.server()
        self._add(self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        assert self.port
        await self._server.start()
        return self

    async def down(self):
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"


async def authorized(context, token):
    if dict(context.invocation_metadata()).get("authorization") != f"Bearer {token}":
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token of another fleet")


@dataclass
class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Keeps its samples and replays them after `since_seq`, as the picker does."""

    uid: str
    incarnation: str = "a"
    samples: list = field(default_factory=list)
    endpoints: dict = field(default_factory=dict)
    requests: list = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self):
        self.port = Port(lambda server: gateway_pb2_grpc.add_GatewayServiceServicer_to_server(self, server))

    async def take(self, arrivals):
        """One more 5 s sample: so many requests since the process began."""
        fleet = gateway_pb2.FleetDemand(
            namespace="team", fleet="chat", arrivals=arrivals, prompt_tokens=arrivals * 100,
            predicted_output_tokens=arrivals * 10, queue_requests=1,
        )  # fmt: skip
        seq = len(self.samples) + 1
        sample = gateway_pb2.DemandSample(
            gateway_uid=self.uid, incarnation=self.incarnation, seq=seq, time_s=5.0 * seq, fleets=[fleet]
        )
        async with self.changed:
            self.samples.append(sample)
            self.changed.notify_all()

    async def register(self, **pods):
        async with self.changed:
            self.endpoints.update(pods)
            self.changed.notify_all()

    async def restart(self):
        await self.port.down()
        self.incarnation += "'"
        self.samples = []
        await self.port.up()

    async def WatchDemand(self, request, context):
        await authorized(context, gateway_token(KEY))
        self.requests.append((request.incarnation, request.since_seq))
        sent = request.since_seq if request.incarnation == self.incarnation else 0
        while True:
            for sample in self.samples[sent:]:
                yield gateway_pb2.WatchDemandResponse(sample=sample)
            sent = len(self.samples)
            async with self.changed:
                await self.changed.wait_for(lambda sent=sent: len(self.samples) > sent)

    async def WatchEndpoints(self, request, context):
        await authorized(context, gateway_token(KEY))
        sent, version, full = {}, 0, True
        while True:
            now = dict(self.endpoints)
            version += 1
            yield gateway_pb2.WatchEndpointsResponse(
                gateway_uid=self.uid, incarnation=self.incarnation, version=version, full=full,
                endpoints=[
                    gateway_pb2.Endpoint(pod_uid=uid, state=state, in_flight=n)
                    for uid, (state, n) in now.items() if sent.get(uid) != (state, n)
                ],
                gone_pod_uids=[uid for uid in sent if uid not in now],
            )  # fmt: skip
            sent, full = now, False
            async with self.changed:
                await self.changed.wait_for(lambda sent=sent: self.endpoints != sent)


@dataclass
class Replica(replica_pb2_grpc.ReplicaServiceServicer):
    uid: str
    fleet_uid: str = "fleet-1"
    incarnation: str = "a"
    seq: int = 0
    said: dict = field(default_factory=lambda: {"state": replica_pb2.REPLICA_STATE_SERVING})
    # None: an endless wait, the stream is open and says nothing.
    speaking: bool = True
    calls: list = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self):
        self.port = Port(lambda server: replica_pb2_grpc.add_ReplicaServiceServicer_to_server(self, server))

    @property
    def target(self):
        return ReplicaTarget(self.uid, CHAT, "fleet-1", self.port.address, ready=True)

    async def say(self, **facts):
        async with self.changed:
            self.said = self.said | facts
            self.changed.notify_all()

    async def WatchLoad(self, request, context):
        await authorized(context, replica_token(KEY, self.fleet_uid))
        self.calls.append(request.interval_ms)
        while True:
            said = self.said
            self.seq += 1
            if self.speaking:
                yield replica_pb2.WatchLoadResponse(
                    sample=replica_pb2.LoadSample(
                        pod_uid=self.uid, incarnation=self.incarnation, seq=self.seq, **said
                    )
                )
            async with self.changed:
                try:
                    async with asyncio.timeout(request.interval_ms / 1000):
                        await self.changed.wait_for(lambda said=said: self.said is not said)
                except TimeoutError:
                    pass


class World:
    """A hub that runs, what it told, and a clock that only the test moves."""

    def __init__(self, load_interval_s):
        self.now = 1_700_000_000.0
        self.loads, self.gateways, self.updates = {}, {}, 0
        self.hub = TelemetryHub(KEY, self.told, lambda: self.now, load_interval_s=load_interval_s)

    def told(self, update):
        assert update.loads or update.gateways
        self.updates += 1
        self.loads.update(update.loads)
        self.gateways.update(update.gateways)

    def sample(self, ready=1):
        return self.hub.sample(
            CHAT, POLICY, Supply(target=3, ready=ready, cold_starts_s=(30.0,) * 3), self.now
        )

    async def until(self, holds, what):
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not holds():  # noqa: ASYNC110 - what is waited for is seen in several places
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"never: {what}; broken: {dict(self.hub.broken())}")


@asynccontextmanager
async def world(*servers, load_interval_s=5.0):
    made = World(load_interval_s)
    for server in servers:
        await server.port.up()
    made.hub.set_gateways([GatewayTarget(s.uid, s.port.address) for s in servers if isinstance(s, Gateway)])
    made.hub.set_replicas([s.target for s in servers if isinstance(s, Replica)])
    running = asyncio.create_task(made.hub.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        for server in servers:
            await server.port.down()


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Waits as short as a test needs; their growth and bounds have tests of their own."""
    monkeypatch.setattr(streams, "BACKOFF_MAX_S", 0.3)
    monkeypatch.setattr(streams, "BACKOFF_REFUSED_S", 0.3)


REGISTERED, WITHDRAWN = gateway_pb2.ENDPOINT_STATE_REGISTERED, gateway_pb2.ENDPOINT_STATE_WITHDRAWN


async def test_two_gateways_and_two_replicas_become_one_sample_loads_and_registrations():
    g1, g2, a, b = Gateway("g1"), Gateway("g2"), Replica("a"), Replica("b")
    async with world(g1, g2, a, b) as w:
        await g1.take(10)
        await g2.take(5)
        await g1.register(a=(REGISTERED, 2), b=(REGISTERED, 0))
        await a.say(active=2, kv_max_tokens=100, admitted_total=7)
        await w.until(lambda: w.sample().demand and w.sample().demand.arrivals == 15, "both gateways counted")
        await w.until(
            lambda: w.sample().load.active == 2 and w.sample().load.replicas == 2, "both replicas counted"
        )
        sample = w.sample()
        assert (sample.silent_gateways, sample.silent_replicas, sample.queue.requests) == (0, 0, 2)
        assert (sample.demand.prompt_tokens, sample.served.admitted) == (1500, 7)
        await w.until(
            lambda: w.gateways.get("g1") and len(w.gateways["g1"].endpoints) == 2, "g1 told its endpoints"
        )
        assert w.hub.registrations()["g1"].endpoints["a"] == EndpointView(True, 2)
        await g1.register(a=(WITHDRAWN, 1))
        await w.until(
            lambda: w.gateways["g1"].endpoints["a"] == EndpointView(False, 1), "the withdrawal told"
        )
        assert w.hub.loads()["a"].active == 2
        assert not w.hub.broken()


async def test_a_replica_that_drains_is_told_at_once_and_the_same_load_is_not_told_again():
    a = Replica("a")
    async with world(a, load_interval_s=0.1) as w:
        await w.until(lambda: w.loads.get("a"), "the first load")
        await a.say(state=replica_pb2.REPLICA_STATE_DRAINING, active=1)
        await w.until(lambda: w.loads["a"].state == "DRAINING", "draining told")
        before, seq = w.updates, a.seq
        await w.until(lambda: a.seq >= seq + 15, "fifteen more samples sent")
        # They came, and said nothing new.
        assert w.updates == before


async def test_a_lost_replica_is_unknown_at_once_and_known_again_when_it_is_back():
    a, b = Replica("a"), Replica("b")
    async with world(a, b) as w:
        await w.until(lambda: w.loads.get("a") and w.loads.get("b"), "both heard")
        await a.port.down()
        await w.until(lambda: w.loads["a"] is None, "the loss told")
        assert w.hub.loads()["a"] is None
        assert isinstance(w.hub.loads()["b"], ReplicaLoad)
        assert w.sample(ready=2).silent_replicas == 1
        assert "a" in w.hub.broken()
        a.incarnation = "b"
        await a.port.up()
        await w.until(lambda: w.loads["a"] is not None and w.loads["a"].incarnation == "b", "its return told")
        assert w.sample(ready=2).silent_replicas == 0
        assert not w.hub.broken()


async def test_a_lost_gateway_resumes_where_it_was_and_nothing_is_lost_or_counted_twice():
    g = Gateway("g1")
    async with world(g) as w:
        await g.take(10)
        await g.register(a=(REGISTERED, 0))
        await w.until(lambda: w.sample().demand and w.sample().demand.arrivals == 10, "the first sample")
        await w.until(lambda: w.gateways.get("g1") and w.gateways["g1"].endpoints, "registered")
        await g.port.down()
        await w.until(lambda: w.gateways["g1"] is None, "registrations unknown")
        await g.take(25)
        await g.take(30)
        await g.port.up()
        await w.until(lambda: w.sample().demand.arrivals == 30, "what was missed")
        assert g.requests[0] == ("", 0)
        assert g.requests[-1] == ("a", 1)
        await w.until(lambda: w.gateways["g1"] is not None, "registrations again")


async def test_a_restarted_gateway_counts_from_zero_and_the_total_goes_on():
    g = Gateway("g1")
    async with world(g) as w:
        await g.take(100)
        await w.until(lambda: w.sample().demand and w.sample().demand.arrivals == 100, "the first life")
        await g.restart()
        await g.take(3)
        await w.until(lambda: w.sample().demand.arrivals == 103, "the second life on top")


async def test_a_restarted_operator_gets_the_last_hour_at_once():
    g = Gateway("g1")
    for i in range(1, 101):
        await g.take(10 * i)
    async with world(g) as w:
        await w.until(lambda: w.sample().demand and w.sample().demand.arrivals == 1000, "the replay")
        points = w.hub.history(CHAT, w.now)
        # A hundred samples 5 s apart at the gateway, although they came within a moment.
        assert points[-1].at_s - points[0].at_s == pytest.approx(99 * 5.0, abs=5)
        assert points[-1].demand.arrivals == 990


async def test_a_wrong_token_is_unknown_load_and_says_so():
    a = Replica("a", fleet_uid="another-fleet")
    async with world(a) as w:
        await w.until(
            lambda: "UNAUTHENTICATED" in w.hub.broken().get("a", streams.Link("", "")).why, "refused"
        )
        assert w.hub.loads()["a"] is None
        assert w.sample().silent_replicas == 1
        assert a.calls == []


async def test_a_gateway_that_is_connected_but_silent_is_unknown_and_nothing_goes_down():
    g1, g2 = Gateway("g1"), Gateway("g2")
    async with world(g1, g2) as w:
        assert w.sample().demand is None
        await g1.take(1)
        await g2.take(1)
        await w.until(lambda: w.sample().demand and w.sample().silent_gateways == 0, "both speak")
        state = decide(None, w.sample(), w.now).state
        w.now += 600
        await g1.take(2)
        await w.until(lambda: w.sample().silent_gateways == 1, "only one still speaks")
        decision = decide(state, w.sample(), w.now)
        assert (decision.replicas, decision.reason) == (3, Reason.DEMAND_UNKNOWN)
        # Gone is not silent: the pod was deleted, so its share decays.
        w.hub.set_gateways([GatewayTarget("g1", g1.port.address)])
        assert w.sample().silent_gateways == 0
        assert w.sample().demand.arrivals == 3


async def test_a_replica_whose_stream_is_open_but_says_nothing_is_called_again():
    a = Replica("a", speaking=False)
    async with world(a, load_interval_s=0.1) as w:
        await w.until(lambda: len(a.calls) >= 3, "three calls")
        assert "nothing for" in w.hub.broken()["a"].why
        a.speaking = True
        await w.until(lambda: w.loads.get("a") is not None, "heard at last")


async def test_another_pod_at_the_same_address_is_not_taken_for_ours():
    a = Replica("a")
    async with world(a) as w:
        await w.until(lambda: w.loads.get("a"), "heard")
        a.uid = "b"
        calls = len(a.calls)
        await a.port.down()
        await a.port.up()
        await w.until(lambda: len(a.calls) > calls, "called again")
        await w.until(lambda: w.loads["a"] is None, "the stranger's load not taken")
        assert w.hub.loads() == {"a": None}


async def test_targets_come_go_and_move():
    a, b = Replica("a"), Replica("b")
    async with world(a, b) as w:
        await w.until(lambda: w.loads.get("a") and w.loads.get("b"), "both heard")
        w.hub.set_replicas([b.target])
        assert set(w.hub.loads()) == {"b"}
        calls = len(b.calls)
        # Not ready any more: the same stream goes on.
        w.hub.set_replicas([ReplicaTarget("b", CHAT, "fleet-1", b.port.address, ready=False)])
        await b.say(active=9)
        await w.until(lambda: w.loads["b"].active == 9, "still heard")
        assert len(b.calls) == calls
        # Another address under the same uid: another stream.
        w.hub.set_replicas([ReplicaTarget("b", CHAT, "fleet-1", "127.0.0.1:1", ready=True)])
        await w.until(lambda: w.loads["b"] is None, "the old address is not asked any more")


async def test_a_hub_that_ends_leaves_no_task_behind():
    a, g = Replica("a"), Gateway("g1")
    before = asyncio.all_tasks()
    async with world(a, g) as w:
        await w.until(lambda: w.loads.get("a"), "heard")
        assert any(t.get_name().startswith("telemetry ") for t in asyncio.all_tasks())
    assert not any(t.get_name().startswith("telemetry ") for t in asyncio.all_tasks() - before)
