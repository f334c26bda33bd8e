"""What a rung that failed looks like: mistakes that are made when models are deployed, tried out.

Everything here asks for logits and nothing else, so that it works for engines, whose inside cannot
be looked at. A cause is named only if undoing it takes most of the error away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Network = Callable[[Pixels], Floats]
"""Crops (N, H, W, 3) to logits (N, C, H, W)."""

_ENOUGH = 0.5
"""Share of the error that may be left for a cause to be named."""

_CHANNELS = ("red", "green", "blue")
_OFFSETS = (-64, -32, -16, -8, -4, -2, 2, 4, 8, 16, 32, 64)
_SHIFTS = [way for way in product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=2) if any(way)]
"""Pixels down and to the right."""

_BORDER = 2  # pixels at the edge of a crop that a shifted result has no values for


def diagnose(reference: Network, candidate: Network, crops: Pixels) -> str | None:
    """Name what is wrong with a network's input, or with the place of its output, if that is it.

    Args:
        reference: What is believed.
        candidate: What differs from it.
        crops: uint8 (N, H, W, 3); small ones do.

    Returns:
        One sentence, or ``None``.
    """
    wanted, got = reference(crops), candidate(crops)
    before = _rms(got - wanted)
    if not 0 < before < np.inf:
        return None
    tried = [
        *_orders(wanted, candidate, crops, before),
        *_shifts(wanted, got),
        *_input_shifts(reference, got, crops, before),
        *_offsets(reference, candidate, crops),
    ]
    left, cause = min(tried)
    if not left < _ENOUGH:
        return None
    return f"It looks as if {cause}: with that undone, {1 - left:.0%} of the error is gone."


def _orders(
    wanted: Floats, candidate: Network, crops: Pixels, before: float
) -> Iterator[tuple[float, str]]:
    for order in permutations(range(3)):
        if order == (0, 1, 2):
            continue
        left = _rms(candidate(np.ascontiguousarray(crops[..., list(order)])) - wanted)
        cause = "red and blue were swapped (BGR for RGB)"
        if order != (2, 1, 0):
            cause = f"it took channels in the order {', '.join(_CHANNELS[i] for i in order)}"
        yield left / before, cause


def _shifts(wanted: Floats, got: Floats) -> Iterator[tuple[float, str]]:
    before = _rms(_inner(got - wanted))
    for down, right in _SHIFTS:
        left = _rms(_inner(_moved(_moved(wanted, down, 2), right, 3) - got))
        yield left / before if before else 1.0, f"its result lay {_way(down, right)}"


def _input_shifts(
    reference: Network, got: Floats, crops: Pixels, before: float
) -> Iterator[tuple[float, str]]:
    floats = crops.astype(np.float32)
    for down, right in _SHIFTS:
        moved = np.rint(_moved(_moved(floats, down, 1), right, 2)).astype(np.uint8)
        yield _rms(reference(moved) - got) / before, f"it saw images {_way(down, right)}"


def _way(down: float, right: float) -> str:
    directions = ((down, ("up", "down")), (right, ("to the left", "to the right")))
    return " and ".join(f"{abs(by):g} pixel {ways[by > 0]}" for by, ways in directions if by)


def _moved(values: Floats, by: float, axis: int) -> Floats:
    """Values moved along an axis, by linear interpolation; edges are those of the other side."""
    whole = int(np.floor(by))
    share = by - whole
    near, far = (np.roll(values, step, axis) for step in (whole, whole + 1))
    return np.asarray(near * (1 - share) + far * share, np.float32)


def _inner(values: Floats) -> Floats:
    inside = slice(_BORDER, -_BORDER)
    return values[..., inside, inside]


def _offsets(reference: Network, candidate: Network, crops: Pixels) -> Iterator[tuple[float, str]]:
    """One channel brighter or darker by a constant, as a wrong mean makes it."""
    # Half of the contrast leaves room to both sides, so that nothing is clipped.
    middle = (crops // 2 + 64).astype(np.int16)

    def left(channel: int, by: int) -> float:
        brighter = middle.copy()
        brighter[..., channel] += by
        return _rms(reference(np.clip(brighter, 0, 255).astype(np.uint8)) - got)

    got = candidate(middle.astype(np.uint8))
    before = _rms(reference(middle.astype(np.uint8)) - got)
    if not 0 < before < np.inf:
        return
    for channel, name in enumerate(_CHANNELS):
        by = min(_OFFSETS, key=lambda offset: left(channel, offset))
        step = abs(by) // 4
        while step:  # halve in on it: the error falls towards the true offset from both sides
            by = min((by - step, by, by + step), key=lambda offset: left(channel, offset))
            step //= 2
        way = "brighter" if by > 0 else "darker"
        cause = (
            f"it saw {name} {way} by {abs(by)} of 255, as a wrong mean of {abs(by) / 255:.3f} does"
        )
        yield left(channel, by) / before, cause


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
