"""Differences of logits, added up over any number of crops in constant memory."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.verify.result import CropFigures, MarginBin, ShapeFigures

Floats = NDArray[np.float32]

MARGINS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
"""Where bins of margins start, as shares of the range of the logits."""

# Errors are counted in bins that are 1 % wide, from 1e-12 to 1e6.
_DECADES, _PER_DECADE = (-12, 6), 232
# Margins are counted in bins, too, since the range that they are shares of is only known at the
# end. A tenth of a decade would blur the limits of MARGINS by a quarter, this does by 1 %.
_BINS = (_DECADES[1] - _DECADES[0]) * _PER_DECADE


class LogitFigures:
    """Collects what :class:`CropFigures` says."""

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf
        self._max = self._squares = 0.0
        self._values = self._crops = self._pixels = self._equal = 0
        self._errors = np.zeros(_BINS, np.int64)
        self._margins = np.zeros((2, _BINS), np.int64)  # of all pixels, of those that flipped
        self._shapes: list[ShapeFigures] = []

    def add(
        self,
        wanted: Floats,
        got: Floats | None,
        labels: NDArray[np.uint8],
        margins: Floats,
        source: str,
    ) -> None:
        """Take one batch.

        Args:
            wanted: Logits of the reference, (N, C, H, W).
            got: Logits of the rung, the same shape; ``None`` where it returns labels alone.
            labels: Labels that the rung computed itself, (N, H, W).
            margins: Of the reference, by :func:`fcn_deploy.parity.margins_of`.
            source: ``real`` or ``random``.
        """
        same = wanted.argmax(1) == labels
        largest = None if got is None else self._add_errors(np.abs(wanted - got).ravel())
        self._margins[0] += _histogram(margins)
        self._margins[1] += _histogram(margins[~same])
        self._low = min(self._low, float(wanted.min()))
        self._high = max(self._high, float(wanted.max()))
        count, height, width = labels.shape
        self._crops += count
        self._pixels += same.size
        self._equal += int(same.sum())
        self._shapes.append(ShapeFigures(count, height, width, source, largest, float(same.mean())))

    def _add_errors(self, errors: Floats) -> float:
        largest = float(errors.max())
        # np.maximum, not max: it keeps NaN.
        self._max = float(np.maximum(self._max, largest))
        self._squares += float(np.einsum("i,i->", errors, errors, dtype=float))
        self._values += errors.size
        self._errors += _histogram(errors)
        return largest

    def figures(self, margin: float) -> CropFigures:
        """All of it.

        Args:
            margin: Share of the range beyond which no label may flip.
        """
        span = self._high - self._low if self._pixels else 0.0
        return CropFigures(
            count=self._crops,
            pixels=self._pixels,
            logit_range=span,
            max_error=self._max if self._values else None,
            p999_error=self._quantile(0.999) if self._values else None,
            rms_error=float(np.sqrt(self._squares / self._values)) if self._values else None,
            agreement=self._equal / self._pixels if self._pixels else 0.0,
            flips_outside_margin=int(self._margins[1][_bin(margin * span) :].sum()),
            by_margin=tuple(self._by_margin(span)),
            by_shape=tuple(self._shapes),
        )

    def _quantile(self, share: float) -> float:
        reached = np.cumsum(self._errors) >= share * self._values
        place = int(reached.argmax())
        upper = 10.0 ** (_DECADES[0] + (place + 1) / _PER_DECADE)
        return float(np.fmin(upper, self._max)) if place else 0.0

    def _by_margin(self, span: float) -> list[MarginBin]:
        edges = [0, *(_bin(start * span) for start in MARGINS[1:]), _BINS]
        parts = []
        for number, (start, stop) in enumerate(pairwise(edges)):
            pixels, flips = (int(counts[start:stop].sum()) for counts in self._margins)
            parts.append(
                MarginBin(
                    MARGINS[number],
                    MARGINS[number + 1] if number + 1 < len(MARGINS) else None,
                    pixels,
                    1 - flips / pixels if pixels else None,
                )
            )
        return parts


def _bin(value: float) -> int:
    """The bin of a value; zero and what is as good as zero is in the first one."""
    if not value > 0:
        return 0
    place = (np.log10(value) - _DECADES[0]) * _PER_DECADE
    return int(np.clip(place, 0, _BINS - 1))


def _histogram(values: Floats) -> NDArray[np.int64]:
    flat = values.ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        places = (np.log10(flat) - _DECADES[0]) * _PER_DECADE
    # Infinite margins are those of a network with one class; NaN counts as the largest error.
    places = np.nan_to_num(np.clip(places, 0, _BINS - 1), nan=_BINS - 1)
    return np.bincount(places.astype(np.intp), minlength=_BINS).astype(np.int64)
