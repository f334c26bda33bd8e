"""Many measurements in a few numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fcn_deploy.benchmark.result import Spread, Timing
from fcn_deploy.benchmark.rounds import Samples

_DIGITS = 4  # of a millisecond: 0.1 microseconds


class Ratio(NamedTuple):
    """Time by time of the reference, round by round: median, 10th and 90th percentile."""

    median: float
    low: float
    high: float


def timing_of(
    shape: tuple[int, int, int], samples: Samples, reference: Samples | None, warmup: int
) -> Timing:
    """Sum up the runs of one row on one shape.

    Args:
        shape: Batch, height and width.
        samples: Nanoseconds of its runs, by round.
        reference: The same of the reference row, of the same rounds; ``None`` without one.
        warmup: Runs before.
    """
    batch, height, width = shape
    values = np.concatenate([np.asarray(turn, np.float64) for turn in samples]) / 1e6
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    images_s = batch / max(p50, 1e-6) * 1e3
    ratio = None if reference is None else ratio_of(samples, reference)
    return Timing(
        batch,
        height,
        width,
        rounds=len(samples),
        runs=len(values),
        warmup=warmup,
        min_ms=round(float(values.min()), _DIGITS),
        p50_ms=round(p50, _DIGITS),
        p90_ms=round(p90, _DIGITS),
        p99_ms=round(p99, _DIGITS),
        max_ms=round(float(values.max()), _DIGITS),
        mean_ms=round(float(values.mean()), _DIGITS),
        throughput_images_s=round(images_s, 3),
        megapixels_s=round(images_s * height * width / 1e6, 4),
        ratio=ratio and round(ratio.median, 4),
        ratio_low=ratio and round(ratio.low, 4),
        ratio_high=ratio and round(ratio.high, 4),
    )


def ratio_of(samples: Samples, reference: Samples) -> Ratio:
    """Compare round by round, in which both met the same disturbances."""
    ratios = [
        float(np.median(mine)) / max(float(np.median(theirs)), 1.0)
        for mine, theirs in zip(samples, reference, strict=True)
    ]
    low, median, high = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
    return Ratio(median, low, high)


def spread_of(seconds: Sequence[float]) -> Spread:
    """Sum up one figure for each image."""
    values = np.asarray(seconds, np.float64) * 1e3
    p50, p90 = (round(float(value), _DIGITS) for value in np.percentile(values, (50, 90)))
    return Spread(p50, p90, round(float(values.mean()), _DIGITS))
