"""The device plugin's messages, checked against protobuf's own reader, and the folder that GPUs bring along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st
from moefleet_cluster import gpu_site, wire
from moefleet_cluster.device_plugin import GpuSpec, allocation, device_list, registration

SPEC = GpuSpec("nvidia.com/gpu", 24, "/venv/site-packages", "/opt/moefleet/torch", "/state/gpu-health.json")


def schema() -> dict[str, Any]:
    """The messages of k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto that the plugin speaks."""
    file = descriptor_pb2.FileDescriptorProto(name="v1beta1.proto", package="v1beta1", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto

    def message(name: str, **fields: tuple[int, Any, bool]) -> None:
        added = file.message_type.add(name=name)
        for field_name, (number, kind, repeated) in fields.items():
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            one = added.field.add(name=field_name, number=number, label=label)
            if isinstance(kind, str):
                one.type, one.type_name = field.TYPE_MESSAGE, f".v1beta1.{kind}"
            else:
                one.type = kind

    text, boolean = field.TYPE_STRING, field.TYPE_BOOL
    message(
        "RegisterRequest", version=(1, text, False), endpoint=(2, text, False), resource_name=(3, text, False)
    )
    message("Device", ID=(1, text, False), health=(2, text, False))
    message("ListAndWatchResponse", devices=(1, "Device", True))
    message("ContainerAllocateRequest", devices_ids=(1, text, True))
    message("AllocateRequest", container_requests=(1, "ContainerAllocateRequest", True))
    message(
        "Mount", container_path=(1, text, False), host_path=(2, text, False), read_only=(3, boolean, False)
    )
    message("EnvsEntry", key=(1, text, False), value=(2, text, False))
    message("ContainerAllocateResponse", envs=(1, "EnvsEntry", True), mounts=(2, "Mount", True))
    message("AllocateResponse", container_responses=(1, "ContainerAllocateResponse", True))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        m.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1beta1.{m.name}"))
        for m in file.message_type
    }


def asked(*containers: list[str]) -> bytes:
    kinds = schema()
    request = kinds["AllocateRequest"]()
    for ids in containers:
        request.container_requests.add(devices_ids=ids)
    return bytes(request.SerializeToString())


def test_a_container_gets_its_gpus_and_the_folder_read_only() -> None:
    answer = schema()["AllocateResponse"].FromString(allocation(asked(["gpu-10", "gpu-2"], ["gpu-3"]), SPEC))
    first, second = answer.container_responses
    assert {e.key: e.value for e in first.envs} == {
        "NVIDIA_VISIBLE_DEVICES": "2,10",
        "MOEFLEET_GPU_SITE": "/opt/moefleet/torch",
    }
    assert [(m.container_path, m.host_path, m.read_only) for m in first.mounts] == [
        ("/opt/moefleet/torch", "/venv/site-packages", True)
    ]
    assert {e.key: e.value for e in second.envs}["NVIDIA_VISIBLE_DEVICES"] == "3"


def test_without_a_folder_nothing_is_mounted() -> None:
    bare = GpuSpec("nvidia.com/gpu", 8, "", "/opt/moefleet/torch", "/state/h.json")
    (only,) = schema()["AllocateResponse"].FromString(allocation(asked(["gpu-0"]), bare)).container_responses
    assert not only.mounts
    assert [e.key for e in only.envs] == ["NVIDIA_VISIBLE_DEVICES"]


def test_registration_and_health_are_what_the_kubelet_reads() -> None:
    register = schema()["RegisterRequest"].FromString(registration("fake.sock", "nvidia.com/gpu"))
    assert (register.version, register.endpoint, register.resource_name) == (
        "v1beta1",
        "fake.sock",
        "nvidia.com/gpu",
    )
    listed = schema()["ListAndWatchResponse"].FromString(
        device_list({"gpu-0": "Healthy", "gpu-1": "Unhealthy"})
    )
    assert [(d.ID, d.health) for d in listed.devices] == [("gpu-0", "Healthy"), ("gpu-1", "Unhealthy")]


@given(st.lists(st.tuples(st.integers(1, 5000), st.one_of(st.text(max_size=300), st.booleans()))))
def test_what_is_written_is_read_back(written: list[tuple[int, str | bool]]) -> None:
    message = b"".join(wire.flag(n, v) if isinstance(v, bool) else wire.text(n, v) for n, v in written)
    assert list(wire.fields(message)) == [
        (n, int(v) if isinstance(v, bool) else v.encode()) for n, v in written
    ]


@pytest.mark.parametrize("message", [b"\x0a\x05ab", b"\x0a", b"\x80", b"\x0d\x00\x00\x00\x00"])
def test_a_broken_message_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError):
        list(wire.fields(message))


# --- the folder with torch ------------------------------------------------------------------------------------------
def site(tmp_path: Path, python: str, *, torch: bool) -> Path:
    folder = tmp_path / "lib" / python / "site-packages"
    folder.mkdir(parents=True)
    if torch:
        (folder / "torch").mkdir()
    return folder


def test_a_named_folder_with_torch_for_the_images_python_is_taken(tmp_path: Path) -> None:
    folder = site(tmp_path, "python3.11", torch=True)
    assert gpu_site.find(str(folder)) == folder


@pytest.mark.parametrize(
    ("python", "torch", "reason"),
    [
        ("python3.13", True, "is for python3.13, the images have python3.11"),
        ("python3.11", False, "no folder `torch`"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused_with_the_reason(
    tmp_path: Path, python: str, torch: bool, reason: str
) -> None:
    with pytest.raises(gpu_site.GpuSiteError, match=reason):
        gpu_site.find(str(site(tmp_path, python, torch=torch)))


def test_an_interpreter_without_torch_means_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = site(tmp_path, "python3.11", torch=False)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(folder))
    assert gpu_site.find() is None
