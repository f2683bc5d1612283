"""The gateway on the wildcard address, as a pod has it: every port answers on both families of the loopback."""

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from moefleet.gateway.v1 import gateway_pb2 as gw
from moefleet.gateway.v1 import gateway_pb2_grpc as gw_rpc
from moefleet_gateway.listening import ipv6_works
from moefleet_gateway_rig import Rig

LISTENS = {
    "grpc": "LISTEN",
    "control": "CONTROL_LISTEN",
    "health": "HEALTH_LISTEN",
    "metrics": "METRICS_LISTEN",
}


async def test_every_port_of_the_wildcard_answers_on_every_family_of_the_machine() -> None:
    rig = Rig()
    for name, variable in LISTENS.items():
        rig.env[f"MOEFLEET_{variable}"] = f"[::]:{rig.ports[name]}"
    try:
        rig.world.fleet()
        await rig.start()
        await rig.replica("a")
        await rig.registered("a")
        # Where IPv6 is off, the wildcard is that of IPv4, and everything started all the same.
        for host in ("127.0.0.1", "[::1]") if ipv6_works() else ("127.0.0.1",):
            at = {name: f"{host}:{port}" for name, port in rig.ports.items()}
            async with grpc.aio.insecure_channel(at["grpc"]) as channel:
                assert len(await rig.generate(rig.stub(channel))) == 3
            async with grpc.aio.insecure_channel(at["control"]) as channel:
                watch = gw_rpc.GatewayServiceStub(channel).WatchEndpoints(gw.WatchEndpointsRequest())
                assert [e.pod_uid for e in (await watch.read()).endpoints] == ["a"]
                watch.cancel()
            async with grpc.aio.insecure_channel(at["health"]) as channel:
                asked = health_pb2.HealthCheckRequest(service="readiness")
                answer = await health_pb2_grpc.HealthStub(channel).Check(asked, timeout=60)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            async with aiohttp.ClientSession() as session:
                for path in ("/metrics", "/metrics/envoy"):
                    async with session.get(f"http://{at['metrics']}{path}") as response:
                        assert response.status == 200, (host, path)
    finally:
        await rig.close()
