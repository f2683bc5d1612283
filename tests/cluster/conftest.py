"""Everything here runs against a control plane that the fixtures start; no root is needed."""

from __future__ import annotations

import pytest
from moefleet_cluster.pytest_plugin import control_plane, kubeconfig, kubectl, namespace

__all__ = ["control_plane", "kubeconfig", "kubectl", "namespace"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.cluster)
