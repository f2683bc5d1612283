"""Reading a checkpoint: every tensor once, in its place; what does not match is named."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.torch.config import read_model_config
from moefleet_runtime.engine.torch.weights import Weights, load_weights
from moefleet_testing.torch_engine import CHECKPOINT
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


def load(folder: Path) -> Weights:
    return load_weights(folder, read_model_config(folder), device=CPU, dtype=torch.float32)


def tensors_in(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple):
        return [t for part in value for t in tensors_in(part)]
    if is_dataclass(value):
        return [t for f in fields(value) for t in tensors_in(getattr(value, f.name))]
    return []


def rewritten(folder: Path, change: Callable[[Tensors], object]) -> Path:
    shutil.copy(CHECKPOINT / "config.json", folder)
    tensors = load_file(CHECKPOINT / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_the_weights_are_in_memory_once() -> None:
    """The absorbed and the stacked forms are views: what is held is as many numbers as the file has."""
    held = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(load(CHECKPOINT))
    }
    in_file = load_file(CHECKPOINT / "model.safetensors").values()
    assert sum(held.values()) == 4 * sum(t.numel() for t in in_file)


def test_loading_never_holds_more_than_one_tensor_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """All room is made by torch.empty, and each tensor of the file is gone before the next is read."""
    from moefleet_runtime.engine.torch import weights

    alive: list[int] = []
    most = 0

    class Counting:
        def __init__(self, inner: object) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            nonlocal most
            tensor: torch.Tensor = self._inner.get_tensor(name)  # type: ignore[attr-defined]
            import weakref

            alive.append(1)
            weakref.finalize(tensor, alive.pop)
            most = max(most, len(alive))
            return tensor

    class Opened:
        def __init__(self, path: str, framework: str) -> None:
            self._file = weights_safe_open(path, framework)

        def __enter__(self) -> Counting:
            return Counting(self._file.__enter__())

        def __exit__(self, *args: object) -> None:
            self._file.__exit__(*args)

    weights_safe_open = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", Opened)
    load(CHECKPOINT)
    assert most == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: t.pop("model.layers.3.mlp.experts.7.up_proj.weight"),
            r"model\.layers\.3\.mlp\.experts\.7\.up_proj\.weight: wanted shape \[64, 192\], found no such tensor",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(191)}),
            r"model\.norm\.weight: wanted shape \[192\], found \[191\]",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(2048, 192, dtype=torch.int8)}),
            r"lm_head\.weight: wanted type .*BF16.*, found I8",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.o_proj.bias": torch.ones(192)}),
            r"1 tensors are no part.*o_proj\.bias",
        ),
        (
            lambda t: t.update({"model.layers.6.input_layernorm.weight": torch.ones(192)}),
            r"1 tensors are no part.*layers\.6",
        ),
    ],
)
def test_a_tensor_that_does_not_match_is_named(
    tmp_path: Path, change: Callable[[Tensors], object], says: str
) -> None:
    with pytest.raises(StartFailed, match=says) as caught:
        load(rewritten(tmp_path, change))
    assert caught.value.reason == "CheckpointUnsupported"


def test_derived_tensors_of_old_exporters_are_passed_over(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    assert load(rewritten(tmp_path, lambda t: t.update({name: torch.ones(8)}))).head.shape == (2048, 192)


@pytest.mark.parametrize("keep", [0, 5, 4000, 9_000_000])
def test_a_cut_off_file_is_unreadable_and_named(tmp_path: Path, keep: int) -> None:
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((CHECKPOINT / "model.safetensors").read_bytes()[:keep])
    with pytest.raises(StartFailed, match=r"model\.safetensors") as caught:
        load(tmp_path)
    assert caught.value.reason == "CheckpointUnreadable"


def test_no_weights_at_all_is_a_missing_source(tmp_path: Path) -> None:
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    with pytest.raises(StartFailed, match="found none") as caught:
        load(tmp_path)
    assert caught.value.reason == "ModelSourceMissing"


def split_in_two(folder: Path) -> dict[str, str]:
    shutil.copy(CHECKPOINT / "config.json", folder)
    tensors = load_file(CHECKPOINT / "model.safetensors")
    names = sorted(tensors)
    parts = {"a.safetensors": names[: len(names) // 2], "b.safetensors": names[len(names) // 2 :]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    return {name: file for file, part in parts.items() for name in part}


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    index = split_in_two(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    # Beside the index lies a file that it does not name: not read.
    save_file({"stray": torch.ones(1)}, tmp_path / "stray.safetensors")
    whole, sharded = tensors_in(load(CHECKPOINT)), tensors_in(load(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(whole, sharded, strict=True))


def test_a_shard_that_the_index_names_and_is_not_there_is_named(tmp_path: Path) -> None:
    index = split_in_two(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(StartFailed, match=r"b\.safetensors") as caught:
        load(tmp_path)
    assert caught.value.reason == "CheckpointUnreadable"


def test_a_tensor_in_two_files_is_an_error(tmp_path: Path) -> None:
    rewritten(tmp_path, lambda t: None)
    save_file({"model.norm.weight": torch.ones(192)}, tmp_path / "more.safetensors")
    with pytest.raises(StartFailed, match=r"model\.norm\.weight is in another file too"):
        load(tmp_path)


def test_pickles_are_refused_by_the_engine(tmp_path: Path) -> None:
    shutil.copy(CHECKPOINT / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(StartFailed, match="pickles run code") as caught:
        load(tmp_path)
    assert caught.value.reason == "CheckpointUnsupported"


def test_an_index_of_a_large_checkpoint_is_read(tmp_path: Path) -> None:
    """DeepSeek-V2 has 29,000 tensors: an index of some 3 MB."""
    index = split_in_two(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"padding": "x" * (3 << 20)}, "weight_map": index})
    )
    assert load(tmp_path).head.shape == (2048, 192)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["config.json", "model.safetensors"]),
    flips=st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 255)), max_size=6),
    keep=st.integers(0, 1 << 24),
)
def test_a_damaged_checkpoint_is_one_clear_error_or_loads(
    tmp_path: Path, file: str, flips: list[tuple[int, int]], keep: int
) -> None:
    for name in ("config.json", "model.safetensors"):
        content = bytearray((CHECKPOINT / name).read_bytes())
        if name == file:
            content = content[:keep]
            for at, value in flips:
                if at < len(content):
                    content[at] = value
        (tmp_path / name).write_bytes(content)
    try:
        load(tmp_path)
    except StartFailed as error:
        assert error.reason in ("CheckpointUnreadable", "CheckpointUnsupported")  # noqa: PT017 - either outcome is right
        assert str(tmp_path) in error.message  # noqa: PT017 - as above
