"""The learning rate of each step."""

from __future__ import annotations

import math


def rate(kind: str, step: int, steps: int, warmup_steps: int) -> float:
    """Learning rate of a step, as a share of the greatest one.

    Args:
        kind: ``constant``, ``poly`` (power 0.9) or ``cosine``.
        step: From 0.
        steps: Of the whole training.
        warmup_steps: First steps, in which the rate rises evenly; 0 is none.

    Returns:
        In (0, 1].
    """
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = step / steps
    if kind == "poly":
        return float(rise * (1 - done) ** 0.9)
    if kind == "cosine":
        return rise * (1 + math.cos(math.pi * done)) / 2
    return rise
