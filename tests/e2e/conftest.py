"""One cluster with real nodes and one release for the whole folder; a namespace of its own per test."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import AsyncIterator, Iterator

import grpc.aio
import pytest
from moefleet_e2e.kube import Kube, run
from moefleet_e2e.release import Release
from moefleet_load.stream import channel

RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.node)
        # A rollout of three replicas with drains on two busy cores takes a minute; stuck is five.
        item.add_marker(pytest.mark.timeout(420))


@pytest.fixture(scope="session")
def release() -> Iterator[Release]:
    if not os.environ.get("KUBECONFIG"):
        pytest.fail(
            "no KUBECONFIG: run this folder by `make e2e`, which starts a cluster with real nodes around it"
        )
    installed = Release()
    installed.upgrade()
    yield installed
    installed.uninstall()


@pytest.fixture
def kube(request: pytest.FixtureRequest, release: Release) -> Iterator[Kube]:
    """A fresh namespace that enforces the restricted Pod Security Standard, as careful users have it."""
    # At most 63 characters, and different for each parameter of a test.
    plain = re.sub("[^a-z0-9]+", "-", request.node.name.lower().removeprefix("test_")).strip("-")
    name = f"e2e-{plain[:40].strip('-')}-{zlib.crc32(plain.encode()):08x}"
    run("kubectl", "create", "namespace", name)
    run("kubectl", "label", "namespace", name, *(f"{k}={v}" for k, v in RESTRICTED.items()))
    here = Kube(name)
    yield here
    if request.node.stash.get(FAILED, False):
        for fleet in here.list("moefleets"):
            print(f"--- {fleet['metadata']['name']}\n{here.explain(fleet['metadata']['name'])}")
        print(release.logs())
    run("kubectl", "delete", "namespace", name, "--wait=false")


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
    return report
