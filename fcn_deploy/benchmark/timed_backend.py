"""A backend with a stop watch, to tell what the network takes of the time of an image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import Footprint
from fcn_deploy.backends import Backend, ShapeLimits
from fcn_deploy.spec import ModelSpec
from fcn_deploy.upsample import Upsampler

Seconds = Callable[[], float]
"""A clock: seconds, from any start."""


class TimedBackend:
    """A backend that adds up how long its calls take; crops go through it all at once.

    Cutting, computing and merging overlap in threads of their own otherwise, and could not be told
    apart.

    Attributes:
        seconds: Of all calls so far.
    """

    def __init__(self, inner: Backend, clock: Seconds = time.perf_counter) -> None:
        self._inner, self._clock = inner, clock
        self.seconds = 0.0

    @property
    def spec(self) -> ModelSpec:
        """Of the backend within, as all that follow."""
        return self._inner.spec

    @property
    def name(self) -> str:
        """See Backend."""
        return self._inner.name

    @property
    def provider(self) -> str:
        """See Backend."""
        return self._inner.provider

    @property
    def precision(self) -> str:
        """See Backend."""
        return self._inner.precision

    @property
    def limits(self) -> ShapeLimits:
        """See Backend."""
        return self._inner.limits

    @property
    def footprint(self) -> Footprint:
        """See Backend."""
        return self._inner.footprint

    @property
    def upsampling(self) -> Upsampler | None:
        """See Backend."""
        return self._inner.upsampling

    @property
    def labels_on_device(self) -> bool:
        """See Backend."""
        return self._inner.labels_on_device

    @property
    def halo(self) -> int | None:
        """See Backend."""
        return self._inner.halo

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See Backend."""
        start = self._clock()
        result = self._inner.labels(crops)
        self.seconds += self._clock() - start
        return result

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Backend."""
        start = self._clock()
        result = self._inner.logits(crops)
        self.seconds += self._clock() - start
        return result

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Backend."""
        start = self._clock()
        result = self._inner.scores(crops)
        self.seconds += self._clock() - start
        return result

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """See Backend; none is returned before all are done."""
        cut = list(crops)
        start = self._clock()
        results = list(self._inner.stream_scores(cut))
        self.seconds += self._clock() - start
        return iter(results)

    def close(self) -> None:
        """See Backend."""
        self._inner.close()

    def __enter__(self) -> TimedBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
