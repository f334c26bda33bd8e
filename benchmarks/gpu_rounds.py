"""Times of many short runs: bursts in rounds, medians, and ratios with their spread."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from gpu_job import Loaded, Pixels, reason_of

Samples = list[list[float]]
"""Seconds of each measurement, round by round."""


@dataclass(frozen=True)
class Pace:
    """How much is measured.

    Attributes:
        rounds: Bursts of each contender; in each round all of them have one.
        burst_s: About how long a burst takes, in seconds.
        most: Measurements of a burst, at most.
        least: The same, at least, however long it takes.
        warm_s: Seconds of work before the first round: a GPU at rest has let its clocks fall.
    """

    rounds: int = 10
    burst_s: float = 0.3
    most: int = 20
    least: int = 3
    warm_s: float = 0.0

    def repeats(self, seconds: float) -> int:
        """Measurements of a burst, by how long one takes."""
        return min(max(int(self.burst_s / max(seconds, 1e-6)), self.least), self.most)


def stopwatch(loaded: Loaded, pixels: Pixels) -> Callable[[], float]:
    """A function that runs a contender once, and returns how many seconds that took."""

    def measured() -> float:
        start = time.perf_counter()
        loaded.labels(pixels)
        elapsed = time.perf_counter() - start
        return elapsed if loaded.clock is None else loaded.clock()

    return measured


def in_bursts(
    works: Mapping[str, Callable[[], float]],
    pace: Pace,
    synchronise: Callable[[], object],
) -> tuple[dict[str, Samples], dict[str, str]]:
    """Time each piece of work in a burst a round, so that what disturbs the GPU meets them all.

    Each round begins with another one, so that nobody always follows the same neighbour; and each
    burst with a run that does not count, because the neighbour has left its data in the caches.

    Args:
        works: What to time; each returns its own seconds.
        pace: How much to measure.
        synchronise: Waits for what is under way on the device.

    Returns:
        Samples by name; and by name, why some have failed.
    """
    failed: dict[str, str] = {}
    repeats: dict[str, int] = {}
    samples: dict[str, Samples] = {name: [] for name in works}
    with _little_garbage():
        _warm_up(works, pace.warm_s)
        for number in range(-1, pace.rounds):  # the one before the first says how long they take
            for name in _in_turn(list(works), number):
                if name in failed:
                    continue
                gc.collect()
                synchronise()
                try:
                    count = repeats.get(name, pace.least)
                    burst = [round(works[name](), 8) for _ in range(count + 1)][1:]
                except Exception as error:  # whoever fails must not end the race of the others
                    failed[name] = reason_of(error)
                    continue
                if not all(map(math.isfinite, burst)):
                    failed[name] = "its clock returned no number"
                elif number < 0:
                    repeats[name] = pace.repeats(min(burst))
                else:
                    samples[name].append(burst)
    return {name: rounds for name, rounds in samples.items() if name not in failed}, failed


def _warm_up(works: Mapping[str, Callable[[], float]], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for work in works.values():
            with suppress(Exception):  # who fails here does so again where it is noted
                work()


def _in_turn(names: list[str], number: int) -> list[str]:
    first = number % len(names)
    return [*names[first:], *names[:first]]


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Let the collector look at new objects alone: PyTorch's old ones take it a third of a second.

    It would run in the middle of somebody's burst.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Summary(NamedTuple):
    """Samples in a few numbers; seconds."""

    median: float
    p95: float
    measured: int


class Ratio(NamedTuple):
    """How many times as fast as the baseline: of the rounds the median, the least, the most."""

    median: float
    least: float
    most: float


def summary_of(samples: Samples) -> Summary:
    """Median and 95th percentile of all measurements."""
    values = [seconds for burst in samples for seconds in burst]
    return Summary(median(values), float(np.percentile(values, 95)), len(values))


def ratio_of(samples: Samples, baseline: Samples) -> Ratio:
    """Compare round by round, in which both met the same disturbances."""
    ratios = [median(theirs) / median(ours) for ours, theirs in zip(samples, baseline, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))
