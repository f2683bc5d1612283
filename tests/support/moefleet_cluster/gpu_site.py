"""The folder with torch that the fake GPUs bring into containers."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from .layers import IMAGE_PYTHON


class GpuSiteError(RuntimeError):
    """The folder cannot serve containers; the message says why and what can."""


def find(named: str = "") -> Path | None:
    """The named folder, or the running interpreter's site-packages; None when nothing was named and it has no torch.

    Raises:
        GpuSiteError: when it is not for the images' Python, or a named one has no torch.
    """
    site = Path(named or sysconfig.get_path("purelib")).resolve()
    wanted = "python{}.{}".format(*IMAGE_PYTHON)
    if not (site / "torch").is_dir():
        if named:
            raise GpuSiteError(
                f"{site} has no folder `torch`: name the site-packages of an environment with torch"
            )
        return None
    if site.parent.name.startswith("python") and site.parent.name != wanted:
        raise GpuSiteError(
            f"{site} is for {site.parent.name}, the images have {wanted}: compiled packages of one do not load in the other. "
            f"Make the environment with {wanted} (PY={wanted} make setup), or name another folder with --gpu-site"
        )
    return site
