"""Measurements of kernels, kept from one build to the next: one file for each GPU and release."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fcn_deploy.artifacts import write_atomically
from fcn_deploy.backends.tensorrt_flavour import Flavour, device_capability, device_name
from fcn_deploy.errors import EnvironmentFault


def timing_cache_path(folder: Path, flavour: Flavour, cuda: Any) -> Path:
    """Where the measurements of this GPU with this release lie.

    Those of another GPU or release would be wrong, or refused by the library.

    Args:
        folder: Of all caches.
        flavour: The library.
        cuda: CUDA's runtime API, see :func:`~fcn_deploy.backends.tensorrt_flavour.require_gpu`.
    """
    gpu = re.sub(r"[^a-z0-9]+", "-", device_name(cuda).lower()).strip("-")
    name = f"{flavour.name}-{flavour.version}-{gpu}-{device_capability(cuda)}.timing"
    return folder / name


def read_timing_cache(path: Path | None) -> bytes | None:
    """Earlier measurements, empty if there are none yet; ``None`` where none are wanted."""
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError:
        return b""


def keep_timing_cache(path: Path | None, config: Any) -> None:
    """Write down what a build has measured; a folder that cannot be written costs only time."""
    if path is None:
        return
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_atomically(path, bytes(cache.serialize()))
    except EnvironmentFault:
        return
