"""What a user may choose of how an image is cut into crops and put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fcn_deploy.auto_tile import DEFAULT_MAX_MEMORY_MIB
from fcn_deploy.errors import UsageError
from fcn_deploy.merging import BLENDS, Blend
from fcn_deploy.tiling import DEFAULT_OVERLAP

Tile = tuple[int, int] | Literal["auto"] | None
"""Height and width of a crop in pixels; ``"auto"``; or ``None`` for the whole image at once."""

Halo = int | Literal["exact"] | None
"""Pixels to throw away at the inner borders of each crop; ``"exact"``; ``None``: average."""


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into crops and put together again.

    Attributes:
        tile: Height and width of the crops, multiples of the output stride. ``"auto"``: the whole
            image where that fits into ``max_memory_mib``, or else the crops of least computed area
            that do. ``None``: the whole image at once.
        overlap: Pixels that neighbouring crops share, at least.
        halo: Instead of averaging, throw away this border of each crop, in pixels, rounded up to
            the output stride. ``"exact"``: as much as the network sees, so that the result is that
            of the whole image at once.
        blend: Weights of a crop's pixels in the average.
        max_memory_mib: What ``"auto"`` may use, beyond the loaded model.
    """

    tile: Tile = "auto"
    overlap: int = DEFAULT_OVERLAP
    halo: Halo = None
    blend: Blend = "mean"
    max_memory_mib: int = DEFAULT_MAX_MEMORY_MIB

    def __post_init__(self) -> None:
        if self.blend not in BLENDS:
            raise UsageError(f"There is no blend {self.blend!r}.", f"Blends: {', '.join(BLENDS)}.")
        if self.max_memory_mib < 1:
            raise UsageError(f"{self.max_memory_mib} MiB of memory are none.")
        if isinstance(self.halo, str) and self.halo != "exact":
            raise UsageError(f"A halo is a number of pixels, or exact, not {self.halo!r}.")
