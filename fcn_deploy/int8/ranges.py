"""Calibration: the least and greatest value that each tensor takes on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from fcn_deploy.backends.ort_tensors import Tensors
from fcn_deploy.errors import CheckFailedError, DataError
from fcn_deploy.int8.graph import tensors_to_observe


def observe(
    proto: ModelProto,
    batches: Iterable[NDArray[np.uint8]],
    on_batch: Callable[[], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Ranges of all tensors that are quantised.

    The extremes, not percentiles: they hold the budget here. Clipping was not tried.

    Args:
        proto: As exported, in float32.
        batches: Crops (N, H, W, 3) uint8.
        on_batch: Told after each.

    Raises:
        DataError: There was no batch.
        CheckFailedError: A tensor is not finite.
        ModelError: ONNX Runtime refuses the graph.
    """
    inside = Tensors(proto, tensors_to_observe(proto))
    found: dict[str, tuple[float, float]] = {}
    for batch in batches:
        for name, values in inside.run(batch).items():
            low, high = float(values.min()), float(values.max())
            if not np.isfinite([low, high]).all():
                raise CheckFailedError(f"The tensor {name} is not finite on calibration images.")
            before = found.get(name, (low, high))
            found[name] = (min(before[0], low), max(before[1], high))
        if on_batch is not None:
            on_batch()
    if not found:
        raise DataError(
            "There are no images to calibrate on.", "Name some: --calibrate FOLDER, 16 to 64 do."
        )
    return found
