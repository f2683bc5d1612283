"""`moefleet convert`: what is converted, that a kill at any moment costs a shard at most, and that the loss stays."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from moefleet_cli.app import run
from moefleet_runtime.engine.base import StartFailed
from moefleet_testing.torch_engine import CHECKPOINT, Forced, load_model
from moefleet_weights import shard as converting
from moefleet_weights.convert import SUMS_NAME, convert
from moefleet_weights.failing import WeightsError
from moefleet_weights.shard import is_converted
from moefleet_weights.tensors import INDEX_NAME, read_header
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

# The beginnings of Pride and Prejudice and of Emma (Jane Austen, public domain).
TEXTS = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. "
    "However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so "
    "well fixed in the minds of the surrounding families, that he is considered the rightful property of some one or other "
    "of their daughters.",
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition, seemed to unite some of the "
    "best blessings of existence; and had lived nearly twenty-one years in the world with very little to distress or vex "
    "her. She was the youngest of the two daughters of a most affectionate, indulgent father; and had, in consequence of "
    "her sister's marriage, been mistress of his house from a very early period.",
)
SHARDS = 4


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in four files with an index, as large ones come."""
    folder = tmp_path_factory.mktemp("sharded")
    for path in CHECKPOINT.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    tensors = load_file(CHECKPOINT / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for i in range(SHARDS):
        file = f"model-{i + 1:05}-of-{SHARDS:05}.safetensors"
        part = names[i * len(names) // SHARDS : (i + 1) * len(names) // SHARDS]
        save_file({n: tensors[n] for n in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture(scope="module")
def converted(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert(sharded, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")}


def loss(folder: Path) -> float:
    """Mean negative log-likelihood in nats a token over TEXTS."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    texts = [[0, *tokenizer.encode(text, add_special_tokens=False).ids] for text in TEXTS]
    logits = Forced(load_model(folder)).logits(texts, [[1] * (len(t) - 1) for t in texts])
    each = [
        torch.nn.functional.cross_entropy(one, torch.tensor(text[1:]), reduction="none")
        for one, text in zip(logits, texts, strict=True)
    ]
    return float(torch.cat(each).mean())


def test_the_loss_stays_within_one_percent(converted: Path) -> None:
    before, after = loss(CHECKPOINT), loss(converted)
    assert 3.0 < before < 4.2, "the tiny checkpoint knows this text"
    assert abs(after - before) / before < 0.01
    assert after != before


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        ("model.layers.0.self_attn.q_proj.weight", True),
        ("model.layers.0.self_attn.q_a_proj.weight", True),
        ("model.layers.0.self_attn.q_b_proj.weight", True),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", True),
        ("model.layers.0.self_attn.kv_b_proj.weight", True),
        ("model.layers.59.self_attn.o_proj.weight", True),
        ("model.layers.0.mlp.gate_proj.weight", True),
        ("model.layers.1.mlp.experts.159.down_proj.weight", True),
        ("model.layers.1.mlp.shared_experts.up_proj.weight", True),
        ("model.layers.1.mlp.gate.weight", False),
        ("model.layers.1.mlp.gate.e_score_correction_bias", False),
        ("model.layers.1.self_attn.q_a_layernorm.weight", False),
        ("model.layers.1.input_layernorm.weight", False),
        ("model.layers.61.eh_proj.weight", False),
        ("model.layers.1.self_attn.o_proj.bias", False),
        ("model.embed_tokens.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_projections_are_converted_and_what_decides_is_kept(name: str, is_so: bool) -> None:
    assert is_converted(name) is is_so


def test_what_is_kept_is_kept_to_the_byte_and_every_matrix_has_scales(sharded: Path, converted: Path) -> None:
    before = {k: v for p in sharded.glob("*.safetensors") for k, v in load_file(p).items()}
    after = {k: v for p in converted.glob("*.safetensors") for k, v in load_file(p).items()}
    for name, tensor in before.items():
        if is_converted(name):
            assert after.pop(name).dtype is torch.float8_e4m3fn
            rows, columns = tensor.shape
            assert after.pop(name + "_scale_inv").shape == (-(-rows // 128), -(-columns // 128))
        else:
            assert torch.equal(after.pop(name), tensor)
    assert after == {}


def test_the_folder_says_what_it_is(sharded: Path, converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]
    }  # fmt: skip
    assert config == json.loads((sharded / "config.json").read_text())
    index = json.loads((converted / INDEX_NAME).read_text())
    for file in set(index["weight_map"].values()):
        held = {t.name for t in read_header(converted / file).tensors}
        assert held == {n for n, f in index["weight_map"].items() if f == file}
    assert (converted / "tokenizer.json").read_bytes() == (CHECKPOINT / "tokenizer.json").read_bytes()
    assert {p.stat().st_mode & 0o777 for p in converted.glob("*.safetensors")} == {0o644}


def test_checksums_are_of_every_file(converted: Path) -> None:
    files = contents(converted)
    lines = files.pop(SUMS_NAME).decode().splitlines()
    assert {line.split("  ")[1]: line.split("  ")[0] for line in lines} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }


def test_the_report_has_every_matrix_and_its_true_error(sharded: Path, converted: Path) -> None:
    report = json.loads((converted / "conversion.json").read_text())
    matrices = {m["name"]: m for m in report["matrices"]}
    assert len(matrices) == 288
    name = "model.layers.2.mlp.experts.3.down_proj.weight"
    weight = load_file(CHECKPOINT / "model.safetensors")[name].double()
    file = json.loads((converted / INDEX_NAME).read_text())["weight_map"][name]
    tensors = load_file(converted / file)
    scales = tensors[name + "_scale_inv"].double().repeat_interleave(128, 0).repeat_interleave(128, 1)
    back = tensors[name].double() * scales[: weight.shape[0], : weight.shape[1]]
    assert matrices[name]["relativeError"] == pytest.approx(
        float((back - weight).norm() / weight.norm()), rel=1e-4
    )
    assert matrices[name]["largestError"] == pytest.approx(float((back - weight).abs().max()), rel=1e-4)
    assert 0.02 < report["relativeError"] < 0.03


def test_stripes_of_any_size_give_the_same_files(
    sharded: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded by the stripe: here one row of blocks, the widest of 512 numbers."""
    monkeypatch.setattr(converting, "STRIPE_BYTES", 1)
    largest = 0
    chunks = converting._chunks

    def watched(header: object, source: object, size: int, chunk_bytes: int) -> object:
        nonlocal largest
        for chunk in chunks(header, source, size, chunk_bytes if chunk_bytes > 1 else 4096):  # type: ignore[arg-type]
            largest = max(largest, len(chunk))
            yield chunk

    monkeypatch.setattr(converting, "_chunks", watched)
    convert(sharded, tmp_path)
    assert largest == 128 * 512 * 2
    ours, theirs = contents(tmp_path), contents(converted)
    reports = [json.loads(files.pop("conversion.json")) for files in (ours, theirs)]
    assert reports[0]["relativeError"] == pytest.approx(reports[1]["relativeError"])
    for files in (ours, theirs):
        files.pop(SUMS_NAME)
    assert ours == theirs


class Killer:
    """Ends the process at its n-th call to the disk, without any clean-up, as kill -9 does."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def around(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if self.calls == self.at:
                os._exit(9)
            self.calls += 1
            return real(*args, **kwargs)

        return call


def converted_in_a_child(source: Path, target: Path, killed_at: int) -> int:
    """The exit status: 9 when it was killed, 0 when it was done before."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        killer = Killer(killed_at)
        os.fsync = killer.around(os.fsync)  # type: ignore[assignment]
        Path.replace = killer.around(Path.replace)  # type: ignore[assignment, method-assign]
        converting.Hashing.write = killer.around(converting.Hashing.write)  # type: ignore[method-assign]
        convert(source, target)
        status = 0
    finally:
        os._exit(status)


def test_killed_at_any_moment_it_goes_on_and_the_files_are_the_same(
    sharded: Path, converted: Path, tmp_path: Path
) -> None:
    """Some 600 writes, flushes and renames: every 7th of them is where the process ends, again and again until it is done."""
    target = tmp_path / "target"
    kills = 0
    while (status := converted_in_a_child(sharded, target, killed_at=7 * (kills + 1))) == 9:
        kills += 1
        assert kills < 500
    assert status == 0
    assert kills >= 10
    assert contents(target) == contents(converted)


@pytest.mark.parametrize("point", range(0, 40, 3))
def test_killed_near_the_end_of_a_shard(sharded: Path, converted: Path, tmp_path: Path, point: int) -> None:
    target = tmp_path / "target"
    assert converted_in_a_child(sharded, target, killed_at=140 + point) == 9
    with pytest.raises(StartFailed):
        load_model(target)
    convert(sharded, target)
    assert contents(target) == contents(converted)


def test_finished_shards_are_not_made_again(sharded: Path, tmp_path: Path) -> None:
    convert(sharded, tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    again = convert(sharded, tmp_path)
    assert again.resumed == SHARDS
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")} == before


def test_a_shard_of_a_changed_source_is_made_again(sharded: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(sharded, source)
    convert(source, target)
    shard = source / f"model-00002-of-{SHARDS:05}.safetensors"
    save_file({n: t * 2 for n, t in load_file(shard).items()}, shard)
    assert convert(source, target).resumed == SHARDS - 1
    fresh = tmp_path / "fresh"
    convert(source, fresh)
    assert contents(target) == contents(fresh)


def source_with(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({**json.loads((CHECKPOINT / "config.json").read_text()), **config})
    )
    tensors = load_file(CHECKPOINT / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


MATRIX = "model.layers.0.self_attn.o_proj.weight"


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (lambda t: t[MATRIX].fill_(float("nan")), {}, rf"{MATRIX}: wanted finite numbers"),
        (lambda t: t[MATRIX][7, 9].fill_(float("nan")), {}, rf"{MATRIX}: wanted finite numbers"),
        (lambda t: t[MATRIX][-1, -1].fill_(float("-inf")), {}, rf"{MATRIX}: wanted finite numbers"),
        (
            lambda t: t.update({MATRIX: torch.ones(4, dtype=torch.int8)}),
            {},
            rf"{MATRIX}: wanted a matrix of BF16",
        ),
        (lambda t: t.update({MATRIX: torch.ones(4)}), {}, rf"{MATRIX}: wanted a matrix"),
        (lambda t: t.update({MATRIX + "_scale_inv": torch.ones(1, 1)}), {}, "has scales already"),
        (lambda t: [t.pop(n) for n in list(t) if is_converted(n)], {}, "found none among 32"),
        (
            lambda t: None,
            {"quantization_config": {"quant_method": "awq"}},
            "quantization_config: wanted none",
        ),
    ],
)
def test_what_cannot_be_converted_is_named_and_nothing_is_sealed(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], config: dict[str, object], says: str
) -> None:
    source = source_with(tmp_path / "source", change, **config)
    with pytest.raises(WeightsError, match=says) as caught:
        convert(source, tmp_path / "target")
    assert caught.value.reason == "CheckpointUnsupported"
    assert not (tmp_path / "target/config.json").exists()


def test_a_folder_with_other_things_in_it_is_left_alone(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("draft")
    with pytest.raises(WeightsError, match=r"found thesis\.doc"):
        convert(sharded, tmp_path)
    assert (tmp_path / "thesis.doc").read_text() == "draft"
    with pytest.raises(WeightsError, match="another folder"):
        convert(sharded, sharded)


def test_the_engine_names_missing_scales_and_scales_of_a_wrong_shape(converted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(converted, folder)
    file = folder / json.loads((folder / INDEX_NAME).read_text())["weight_map"][MATRIX]
    tensors = load_file(file)
    for scales, says in (
        (None, "found no such tensor"),
        (torch.ones(1, 1), r"wanted shape \[2, 1\], found \[1, 1\]"),
    ):
        changed = {n: t for n, t in tensors.items() if n != MATRIX + "_scale_inv"}
        if scales is not None:
            changed[MATRIX + "_scale_inv"] = scales
        save_file(changed, file)
        with pytest.raises(StartFailed, match=says) as caught:
            load_model(folder)
        assert caught.value.reason == "CheckpointUnsupported"
        assert MATRIX + "_scale_inv" in caught.value.message


def test_the_command_prints_the_report_as_json(
    sharded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(sharded), str(tmp_path / "t"), "--to", "fp8-block", "--output", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["shards"], document["keptTensors"], len(document["matrices"])) == (SHARDS, 32, 288)
    assert run(["convert", str(sharded), str(sharded), "--to", "fp8-block"]) == 1
    assert "another folder" in capsys.readouterr().err
    assert run(["convert", str(sharded), str(tmp_path / "t"), "--to", "int4"]) == 2
