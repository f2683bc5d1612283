"""One cluster with real nodes and one release for the whole folder."""

from moefleet_e2e.fixtures import (
    gateway,
    kube,
    module_kube,
    pytest_collection_modifyitems,
    pytest_runtest_makereport,
    release,
)

__all__ = [
    "gateway",
    "kube",
    "module_kube",
    "pytest_collection_modifyitems",
    "pytest_runtest_makereport",
    "release",
]
