"""Parts that die, come back, drain or change their identity, while streams run."""

import asyncio
import contextlib
import hashlib
import hmac
import os
import signal
from base64 import b64encode
from ctypes import PyDLL
from pathlib import Path

import grpc
import pytest
from moefleet.client.errors import failure_of
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet.inference.v1 import inference_pb2 as inf
from moefleet.replica.v1 import replica_pb2 as rep
from moefleet_gateway_rig import FakeReplica, Rig, until


async def begun(rig: Rig, model: str = "tiny") -> tuple[object, str]:
    """A stream whose first message has come, and who sends it."""
    call = rig.stub().Generate(inf.GenerateRequest(model=model, prompt="x"))
    first = await call.read()
    return call, first.text


async def rest(call: object) -> int:
    """Reads a stream to its end; the number of messages, or the call's error."""
    count = 0
    while await call.read() is not grpc.aio.EOF:
        count += 1
    return count


async def test_killing_the_picker_cuts_no_stream_and_a_new_one_goes_on(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a", messages=30, message_s=0.1)
    await rig.registered("a")
    call, _ = await begun(rig)
    await rig.kill_picker()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.generate(rig.stub())
    # It fails closed, and clients may retry.
    failure = failure_of(caught.value.code(), caught.value.details(), caught.value.trailing_metadata())
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "PICKER_AWAY"), failure
    assert "asking again is safe" in failure.message
    await rig.start_picker()
    await rig.wait_ready()
    replica.change(messages=3, message_s=0)
    assert len(await rig.generate(rig.stub())) == 3
    replica.change(messages=30)
    assert await rest(call) == 29
    assert replica.cancelled == 0


async def test_a_picker_that_hangs_is_not_waited_for_longer_than_a_hold_and_then_it_goes_on() -> None:
    rig = Rig(MOEFLEET_HOLD_MAX_S="1")
    try:
        rig.world.fleet()
        await rig.start()
        await rig.replica("a")
        await rig.registered("a")
        assert len(await rig.generate(rig.stub())) == 3
        assert rig.picker is not None
        rig.picker.send_signal(signal.SIGSTOP)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generate(rig.stub(), timeout=60)
        failure = failure_of(caught.value.code(), caught.value.details(), caught.value.trailing_metadata())
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "PICKER_AWAY"), failure
        rig.picker.send_signal(signal.SIGCONT)
        assert len(await rig.generate(rig.stub())) == 3
    finally:
        await rig.close()


async def test_killing_envoy_ends_its_streams_with_a_status_and_a_new_one_goes_on(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a", messages=1000, message_s=0.1)
    await rig.registered("a")
    call, _ = await begun(rig)
    await rig.kill_envoy()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await until(lambda: replica.active == 0)
    assert rig.picker is not None
    assert rig.picker.returncode is None
    await rig.start_envoy()
    replica.change(messages=3, message_s=0)
    # The probe may still tell of the Envoy that is gone: the client waits for the new one itself.
    assert len(await rig.generate(rig.stub(), wait_for_ready=True)) == 3
    await rig.wait_ready()


async def test_envoy_may_start_before_the_picker(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start_envoy()
    await rig.start_picker()
    await rig.wait_ready()
    await rig.replica("a")
    assert len(await rig.generate(rig.stub())) == 3


async def test_a_draining_replica_is_withdrawn_and_its_streams_are_counted_to_their_end(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    a = await rig.replica("a", messages=1000, message_s=0.05)
    await rig.registered("a")
    call, by = await begun(rig)
    assert by == "a"
    b = await rig.replica("b")
    await rig.registered("a", "b")
    watch = rig.control().WatchEndpoints(gw.WatchEndpointsRequest())
    first = await watch.read()
    assert first.full
    assert {e.pod_uid for e in first.endpoints} == {"a", "b"}
    rig.world.replica(a, draining=True)

    async def news(wanted: object) -> None:
        async with asyncio.timeout(60):
            while True:
                message = await watch.read()
                assert not message.full
                for endpoint in message.endpoints:
                    if wanted == (endpoint.pod_uid, endpoint.state, endpoint.in_flight):
                        return
                if wanted in list(message.gone_pod_uids):
                    return

    await news(("a", gw.ENDPOINT_STATE_WITHDRAWN, 1))
    assert [(await rig.generate(rig.stub()))[0].text for _ in range(5)] == ["b"] * 5
    # It stays known to Envoy, and counted, as long as the stream runs.
    await asyncio.sleep(2)
    assert (await rig.endpoints())["a"].in_flight == 1
    a.change(messages=0, message_s=0)
    call.cancel()
    await news("a")
    assert "a" not in await rig.endpoints()
    # Resume: offered again, and chosen.
    a.change(messages=3)
    rig.world.replica(a, draining=False)
    await rig.registered("a", "b")
    b.change(refuse="draining")
    assert {m.text for m in await rig.generate(rig.stub())} == {"a"}


async def test_a_new_picker_counts_the_streams_that_the_old_one_sent_to_a_draining_replica(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    a = await rig.replica("a", messages=10_000, message_s=0.05)
    await rig.registered("a")
    call, _ = await begun(rig)
    rig.world.replica(a, draining=True)
    await rig.registered()
    await rig.kill_picker()
    await rig.start_picker()
    await rig.wait_ready()
    await rig.replica("b")
    await rig.registered("b")
    left = (await rig.endpoints())["a"]
    assert (left.state, left.in_flight) == (gw.ENDPOINT_STATE_WITHDRAWN, 1)
    await asyncio.sleep(2)
    assert (await rig.endpoints())["a"].in_flight == 1
    call.cancel()
    async with asyncio.timeout(60):
        while "a" in await rig.endpoints():  # noqa: ASYNC110  (another process's state)
            await asyncio.sleep(0.1)
    assert {m.text for m in await rig.generate(rig.stub())} == {"b"}


async def test_resume_while_streams_run_needs_no_new_registration(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    a = await rig.replica("a", messages=1000, message_s=0.05)
    await rig.registered("a")
    call, _ = await begun(rig)
    rig.world.replica(a, draining=True)
    await rig.registered()
    rig.world.replica(a, draining=False)
    await rig.registered("a")
    a.change(messages=3, message_s=0)
    assert len(await rig.generate(rig.stub())) == 3
    call.cancel()


@pytest.mark.parametrize("how", ["stream breaks", "not serving", "containers not ready", "other pod answers"])
async def test_a_replica_that_is_no_longer_there_is_withdrawn(rig: Rig, how: str) -> None:
    rig.world.fleet()
    await rig.start()
    a, b = await rig.replica("a"), await rig.replica("b")
    await rig.registered("a", "b")
    match how:
        case "stream breaks":
            await a.stop()
        case "not serving":
            a.change(state=rep.REPLICA_STATE_FAILED)
        case "containers not ready":
            rig.world.replica(a, ready=False)
        case _:
            a.change(uid="somebody-else")
    await rig.registered("b")
    stub = rig.stub()
    assert [(await rig.generate(stub))[0].text for _ in range(4)] == ["b"] * 4
    assert b.finished == 4


async def test_a_replica_is_registered_only_when_it_serves(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    a = await rig.replica("a", ready=False, state=rep.REPLICA_STATE_WARMING)
    b = await rig.replica("b")
    await rig.registered("b")
    rig.world.replica(a, ready=True)
    a.change(state=rep.REPLICA_STATE_LOADING)
    await rig.registered("b")
    a.change(state=rep.REPLICA_STATE_SERVING)
    await rig.registered("a", "b")
    assert b.refused == 0


async def test_a_reused_address_never_answers_for_another_model(rig: Rig) -> None:
    """Two fleets; a pod goes without a trace and its address is taken by a pod of the other fleet."""
    rig.world.fleet("one", "one")
    rig.world.fleet("two", "two")
    await rig.start()
    # This replica claims to be whoever is asked: the stale view cannot be noticed by the load stream.
    a = await rig.replica("a", fleet="default/one", model="one")
    await rig.registered("a")
    stub = rig.stub()
    assert {m.text for m in await rig.generate(stub, model="one")} == {"a"}
    data_port, control_port = a.grpc_port, a.control_port
    await a.stop()
    heir = FakeReplica(
        "heir", fleet="default/two", model="two", ip=a.ip, grpc_port=data_port, control_port=control_port
    )
    rig.keep(await heir.start())
    # The file still lists `a`; the new pod is listed beside it, at the same address.
    rig.world.replica(heir)
    await rig.registered("heir")
    wrong = 0
    for _ in range(10):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            wrong += len(await rig.generate(stub, model="one", timeout=0.2))
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
        assert {m.text for m in await rig.generate(stub, model="two")} == {"heir"}
    assert wrong == 0


async def test_a_stale_registration_is_refused_by_the_replica_itself(rig: Rig) -> None:
    """Without a control port nobody tells the picker: then the uid that it meant protects."""
    rig.world.fleet("one", "one")
    rig.world.fleet("two", "two")
    await rig.start()
    heir = await rig.replica("heir", fleet="default/two", model="two", listed=False)
    stale = {"uid": "gone", "fleet": "default/one", "address": heir.address}
    rig.world.replicas = [stale, heir.entry()]
    rig.world.write()
    await rig.registered("gone", "heir")
    stub = rig.stub()
    for _ in range(10):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.generate(stub, model="one")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "wrong-pod" in (caught.value.details() or "")
        assert {m.text for m in await rig.generate(stub, model="two")} == {"heir"}
    assert heir.finished == 10


async def test_sigterm_drains_and_both_processes_end_by_themselves(rig: Rig) -> None:
    rig.world.fleet()
    await rig.start()
    await rig.replica("a", messages=40, message_s=0.1)
    await rig.registered("a")
    call, _ = await begun(rig)
    assert rig.picker is not None
    assert rig.envoy is not None
    rig.picker.send_signal(signal.SIGTERM)
    os.kill(rig.envoy.pid, signal.SIGTERM)
    assert await rest(call) == 39
    assert await asyncio.wait_for(rig.envoy.wait(), 60) == 0
    assert await asyncio.wait_for(rig.picker.wait(), 60) == 0


async def test_control_port_wants_the_credential_and_replicas_get_theirs(tmp_path: Path) -> None:
    key = bytes(range(32))
    file = tmp_path / "key"
    file.write_bytes(b64encode(key) + b"\n")
    rig = Rig(MOEFLEET_CONTROL_KEY_FILE=str(file))
    try:
        rig.world.fleet()
        await rig.start()
        token = hmac.new(key, b"replica:uid-default-tiny", hashlib.sha256).hexdigest()
        await rig.replica("a", token=token)
        assert len(await rig.generate(rig.stub())) == 3
        for metadata in ((), (("authorization", "Bearer wrong"),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rig.control().WatchEndpoints(gw.WatchEndpointsRequest(), metadata=metadata).read()
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        good = (("authorization", f"Bearer {hmac.new(key, b'gateway', hashlib.sha256).hexdigest()}"),)
        first = await rig.control().WatchEndpoints(gw.WatchEndpointsRequest(), metadata=good).read()
        assert [e.pod_uid for e in first.endpoints] == ["a"]
    finally:
        await rig.close()


class Door:
    """Stands before a replica. Slammed, its connections end as those of a process that was killed; hushed, they stay and
    nothing passes, as when packets are lost."""

    def __init__(self, replica: FakeReplica) -> None:
        self._replica = replica
        self._open: list[asyncio.StreamWriter] = []
        self._hushed = False

    async def open(self) -> str:
        self._server = await asyncio.start_server(self._enter, self._replica.ip, 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._replica.ip, self._replica.grpc_port)
        self._open += [writer, far_writer]
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if not self._hushed:
                    writer.write(data)

    def hush(self) -> None:
        self._hushed = True

    def slam(self) -> None:
        self._server.close()
        for writer in self._open:
            writer.transport.abort()


@pytest.mark.parametrize(
    ("when", "reason"),
    [("before its first token", "REPLICA_LOST"), ("before the request", "REPLICA_UNREACHABLE")],
)
async def test_who_had_nothing_yet_from_a_replica_that_is_gone_learns_that_a_retry_is_safe(
    rig: Rig, when: str, reason: str
) -> None:
    rig.world.fleet()
    await rig.start()
    replica = await rig.replica("a", listed=False, first_s=30.0)
    door = Door(replica)
    rig.world.replicas = [replica.entry(address=await door.open(), ready=True)]
    rig.world.write()
    await rig.registered("a")
    if when == "before the request":
        door.slam()
    call = rig.stub().Generate(inf.GenerateRequest(model="tiny", prompt="x"))
    if when == "before its first token":
        await until(lambda: replica.active == 1)
        door.slam()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rest(call)
    failure = failure_of(caught.value.code(), caught.value.details(), caught.value.trailing_metadata())
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, reason), failure
    assert "asking again is safe" in failure.message
    assert (failure.metadata["safeToRetry"], failure.metadata["generatedTokens"]) == ("true", "0")
    assert failure.retry_after_s


async def test_a_replica_that_is_cut_off_loses_its_streams_and_one_that_computes_keeps_them() -> None:
    rig = Rig(MOEFLEET_REPLICA_SILENCE_S="4")
    try:
        rig.world.fleet()
        await rig.start()
        # Twice as silent as is allowed; pings are answered by gRPC's own threads, even while nothing of Python runs.
        slow = await rig.replica("slow", messages=2, message_s=8.0)
        await rig.registered("slow")
        computing, _ = await begun(rig)
        cut = await rig.replica("cut", listed=False, messages=1000, message_s=0.1)
        door = Door(cut)
        rig.world.replicas += [cut.entry(address=await door.open(), ready=True)]
        rig.world.write()
        await rig.registered("slow", "cut")
        slow.change(refuse="full")
        broken, by = await begun(rig)
        assert by == "cut"
        waiting = rig.stub().Generate(inf.GenerateRequest(model="tiny", prompt="x"))
        cut.change(first_s=30.0)
        await until(lambda: cut.active == 2)
        door.hush()
        await asyncio.to_thread(PyDLL(None).sleep, 5)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest(broken)
        # All that Envoy can say in the middle of an answer.
        assert (caught.value.code(), caught.value.trailing_metadata()) == (grpc.StatusCode.INTERNAL, ())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rest(waiting)
        failure = failure_of(caught.value.code(), caught.value.details(), caught.value.trailing_metadata())
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "REPLICA_LOST"), failure
        assert await rest(computing) == 1
    finally:
        await rig.close()
