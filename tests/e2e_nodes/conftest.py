"""Two real nodes of 8 GPUs each, one replica on each: `moefleet_cluster run --nodes 2 --gpus 8`."""

from moefleet_e2e.fixtures import kube, pytest_collection_modifyitems, pytest_runtest_makereport, release

__all__ = ["kube", "pytest_collection_modifyitems", "pytest_runtest_makereport", "release"]
