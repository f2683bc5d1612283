"""Which replicas each gateway may choose, put together from WatchEndpoints: everything first, then changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from moefleet.gateway.v1 import gateway_pb2

from moefleet_operator.core.events import EndpointView, GatewayView


@dataclass(slots=True)
class _Heard:
    incarnation: str = ""
    version: int = 0
    endpoints: dict[str, EndpointView] = field(default_factory=dict)
    # False until the first full message of a stream, and again when the stream breaks.
    complete: bool = False


class EndpointBook:
    def __init__(self) -> None:
        self._heard: dict[str, _Heard] = {}

    def expect(self, gateways: Iterable[str]) -> None:
        uids = set(gateways)
        for uid in uids - self._heard.keys():
            self._heard[uid] = _Heard()
        for uid in self._heard.keys() - uids:
            del self._heard[uid]

    def put(self, gateway_uid: str, said: gateway_pb2.WatchEndpointsResponse) -> bool:
        """False: not taken, because another pod answers at that address, or a change came before everything did."""
        heard = self._heard.get(gateway_uid)
        if heard is None or (said.gateway_uid and said.gateway_uid != gateway_uid):
            return False
        if said.full:
            heard.endpoints = {}
            heard.complete = True
        elif not heard.complete or said.incarnation != heard.incarnation:
            return False
        heard.incarnation, heard.version = said.incarnation, said.version
        for endpoint in said.endpoints:
            heard.endpoints[endpoint.pod_uid] = EndpointView(
                registered=endpoint.state == gateway_pb2.ENDPOINT_STATE_REGISTERED,
                in_flight=endpoint.in_flight,
            )
        for uid in said.gone_pod_uids:
            heard.endpoints.pop(uid, None)
        return True

    def lost(self, gateway_uid: str) -> None:
        if heard := self._heard.get(gateway_uid):
            heard.complete = False

    def view(self, gateway_uid: str) -> GatewayView | None:
        heard = self._heard.get(gateway_uid)
        if heard is None or not heard.complete:
            return None
        # A copy: the view is handed out and must not change behind the reader's back.
        return GatewayView(heard.incarnation, heard.version, dict(heard.endpoints))

    def views(self) -> dict[str, GatewayView | None]:
        return {uid: self.view(uid) for uid in self._heard}
