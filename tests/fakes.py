"""What fakes of the Backend seam have in common; the logits are up to each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import Footprint

if TYPE_CHECKING:
    from fcn_deploy.backends import Backend


class WithoutScores:
    """A backend whose crops are merged as logits; has no device to give back."""

    footprint = Footprint(bytes_per_pixel=100)
    upsampling, halo = None, None
    labels_on_device = True

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise AssertionError(f"there are no scores of {crops.shape}")

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        raise AssertionError(f"there are no scores of {crops}")

    def close(self) -> None:
        pass

    def __enter__(self: Backend) -> Backend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass
