"""Times that can be compared on a machine that is never quite quiet."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

Times = dict[str, list[float]]
"""Seconds of each measurement, by name."""


def in_rounds(works: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Time each piece of work once a round, so that what disturbs the machine meets them all.

    Each round begins with another one, so that nobody always follows the same neighbour.
    """
    times: Times = {name: [] for name in works}
    names = list(works)
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            gc.collect()
            start = time.perf_counter()
            result = works[name]()
            times[name].append(time.perf_counter() - start)
            del result
    return times
