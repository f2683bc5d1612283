"""Image archives as containerd reads them, and the cache of their layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from moefleet_cluster import layers
from moefleet_cluster.images import PYTHON_IMAGES, find_envoy, python_image, without
from moefleet_cluster.layers import ImageError, LayerStore
from moefleet_cluster.oci import Image, Layer, Tree, pack_layer, write_archive


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "package").mkdir(parents=True, mode=0o700)
    (root / "package/code.py").write_text("print(1)\n")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o700)
    (root / "package/secret").write_text("s")
    (root / "package/secret").chmod(0o600)
    (root / "link").symlink_to("package/code.py")
    (root / "left/out").mkdir(parents=True)
    (root / "left/out/big").write_text("big")
    return root


def members(layer: Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(layer.path) as tar:
        return {m.name: m for m in tar.getmembers()}


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    with tarfile.open(path) as tar:
        content = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    assert json.loads(content["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    return json.loads(content["index.json"]), content


def test_a_layer_belongs_to_root_and_everybody_may_read_it(tree: Path, tmp_path: Path) -> None:
    found = members(
        pack_layer(tmp_path / "l", [Tree(tree, "opt/app", lambda name: name.startswith("left"))], ["empty"])
    )
    assert list(found) == [
        "empty", "opt", "opt/app", "opt/app/link", "opt/app/package", "opt/app/package/code.py", "opt/app/package/secret",
        "opt/app/run",
    ]  # fmt: skip
    assert {(m.uid, m.gid, m.mtime) for m in found.values()} == {(0, 0, 0)}
    modes = {
        name: found[f"opt/app/{name}"].mode
        for name in ("package", "package/code.py", "package/secret", "run")
    }
    assert modes == {"package": 0o755, "package/code.py": 0o644, "package/secret": 0o644, "run": 0o755}
    assert found["opt/app/link"].linkname == "package/code.py"


def test_a_systems_tree_keeps_modes_times_and_hard_links(tree: Path, tmp_path: Path) -> None:
    os.utime(tree / "package/code.py", (1_700_000_000, 1_700_000_000))
    (tree / "same").hardlink_to(tree / "run")
    found = members(pack_layer(tmp_path / "l", [Tree(tree, "", keep_as_is=True)]))
    assert found["package/secret"].mode == 0o600
    assert found["package/code.py"].mtime == 1_700_000_000
    assert found["same"].islnk()
    assert found["same"].linkname == "run"


def test_the_same_tree_is_the_same_layer(tree: Path, tmp_path: Path) -> None:
    first = pack_layer(tmp_path / "a", [Tree(tree, "app")])
    os.utime(tree / "package/code.py", (1, 1))
    second = pack_layer(tmp_path / "b", [Tree(tree, "app")])
    assert (first.digest, first.diff_id, first.size_bytes) == (
        second.digest,
        second.diff_id,
        second.size_bytes,
    )
    (tree / "package/code.py").write_text("print(2)\n")
    assert pack_layer(tmp_path / "c", [Tree(tree, "app")]).digest != first.digest


def test_a_single_file_gets_the_name_it_has_in_the_image(tree: Path, tmp_path: Path) -> None:
    found = members(pack_layer(tmp_path / "l", [Tree(tree / "run", "usr/local/bin/envoy")]))
    assert list(found) == ["usr", "usr/local", "usr/local/bin", "usr/local/bin/envoy"]
    assert found["usr/local/bin/envoy"].mode == 0o755


def test_an_archive_holds_every_blob_once_under_its_digest(tree: Path, tmp_path: Path) -> None:
    shared = pack_layer(tmp_path / "shared", [Tree(tree, "base")])
    own = pack_layer(tmp_path / "own", [Tree(tree / "run", "bin/run")])
    one = Image("moefleet.test/one:dev", [shared], ["/one"])
    two = Image(
        "moefleet.test/two:1", [shared, own], ["python3", "-m", "two"], {"HOME": "/tmp"}, user="65532:65532"
    )
    write_archive(tmp_path / "archive.tar", [one, two])

    with tarfile.open(tmp_path / "archive.tar") as tar:
        names = tar.getnames()
    assert len(names) == len(set(names))
    index, content = read_archive(tmp_path / "archive.tar")
    for name, blob in content.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"

    references = [m["annotations"]["io.containerd.image.name"] for m in index["manifests"]]
    assert references == ["moefleet.test/one:dev", "moefleet.test/two:1"]
    entry = index["manifests"][1]
    manifest = json.loads(content[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"])
    assert entry["size"] == len(content[f"blobs/sha256/{entry['digest'].removeprefix('sha256:')}"])
    config = json.loads(content[f"blobs/sha256/{manifest['config']['digest'].removeprefix('sha256:')}"])
    assert config["config"]["Entrypoint"] == ["python3", "-m", "two"]
    assert config["config"]["User"] == "65532:65532"
    assert "HOME=/tmp" in config["config"]["Env"]
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        packed = content[f"blobs/sha256/{layer['digest'].removeprefix('sha256:')}"]
        assert layer["size"] == len(packed)
        assert diff_id == f"sha256:{hashlib.sha256(gzip.decompress(packed)).hexdigest()}"
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
            assert tar.getmembers()


def test_changed_code_makes_a_small_archive_whose_images_are_the_same(tree: Path, tmp_path: Path) -> None:
    base = pack_layer(tmp_path / "base", [Tree(tree, "base")])
    code = pack_layer(tmp_path / "code", [Tree(tree / "run", "code/run")])
    image = Image("moefleet.test/operator:dev", [base, code], ["python3"], user="65532:65532")
    stable = without(image, code)
    assert (stable.reference, list(stable.layers)) == ("moefleet.test/operator:base", [base])
    assert without(stable, code) == stable

    write_archive(tmp_path / "whole.tar", [image])
    write_archive(tmp_path / "top.tar", [image], leave_out={base.digest})
    whole, top = read_archive(tmp_path / "whole.tar"), read_archive(tmp_path / "top.tar")
    assert top[0] == whole[0], "the same manifest under the same name"
    assert set(whole[1]) - set(top[1]) == {f"blobs/sha256/{base.digest.removeprefix('sha256:')}"}


def test_the_images_start_their_module_as_a_user_without_rights(tree: Path, tmp_path: Path) -> None:
    layer = pack_layer(tmp_path / "l", [Tree(tree, "app")])
    images = {image.name: python_image(image, [layer]) for image in PYTHON_IMAGES}
    assert {i.reference: list(i.entrypoint) for i in images.values()} == {
        "moefleet.test/operator:dev": ["python3", "-m", "moefleet_operator"],
        "moefleet.test/gateway:dev": ["python3", "-m", "moefleet_gateway"],
        "moefleet.test/runtime:dev": ["python3", "-m", "moefleet_runtime"],
    }
    assert {i.user for i in images.values()} == {"65532:65532"}
    # What a GPU brings from the host must never win over what the image ships.
    assert images["runtime"].environment["PYTHONPATH"].split(":")[-1] == "/opt/moefleet/torch"
    assert "torch" not in images["operator"].environment["PYTHONPATH"]


# --- the cache ------------------------------------------------------------------------------------------------------
@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path / "layers", say=lambda line: None)


def test_a_cached_layer_is_not_made_again(store: LayerStore, tree: Path) -> None:
    first = layers.file(store, "envoy", tree / "run", "bin/envoy")
    assert layers.file(store, "envoy", tree / "run", "bin/envoy") == first
    (tree / "run").write_text("another version")
    assert layers.file(store, "envoy", tree / "run", "bin/envoy") != first
    assert layers.file(store, "envoy", tree / "run", "bin/other") != first


def test_a_layer_that_fails_leaves_nothing(store: LayerStore) -> None:
    def make(target: Path) -> Layer:
        target.write_text("half")
        raise ImageError("no mirror")

    with pytest.raises(ImageError):
        store.get("base", "0123456789ab", make)
    assert list(store.folder.iterdir()) == []


def test_old_layers_of_a_kind_go_and_other_kinds_stay(store: LayerStore, tree: Path) -> None:
    layers.file(store, "model", tree / "package", "models/x")
    for i in range(layers.KEPT_PER_KIND + 3):
        (tree / "run").write_text(f"version {i}")
        layers.file(store, "envoy", tree / "run", "bin/envoy")
    kept = sorted(p.name for p in store.folder.glob("envoy-*.tar.gz"))
    assert len(kept) == layers.KEPT_PER_KIND
    assert len(list(store.folder.glob("model-*.tar.gz"))) == 1


def test_the_code_layer_follows_sources_and_not_what_python_left(store: LayerStore, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    for package in ("operator/moefleet_operator", "runtime/moefleet_runtime", "protos/moefleet"):
        (repository / package / "__pycache__").mkdir(parents=True)
        (repository / package / "__init__.py").write_text("x = 1\n")
    (repository / "operator/decisions").mkdir()
    (repository / "operator/decisions/0001.md").write_text("no code")
    first = layers.code(store, repository)
    assert "opt/moefleet/code/moefleet/__init__.py" in members(first)
    assert not [name for name in members(first) if "decisions" in name]
    (repository / "protos/moefleet/__pycache__/__init__.cpython-311.pyc").write_bytes(b"junk")
    assert layers.code(store, repository) == first
    (repository / "protos/moefleet/__init__.py").write_text("x = 2\n")
    assert layers.code(store, repository) != first


def test_keys_cannot_run_into_each_other() -> None:
    assert layers.key_of("ab", "c") != layers.key_of("a", "bc")
    assert layers.key_of(b"ab") == layers.key_of("ab")


def test_without_envoy_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="make setup"):
        find_envoy(tmp_path, {})
    with pytest.raises(ImageError, match="/no/such/envoy"):
        find_envoy(tmp_path, {"MOEFLEET_ENVOY": "/no/such/envoy"})
    binary = tmp_path / ".venv-envoy/lib/python3.12/site-packages/envoy/_bin/envoy"
    binary.parent.mkdir(parents=True)
    binary.touch()
    assert find_envoy(tmp_path, {}) == binary
