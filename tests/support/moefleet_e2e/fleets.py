"""Manifests as users write them; a test names only what matters to it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

Object = dict[str, Any]
RUNTIME_IMAGE = "moefleet.test/runtime:dev"


def merged(base: Object, changes: Object) -> Object:
    """A deep merge, as `kubectl patch --type=merge` does it; None removes."""
    out = deepcopy(base)
    for key, value in changes.items():
        if value is None:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = deepcopy(value)
    return out


def fleet(name: str, namespace: str, spec: Object) -> Object:
    return {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def simulated(name: str, namespace: str, **changes: Any) -> Object:
    """A fleet of simulated replicas: the calibration of 8xH800, slowed so that its tokens cost this machine little."""
    spec: Object = {
        "model": {"name": name, "source": "file:///models/tiny-deepseek-v2", "contextLength": 131072},
        "engine": {
            "type": "Simulated",
            "image": RUNTIME_IMAGE,
            "args": {"calibration": "deepseek-v2-8xh800", "speed": 0.1, "startSeconds": 1},
        },
        "replica": {"gpus": 8, "gpuProducts": [], "sharedMemory": "64Mi"},
        # Ten times slower than 8xH800, so the objective is ten times longer: what is rehearsed is the shape.
        "scaling": {
            "mode": "Automatic",
            "minReplicas": 1,
            "maxReplicas": 3,
            "objective": {"timeToFirstToken": "20s", "timePerOutputToken": "1s"},
        },
        "limits": {"streamDuration": "5m", "hold": "30s", "queuedRequests": 1000},
        "rollout": {"drainTimeout": "5m", "canary": {"window": "5s"}},
    }
    return fleet(name, namespace, merged(spec, changes))


def tiny(name: str, namespace: str, **changes: Any) -> Object:
    """A fleet that serves the real tiny checkpoint with the Torch engine."""
    spec: Object = {
        "model": {"name": name, "source": "file:///models/tiny-deepseek-v2", "contextLength": 4096},
        "engine": {
            "type": "Torch",
            "image": RUNTIME_IMAGE,
            "precision": "Auto",
            # The Torch engine runs on one device; the GPUs of a test's node are fake.
            "parallelism": {"tensor": 1, "expert": 1, "attentionData": False},
            "limits": {"maxBatchSize": 16, "maxBatchTokens": 256, "maxSequenceLength": 4096},
        },
        "replica": {
            "gpus": 8,
            "gpuProducts": [],
            "sharedMemory": "64Mi",
            "podTemplate": {
                "resources": {
                    "limits": {"cpu": "1", "memory": "2Gi"},
                    "requests": {"cpu": "200m", "memory": "1Gi"},
                }
            },
        },
        "scaling": {"mode": "Automatic", "minReplicas": 1, "maxReplicas": 2},
        "limits": {"streamDuration": "5m", "hold": "60s"},
        "rollout": {"drainTimeout": "5m", "canary": {"window": "5s"}},
    }
    return fleet(name, namespace, merged(spec, changes))
