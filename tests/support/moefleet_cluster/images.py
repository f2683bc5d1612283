"""The test images: which layers make which image, and the archive that nodes import."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import layers
from .build import locked
from .layers import CODE, GPU_SITE, SITE, ImageError, LayerStore
from .oci import Image, Layer, documents, write_archive
from .programs import programs_folder

REPOSITORY = Path(__file__).resolve().parents[3]
TINY_MODEL = Path(__file__).resolve().parents[1] / "models/tiny-deepseek-v2"
PAUSE = "moefleet.test/pause:1"
KEPT_ARCHIVES = 2


@dataclass(frozen=True, slots=True)
class PythonImage:
    """An image that starts `python3 -m <module>` with the packages of `lock`."""

    name: str
    module: str
    lock: str


PYTHON_IMAGES = (
    PythonImage("operator", "moefleet_operator", "operator/requirements.txt"),
    PythonImage("gateway", "moefleet_gateway", "runtime/requirements-gateway.txt"),
    PythonImage("runtime", "moefleet_runtime", "runtime/requirements-runtime.txt"),
)


@dataclass(frozen=True, slots=True)
class NodeArchives:
    """What a node imports: `stable` holds all layers but our code, under names of its own; `top` only the code and the images' names."""

    stable: Path
    top: Path


def build_archive(store: LayerStore, repository: Path = REPOSITORY, envoy: Path | None = None) -> Path:
    """Makes what is missing and returns one archive with all images. Needs root the first time (debootstrap).

    Raises:
        ImageError: with what is needed.
    """
    with locked(store.folder.with_suffix(".lock")):
        return _archive(store, "images", _images(store, repository, envoy, layers.code(store, repository)))


def build_node_archives(
    store: LayerStore, repository: Path = REPOSITORY, envoy: Path | None = None
) -> NodeArchives:
    """The same images in two archives, so that changed code is a small one.

    Raises:
        ImageError: with what is needed.
    """
    with locked(store.folder.with_suffix(".lock")):
        code = layers.code(store, repository)
        images = _images(store, repository, envoy, code)
        stable = [without(image, code) for image in images]
        below = {layer.digest for image in stable for layer in image.layers}
        return NodeArchives(_archive(store, "stable", stable), _archive(store, "top", images, below))


def _images(store: LayerStore, repository: Path, envoy: Path | None, code: Layer) -> list[Image]:
    envoy_binary = envoy or find_envoy(repository)
    base = layers.base(store, os.environ.get("MOEFLEET_DEBIAN_MIRROR", ""))
    extra = {
        "gateway": [layers.file(store, "envoy", envoy_binary, "usr/local/bin/envoy")],
        "runtime": [layers.file(store, "tiny-model", TINY_MODEL, f"models/{TINY_MODEL.name}")],
    }
    images = [pause_image(layers.file(store, "pause", programs_folder() / "pause", "pause"))]
    for image in PYTHON_IMAGES:
        site = layers.site_packages(store, image.name, repository / image.lock)
        # The code comes last: a change of it leaves everything below as it is.
        images.append(python_image(image, [base, site, *extra.get(image.name, []), code]))
    return images


def without(image: Image, top: Layer) -> Image:
    """The image without its top layer, under the tag `base`; an image that has no such layer stays as it is."""
    if image.layers[-1] != top:
        return image
    return replace(image, reference=f"{image.reference.rsplit(':', 1)[0]}:base", layers=image.layers[:-1])


def build_pause_archive(store: LayerStore) -> Path:
    """For clusters that need no image of ours; it takes no second."""
    with locked(store.folder.with_suffix(".lock")):
        layer = layers.file(store, "pause", programs_folder() / "pause", "pause")
        return _archive(store, "pause-image", [pause_image(layer)])


def pause_image(layer: Layer) -> Image:
    return Image(PAUSE, [layer], ["/pause"], user="65535")


def python_image(image: PythonImage, stack: list[Layer]) -> Image:
    environment = {
        # The GPU site is last: it may bring torch, and never replaces what the image itself ships.
        "PYTHONPATH": ":".join([CODE, SITE, GPU_SITE] if image.name == "runtime" else [CODE, SITE]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/tmp",
    }
    return Image(
        reference=f"moefleet.test/{image.name}:dev",
        layers=stack,
        entrypoint=["python3", "-m", image.module],
        environment=environment,
        user=f"{layers.USER_ID}:{layers.USER_ID}",
    )


def find_envoy(repository: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """
    Raises:
        ImageError: when the environment with Envoy is not there.
    """
    if named := environ.get("MOEFLEET_ENVOY"):
        found = [Path(named)] if Path(named).is_file() else []
    else:
        found = sorted(repository.glob(".venv-envoy/lib/python*/site-packages/envoy/_bin/envoy"))
    if not found:
        where = named or repository / ".venv-envoy"
        raise ImageError(f"no Envoy binary at {where}; needed: `make setup`, or MOEFLEET_ENVOY with its path")
    return found[0]


def _archive(store: LayerStore, kind: str, images: list[Image], leave_out: Collection[str] = ()) -> Path:
    key = layers.key_of(
        *sorted(leave_out), *(part for image in images for part in (image.reference, *documents(image)))
    )
    target = store.folder / f"{kind}-{key}.tar"
    if target.exists():
        os.utime(target)
        return target
    partial = target.with_suffix(".partial")
    write_archive(partial, images, leave_out)
    partial.rename(target)
    archives = sorted(
        store.folder.glob(f"{kind}-????????????.tar"), key=lambda p: p.stat().st_mtime, reverse=True
    )
    for old in archives[KEPT_ARCHIVES:]:
        old.unlink()
    store.say(f"images: {', '.join(i.reference for i in images)} in {target.stat().st_size / 1e6:.0f} MB")
    return target
