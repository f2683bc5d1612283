"""A fleet whose pods wait on kwok until a stub answers for them."""

from __future__ import annotations

from typing import Any


def fleet(
    name: str,
    namespace: str,
    *,
    mode: str = "Advisory",
    minimum: int = 1,
    maximum: int = 5,
    replicas: int | None = None,
    model: str = "",
    speed: float = 1.0,
    gpus: int = 8,
    drain_s: int = 60,
    canary: str = "1s",
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "model": {"name": model or name, "source": "file:///models/tiny", "contextLength": 4096},
        "engine": {"type": "Simulated", "image": "runtime:none", "args": {"speed": speed}},
        "replica": {
            "gpus": gpus,
            "sharedMemory": "64Mi",
            # The stub lets it be ready when it listens at the pod's address.
            "podTemplate": {"annotations": {"fake.moefleet.test/ready-after": "3600s"}},
        },
        "scaling": {"mode": mode, "minReplicas": minimum, "maxReplicas": maximum},
        "limits": {"streamDuration": f"{drain_s}s"},
        "rollout": {"drainTimeout": f"{drain_s}s", "canary": {"window": canary}},
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
