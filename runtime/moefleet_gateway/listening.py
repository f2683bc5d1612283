"""What the wildcard address is on this kernel: `[::]` takes both families, and a kernel without IPv6 has no `::`."""

from __future__ import annotations

import dataclasses
import socket

from moefleet_gateway.settings import HostPort, Settings


def ipv6_works() -> bool:
    """Whether a socket can be bound to `::` here. Both containers of a pod share the answer."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def bindable(settings: Settings, ipv6: bool) -> Settings:
    """gRPC falls back by itself; Envoy and asyncio would not start."""
    if ipv6:
        return settings
    openai = settings.openai
    if openai is not None:
        openai = dataclasses.replace(openai, listen=_without_ipv6(openai.listen))
    return dataclasses.replace(
        settings,
        openai=openai,
        listen=_without_ipv6(settings.listen),
        control_listen=_without_ipv6(settings.control_listen),
        health_listen=_without_ipv6(settings.health_listen),
        metrics_listen=_without_ipv6(settings.metrics_listen),
    )


def _without_ipv6(at: HostPort) -> HostPort:
    return HostPort("0.0.0.0", at.port) if at.host == "::" else at
