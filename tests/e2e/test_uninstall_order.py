"""Removal in any order leaves no orphan; what a user asked to keep is kept. Runs last: it takes the release away and brings it back."""

from __future__ import annotations

from moefleet_e2e.fleets import simulated
from moefleet_e2e.kube import CommandError, Kube, condition, eventually, run
from moefleet_e2e.release import Release
from moefleet_load.stream import End, channel, generate, token_request


async def ready(kube: Kube, name: str) -> None:
    await eventually(
        f"{name} Ready",
        lambda: condition(kube.get("moefleet", name), "Ready") == "True",
        180,
        lambda: kube.explain(name),
    )


def crd_exists() -> bool:
    try:
        run("kubectl", "get", "crd", "moefleets.moefleet.io")
    except CommandError:
        return False
    return True


async def test_uninstall_with_keep_leaves_fleets_and_replicas_and_a_reinstall_adopts_them(
    kube: Kube, release: Release
) -> None:
    release.values = {"crds": {"keep": True}}
    release.upgrade()
    kube.apply(simulated("kept", kube.namespace))
    await ready(kube, "kept")
    pods = {p["metadata"]["uid"] for p in kube.replicas("kept")}

    release.uninstall()
    assert crd_exists()
    assert kube.get("moefleet", "kept")
    assert {p["metadata"]["uid"] for p in kube.ready_replicas("kept")} == pods

    release.upgrade("--take-ownership")
    await ready(kube, "kept")
    assert {p["metadata"]["uid"] for p in kube.replicas("kept")} == pods, (
        "the new release replaced replicas that served"
    )
    async with channel(release.gateway_address()) as opened:
        got = await generate(opened, token_request("again", f"{kube.namespace}/kept", 10, 5))
    assert got.end is End.OK, got


async def test_operator_first_then_fleets_leaves_no_orphan(kube: Kube, release: Release) -> None:
    kube.apply(simulated("orphan", kube.namespace))
    await ready(kube, "orphan")
    release.uninstall()
    try:
        if crd_exists():
            kube.delete("moefleet", "orphan")
        await eventually(
            "nothing left", lambda: not kube.replicas("orphan") and not kube.get("svc", "orphan"), 120
        )
    finally:
        release.values = {}
        release.upgrade("--take-ownership")


async def test_without_keep_uninstall_takes_everything(kube: Kube, release: Release) -> None:
    release.values = {"crds": {"keep": False}}
    release.upgrade()
    kube.apply(simulated("gone", kube.namespace))
    await ready(kube, "gone")
    release.uninstall()
    try:
        await eventually("no CRD", lambda: not crd_exists(), 60)
        await eventually("no replica", lambda: not kube.replicas("gone"), 120)
        assert not kube.get("svc", "gone")
        assert not kube.get("pdb", "gone")
    finally:
        release.values = {}
        release.upgrade()
