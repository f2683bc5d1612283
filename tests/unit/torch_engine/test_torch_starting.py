"""What the engine starts with: threads, memory for the cache, and what is imported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.torch import cache
from moefleet_runtime.engine.torch.config import read_model_config
from moefleet_runtime.engine.torch.packing import _cuts
from moefleet_runtime.engine.torch.requests import Row
from moefleet_runtime.engine.torch.starting import start, threads_for
from moefleet_runtime.tokenizer import load_tokenizer
from moefleet_testing.torch_engine import CHECKPOINT, settings

MIB = 1 << 20


@pytest.mark.parametrize(
    ("wanted", "cpus", "threads"),
    [(0, 1, 1), (0, 4, 4), (2, 4, 2), (8, 2, 2), (0, 0, 1), (1, 64, 1)],
)
def test_threads_follow_the_limit_of_the_pod(wanted: int, cpus: int, threads: int) -> None:
    assert threads_for(wanted=wanted, cpus=cpus) == threads


def test_a_block_has_the_latents_of_all_layers() -> None:
    config = read_model_config(CHECKPOINT)
    assert cache.block_bytes(config, 16, torch.float32) == 6 * 16 * (64 + 16) * 4
    made = cache.make_cache(
        config, blocks=3, block_tokens=16, device=torch.device("cpu"), dtype=torch.float32
    )
    assert sum(layer.nbytes for layer in made.layers) == 4 * cache.block_bytes(config, 16, torch.float32)


@pytest.mark.parametrize(
    ("free_mib", "most", "blocks"),
    [
        # 1,280 MiB free, 256 kept back, half of the rest in blocks of 1 MiB.
        (1280, 10_000, 512),
        (1280, 100, 100),
    ],
)
def test_the_pool_takes_its_share_of_what_is_free(free_mib: int, most: int, blocks: int) -> None:
    got = cache.blocks_that_fit(
        free_bytes=free_mib * MIB, fraction=0.5, bytes_per_block=MIB, most=most, least=8
    )
    assert got == blocks


@pytest.mark.parametrize("free_mib", [0, 100, 256, 271])
def test_too_little_memory_for_one_request_does_not_start(free_mib: int) -> None:
    with pytest.raises(StartFailed, match="needs 8 blocks") as caught:
        cache.blocks_that_fit(free_bytes=free_mib * MIB, fraction=0.5, bytes_per_block=MIB, most=100, least=8)
    assert caught.value.reason == "OutOfMemory"


@pytest.mark.parametrize(
    ("limit", "usage", "free"),
    [("1000", "400", 600), ("100", "400", 0), ("max", "400", None), (None, None, None), ("x", "400", None)],
)
def test_the_pods_own_limit_counts(
    tmp_path: Path, limit: str | None, usage: str | None, free: int | None
) -> None:
    paths = (tmp_path / "limit", tmp_path / "usage")
    for path, text in zip(paths, (limit, usage), strict=True):
        if text is not None:
            path.write_text(text + "\n")
    assert cache._free_in_cgroup(*paths) == free


def test_the_smallest_known_room_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    500 kB\n")
    (tmp_path / "limit").write_text("700000\n")
    (tmp_path / "usage").write_text("300000\n")
    monkeypatch.setattr(cache, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cache, "_CGROUPS", ((tmp_path / "limit", tmp_path / "usage"),))
    assert cache.free_bytes(torch.device("cpu")) == 400_000
    monkeypatch.setattr(cache, "_CGROUPS", ())
    assert cache.free_bytes(torch.device("cpu")) == 512_000


def test_without_a_number_the_pool_holds_full_batches_of_the_longest_requests() -> None:
    info = start(settings(blocks=0, context_length=64, max_batch_size=4)).info
    assert info.kv_max_tokens == 4 * 64
    assert (info.max_batch_size, info.context_length, info.device) == (4, 64, "cpu")


@pytest.mark.parametrize(
    ("contexts", "groups"),
    [
        ([], []),
        ([1], [(0, 1)]),
        # Up to 16 blocks of 16 tokens are one group, whatever they differ by.
        ([1, 100, 256], [(0, 3)]),
        ([1, 257], [(0, 1), (1, 1)]),
        ([300, 600, 608, 609], [(0, 3), (3, 1)]),
        ([10, 1000, 1900, 4000], [(0, 1), (1, 2), (3, 1)]),
    ],
)
def test_rows_are_read_with_others_of_their_length(
    contexts: list[int], groups: list[tuple[int, int]]
) -> None:
    rows = [Row(None, length - 1, 1, decodes=True) for length in contexts]  # type: ignore[arg-type]
    assert _cuts(rows, 16) == groups


def test_scheduling_and_tokenising_do_not_import_torch() -> None:
    """The server process decodes text; only the engine host pays for torch."""
    program = (
        "import sys\n"
        "import moefleet_runtime.engine.torch, moefleet_runtime.engine.torch.scheduler\n"
        "import moefleet_runtime.tokenizer\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_an_image_without_torch_says_so() -> None:
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from moefleet_runtime.engine.base import StartFailed\n"
        "from moefleet_runtime.engine.torch import make_engine\n"
        "try:\n"
        "    make_engine(None)\n"
        "except StartFailed as error:\n"
        "    assert error.reason == 'EngineUnavailable', error\n"
        "else:\n"
        "    raise SystemExit('it was made')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_text_of_the_models_tokens_comes_in_whole_characters(pieces: int) -> None:
    """Typographic quotes and accents are several tokens of this byte-level vocabulary."""
    text = "“Mr. Darcy’s naïve fiancée” — £4,000 a year; 日本 🙂 end"
    tokenizer = load_tokenizer(CHECKPOINT, 2048)
    tokens = tokenizer.encode(text)[1:]
    assert len(tokens) > len(text.split())
    decoder = tokenizer.decoder()
    got = [decoder.push(tokens[at : at + pieces]) for at in range(0, len(tokens), pieces)]
    assert all("\ufffd" not in part for part in got)
    assert "".join(got) + decoder.finish() == text
