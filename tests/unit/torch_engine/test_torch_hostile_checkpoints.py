"""Checkpoints from strangers: whatever is in the folder, the engine starts or says in one sentence why it does not."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.torch.config import ModelConfig, parse_model_config
from moefleet_runtime.engine.torch.starting import start
from moefleet_testing.torch_engine import CHECKPOINT, settings
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

TINY: dict[str, Any] = json.loads((CHECKPOINT / "config.json").read_text())
REASONS = {"CheckpointUnsupported", "CheckpointUnreadable", "ModelSourceMissing", "OutOfMemory"}
Change = Callable[[Path], object]

numbers = st.one_of(
    st.integers(-2, 70),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), True]),
    st.floats(),
)
values = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ropes = st.dictionaries(
    st.sampled_from(
        ["type", "rope_type", "factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "rope_theta"]
    ),
    numbers | st.sampled_from(["yarn", "default", "linear"]),
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(sorted(TINY)), values, min_size=1, max_size=3),
    st.none() | ropes,
    st.sampled_from(["deepseek_v2", "deepseek_v3"]),
)
@hypothesis_settings(max_examples=400, deadline=None)
def test_a_config_of_anything_is_read_or_refused_with_its_field(
    changes: dict[str, Any], rope: dict[str, Any] | None, kind: str
) -> None:
    data = {**TINY, "model_type": kind, "architectures": None, **changes}
    if rope is not None:
        data["rope_scaling"] = {**TINY["rope_scaling"], **rope}
    if kind == "deepseek_v3":
        data = {**data, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
    found = outcome(lambda: parse_model_config(data, where="config.json"))
    if isinstance(found, StartFailed):
        assert found.reason == "CheckpointUnsupported"
        assert found.message.startswith("config.json: ")
        assert len(found.message) < 600
    else:
        assert isinstance(found, ModelConfig)
        assert found.matrix_numbers > 0


def outcome(ask: Callable[[], object]) -> object:
    """What it gives, or the refusal; anything else that is raised ends the test."""
    try:
        return ask()
    except StartFailed as refused:
        return refused


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a checkpoint of some kilobytes."""
    folder = tmp_path_factory.mktemp("small")
    shape = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
        "qk_rope_head_dim": 4, "v_head_dim": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "topk_method": "greedy", "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "max_position_embeddings": 128,
        "eos_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(3)
    DeepseekV2ForCausalLM(DeepseekV2Config(**shape)).save_pretrained(folder)
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.name in ("config.json", "model.safetensors")
    }


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def starts_or_says_why(folder: Path) -> str | None:
    """The reason, None when it starts."""
    refused = outcome(lambda: start(settings(folder, blocks=8, context_length=64)))
    if not isinstance(refused, StartFailed):
        return None
    assert refused.reason in REASONS
    assert str(folder) in refused.message
    assert "\n" not in refused.message
    return refused.reason


def test_the_small_checkpoint_starts(tmp_path: Path, small: dict[str, bytes]) -> None:
    assert starts_or_says_why(laid_out(tmp_path, small)) is None


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def truncated(share: float) -> Change:
    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])

    return change


def overwritten(at: int, with_: bytes) -> Change:
    """In the length and the JSON of the header."""

    def change(folder: Path) -> None:
        data = bytearray((folder / WEIGHTS).read_bytes())
        data[at : at + len(with_)] = with_
        (folder / WEIGHTS).write_bytes(data)

    return change


def header_says(tensor: dict[str, Any]) -> Change:
    """A well-formed header whose first tensor is something else."""

    def change(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        name = next(n for n in header if n != "__metadata__")
        header[name] = {**header[name], **tensor}
        raw = json.dumps(header).encode()
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])

    return change


def config_says(fields: dict[str, Any]) -> Change:
    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**data, **fields}))

    return change


def index_says(value: Any) -> Change:
    return lambda folder: (folder / INDEX).write_text(json.dumps(value))


def text_is(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


names = st.sampled_from(
    ["../config.json", "/etc/hostname", "a/b.safetensors", "x" * 300, "", ".", "model.bin", WEIGHTS, 7, None]
)
changes = st.one_of(
    st.floats(0, 1).map(truncated),
    st.builds(overwritten, st.integers(0, 2000), st.binary(min_size=1, max_size=12)),
    st.builds(header_says, st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), values, min_size=1)),
    st.builds(config_says, st.dictionaries(st.sampled_from(sorted(TINY)), numbers, min_size=1, max_size=2)),
    st.builds(index_says, values),
    names.map(lambda name: index_says({"weight_map": {"lm_head.weight": name}})),
    st.builds(text_is, st.sampled_from(["config.json", INDEX, WEIGHTS]), st.sampled_from(["", "{", "[" * 100_000, "null", "\0" * 64])),
)  # fmt: skip


@given(st.lists(changes, min_size=1, max_size=2))
@hypothesis_settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_folder_of_anything_starts_or_is_refused_with_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, small: dict[str, bytes], changes: list[Change]
) -> None:
    folder = laid_out(tmp_path_factory.mktemp("hostile"), small)
    for change in changes:
        try:
            change(folder)
        except (ValueError, TypeError, AttributeError, StopIteration, struct.error):
            # A second change to what the first has spoilt already.
            continue
    starts_or_says_why(folder)


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_and_never_read(
    tmp_path: Path, small: dict[str, bytes], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = laid_out(tmp_path, {"config.json": small["config.json"], name: pickle.dumps(Bomb())})
    assert starts_or_says_why(folder) in ("CheckpointUnreadable", "CheckpointUnsupported")
    assert not (tmp_path / "exploded").exists()
