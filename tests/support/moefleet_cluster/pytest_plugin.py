"""Fixtures for tests against a real API server: `control_plane`, `namespace`, `kubectl`, `kubeconfig`.

A conftest takes them by `from moefleet_cluster.pytest_plugin import ...`: pytest refuses `pytest_plugins` in nested conftests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .control_plane import ControlPlane
from .kubectl import Kubectl

# Enough for three replicas of 8 GPUs in several tests at once; a test that needs scarcity adds labelled nodes of its own.
FAKE_NODES = 8


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """One control plane with kwok and eight fake nodes of 8 GPUs for the whole run; writes are audited."""
    with ControlPlane(kwok=True, audit=True) as plane:
        plane.add_fake_nodes(FAKE_NODES, gpus=8, labels={"nvidia.com/gpu.product": "NVIDIA-H800"})
        yield plane


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Path:
    return control_plane.kubeconfig


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace named after the test. Its deletion takes about 5 s, so nobody waits for it."""
    readable = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")
    created = control_plane.api(
        "/api/v1/namespaces", "POST", {"metadata": {"generateName": f"{readable.removeprefix('test-')}-"}}
    )
    name: str = created["metadata"]["name"]
    # Pods are refused until the controller manager has made the namespace's account.
    account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
    control_plane.processes.wait_until(f"the account {name}/default", lambda: control_plane.api(account), 30)
    yield name
    control_plane.api(f"/api/v1/namespaces/{name}", "DELETE")


@pytest.fixture
def kubectl(control_plane: ControlPlane, namespace: str) -> Kubectl:
    """kubectl in the test's namespace."""
    return control_plane.kubectl.within(namespace)
