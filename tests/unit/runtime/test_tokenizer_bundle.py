"""What GetTokenizer sends: the same bytes for the same files, in chunks whose last one has the fingerprint, or a reason."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
from moefleet_gateway.openai.tokenizers import unpack
from moefleet_runtime.serving import tokenizer_bundle
from moefleet_runtime.serving.tokenizer_bundle import CHUNK_BYTES, Bundle, NoTokenizerError, make_bundle
from moefleet_testing.torch_engine import CHECKPOINT


def test_the_gateway_unpacks_what_a_replica_packs_and_weights_stay_at_home(tmp_path: Path) -> None:
    bundle = make_bundle(CHECKPOINT)
    unpack(bundle.data, tmp_path)
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"}
    assert all((tmp_path / name).read_bytes() == (CHECKPOINT / name).read_bytes() for name in names)


def test_the_same_files_are_the_same_bytes_whenever_they_were_copied(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(CHECKPOINT / name, tmp_path / name)
    first = make_bundle(tmp_path)
    os.utime(tmp_path / "config.json", (1_700_000_000, 1_700_000_000))
    assert make_bundle(tmp_path) == first
    (tmp_path / "config.json").write_text("{}")
    assert make_bundle(tmp_path).sha256 != first.sha256


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_only_the_last_chunk_has_the_fingerprint(size: int) -> None:
    data = os.urandom(size)
    sha256 = hashlib.sha256(data).hexdigest()
    chunks = list(Bundle(data, sha256).chunks())
    assert b"".join(part for part, _ in chunks) == data
    assert [mark for _, mark in chunks] == [""] * (len(chunks) - 1) + [sha256]
    assert max(len(part) for part, _ in chunks) <= CHUNK_BYTES


def test_no_tokenizer_and_too_large_ones_are_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoTokenizerError, match=r"has no tokenizer\.json"):
        make_bundle(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 90)
    (tmp_path / "config.json").write_bytes(b"x" * 20)
    monkeypatch.setattr(tokenizer_bundle, "FILES_MAX_BYTES", 100)
    with pytest.raises(NoTokenizerError, match=r"config\.json and those before have 110 bytes, at most 100"):
        make_bundle(tmp_path)
