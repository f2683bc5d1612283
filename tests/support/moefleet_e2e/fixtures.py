"""Fixtures of every folder that tests on real nodes: `release`, `kube`, `module_kube`, `gateway`; a conftest imports them by name."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest
from moefleet_load.stream import channel

from .kube import Kube, run
from .release import Release

RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}
# A rollout of three replicas with drains on two busy cores takes a minute; stuck is five.
STUCK_S = 420


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.node)
        item.add_marker(pytest.mark.timeout(STUCK_S))


@pytest.fixture(scope="session")
def release() -> Iterator[Release]:
    if not os.environ.get("KUBECONFIG"):
        pytest.fail(
            "no KUBECONFIG: run this folder by `make e2e`, which starts a cluster with real nodes around it"
        )
    installed = Release()
    installed.upgrade()
    yield installed
    installed.uninstall("--ignore-not-found")


@pytest.fixture
def kube(request: pytest.FixtureRequest, release: Release) -> Iterator[Kube]:
    """A fresh namespace that enforces the restricted Pod Security Standard, as careful users have it."""
    here = fresh_namespace(request.node.name)
    yield here
    if request.node.stash.get(FAILED, False):
        tell(here, release)
    here.remove()


@pytest.fixture(scope="module")
def module_kube(request: pytest.FixtureRequest, release: Release) -> Iterator[Kube]:
    """The same for all tests of a module that share a fleet."""
    here = fresh_namespace(request.module.__name__.rpartition(".")[2])
    yield here
    here.remove()


def fresh_namespace(readable: str) -> Kube:
    # At most 63 characters, and different for each parameter of a test.
    plain = re.sub("[^a-z0-9]+", "-", readable.lower().removeprefix("test_")).strip("-")
    name = f"e2e-{plain[:40].strip('-')}-{zlib.crc32(plain.encode()):08x}"
    run("kubectl", "create", "namespace", name)
    run("kubectl", "label", "namespace", name, *(f"{k}={v}" for k, v in RESTRICTED.items()))
    return Kube(name)


def tell(kube: Kube, release: Release) -> None:
    """What a failed test's reader wants to see first."""
    for fleet in kube.list("moefleets"):
        print(f"--- {fleet['metadata']['name']}\n{kube.explain(fleet['metadata']['name'])}")
    print(release.logs())


@pytest.fixture
async def gateway(release: Release) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(release.gateway_address()) as opened:
        yield opened


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.when == "call" and report.failed:
        item.stash[FAILED] = True
        if here := getattr(item, "funcargs", {}).get("module_kube"):
            tell(here, item.funcargs["release"])  # type: ignore[attr-defined]
    return report
