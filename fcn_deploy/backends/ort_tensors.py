"""What flows inside a graph: the values of tensors that it does not return."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto

from fcn_deploy.backends.ort_options import CPU
from fcn_deploy.backends.ort_sessions import session_options
from fcn_deploy.errors import ModelError
from fcn_deploy.spec import INPUT


class Tensors:
    """A session on the CPU that returns tensors from inside of a graph.

    Args:
        proto: The whole model; it is not changed.
        names: Of the tensors.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
    """

    def __init__(self, proto: ModelProto, names: Sequence[str]) -> None:
        shown = ModelProto()
        shown.CopyFrom(proto)
        del shown.graph.output[:]
        # ONNX Runtime infers the types itself.
        shown.graph.output.extend(ValueInfoProto(name=name) for name in names)
        self._names = list(names)
        try:
            self._session = ort.InferenceSession(
                shown.SerializeToString(), session_options(CPU), providers=[CPU]
            )
        except Exception as error:  # ORT's exceptions have no common public base
            raise ModelError(f"ONNX Runtime refuses the graph: {error}.") from error

    def run(self, crops: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """The tensors by name, as float32, for crops (N, H, W, 3)."""
        values = self._session.run(self._names, {INPUT: np.ascontiguousarray(crops)})
        return {
            name: np.asarray(value, np.float32)
            for name, value in zip(self._names, values, strict=True)
        }
