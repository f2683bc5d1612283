"""Safetensors headers from strangers: what is read is what the library reads, and nothing is believed unchecked."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moefleet_testing.torch_engine import CHECKPOINT
from moefleet_weights.failing import WeightsError
from moefleet_weights.tensors import checkpoint_files, header_bytes, parse_header, parse_index, read_header
from safetensors import safe_open
from safetensors.torch import save_file

WHOLE = (CHECKPOINT / "model.safetensors").read_bytes()


def entry(**fields: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **fields}


def file_of(header: object, data: bytes = b"12345678") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def test_the_header_is_the_librarys() -> None:
    header = read_header(CHECKPOINT / "model.safetensors")
    with safe_open(str(CHECKPOINT / "model.safetensors"), "pt") as file:
        assert {t.name for t in header.tensors} == set(file.keys())
        for tensor in header.tensors:
            part = file.get_slice(tensor.name)
            assert (list(tensor.shape), tensor.dtype) == (part.get_shape(), part.get_dtype())
            begin = header.data_begin + tensor.begin
            bits = file.get_tensor(tensor.name).view(torch.uint8).numpy().tobytes()
            assert WHOLE[begin : begin + tensor.size] == bits


def test_a_written_header_is_read_by_the_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(header_bytes([("w", "F8_E4M3", [2, 3]), ("é", "F32", [1])]) + bytes(6 + 4))
    with safe_open(str(path), "pt") as file:
        assert file.get_tensor("w").shape == (2, 3)
        assert file.get_tensor("é").item() == 0


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "at least 8 bytes"),
        (struct.pack("<Q", 1 << 62) + b"{}", "header of at most"),
        (struct.pack("<Q", 100) + b"{}", "header of 100 bytes"),
        (file_of(b"[]", b""), "JSON object"),
        (file_of(b"\xff\xfe", b""), "not JSON"),
        (file_of(b"[" * 100_000, b""), "not JSON"),
        (file_of(b'{"a":' * 100_000, b""), "not JSON"),
        (file_of(b'{"a":1,"a":2}', b""), "stands twice"),
        (file_of({"w": 3}), "tensor w: wanted an object"),
        (file_of({"w": entry(dtype="PICKLE")}), "dtype one of"),
        (file_of({"w": entry(dtype=[])}), "dtype one of"),
        (file_of({"w": entry(shape=[-2])}), "shape"),
        (file_of({"w": entry(shape=[2.0])}), "shape"),
        (file_of({"w": entry(shape=[True])}), "shape"),
        (file_of({"w": entry(shape=[1] * 17)}), "shape"),
        (file_of({"w": entry(shape=[1 << 40, 1 << 40])}), "bytes for F32"),
        (file_of({"w": entry(data_offsets=[0])}), "data_offsets"),
        (file_of({"w": entry(data_offsets=[8, 0])}), "8 bytes for F32"),
        (file_of({"w": entry(data_offsets=[0, 12])}), "8 bytes for F32"),
        (file_of({"w": entry(data_offsets=[4, 12])}), "tensor w at byte 0"),
        (file_of({"w": entry(), "v": entry()}), "at byte 8"),
        (file_of({"w": entry()}, b"1234"), "wanted 8 bytes of tensors"),
        (file_of({"w": entry()}, b"123456789"), "wanted 8 bytes of tensors"),
        (file_of({}), "wanted 0 bytes of tensors"),
    ],
)
def test_a_hostile_header_is_one_error_with_the_files_name(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=says) as caught:
        read_header(path)
    assert caught.value.reason == "CheckpointUnreadable"
    assert "model.safetensors" in caught.value.message
    assert len(caught.value.message) < 1000


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=4),
    keep=st.integers(0, 1 << 24),
)
def test_damage_is_an_error_or_a_consistent_header(
    tmp_path: Path, flips: list[tuple[int, int]], keep: int
) -> None:
    content = bytearray(WHOLE[:keep])
    for at, value in flips:
        if at < len(content):
            content[at] = value
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    try:
        header = read_header(path)
    except WeightsError as error:
        assert error.reason == "CheckpointUnreadable"  # noqa: PT017 - either outcome is right
        return
    assert header.data_begin + sum(t.size for t in header.tensors) == len(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    value=st.dictionaries(
        st.text(max_size=8),
        JSON | st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON}),
    )
)
def test_any_json_is_an_error_or_a_consistent_header(value: object) -> None:
    try:
        tensors = parse_header(json.dumps(value).encode(), 8, "x")
    except WeightsError as error:
        assert error.reason == "CheckpointUnreadable"  # noqa: PT017 - either outcome is right
        return
    assert sum(t.size for t in tensors) == 8


@settings(max_examples=200, deadline=None)
@given(value=JSON | st.fixed_dictionaries({"weight_map": JSON}))
def test_any_index_is_an_error_or_names_of_this_folder(value: object) -> None:
    try:
        names = parse_index(json.dumps(value).encode(), "x")
    except WeightsError as error:
        assert error.reason == "CheckpointUnreadable"  # noqa: PT017 - either outcome is right
        return
    assert all(Path(n).name == n for n in names.values())


@pytest.mark.parametrize(
    "file",
    ["../a.safetensors", "/etc/a.safetensors", "a/b.safetensors", "a.bin", "", 3, None, "a.safetensors/"],
)
def test_an_index_that_reaches_outside_is_refused(file: object) -> None:
    with pytest.raises(WeightsError, match="weight_map"):
        parse_index(json.dumps({"weight_map": {"w": file}}).encode(), "index")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.ckpt", "x.pkl"])
def test_pickles_are_refused_and_never_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (tmp_path / name).chmod(0)
    with pytest.raises(WeightsError, match="pickles run code") as caught:
        checkpoint_files(tmp_path)
    assert caught.value.reason == "CheckpointUnsupported"


def test_beside_safetensors_a_pickle_is_left_alone(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert [p.name for p in checkpoint_files(tmp_path)] == ["model.safetensors"]
