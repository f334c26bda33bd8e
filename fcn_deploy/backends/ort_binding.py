"""Runs with buffers that stay: crops go up once, wanted outputs come down, nothing is allocated."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import DTypeLike, NDArray

from fcn_deploy.spec import INPUT, ModelSpec

_SHAPES_KEPT = 2
"""Batches of a stream, and the smaller one that it ends with."""

TYPES: Mapping[str, DTypeLike] = {"labels": np.uint8, "logits": np.float32, "scores": np.float32}


Run = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]
"""Crops (N, H, W, 3) to the outputs of one session, which belong to the caller."""


def plain_run(
    session: Any, outputs: tuple[str, ...], crops: NDArray[np.uint8]
) -> list[NDArray[Any]]:
    """Let ONNX Runtime decide where crops and outputs are."""
    results: list[NDArray[Any]] = session.run(list(outputs), {INPUT: crops})
    return results


def output_shapes(
    spec: ModelSpec, outputs: tuple[str, ...], crops: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Shapes of ``outputs`` of crops (N, H, W, 3), in their order."""
    batch, height, width = crops[:3]

    def maps(stride: int) -> tuple[int, ...]:
        return batch, spec.num_classes, height // stride, width // stride

    shapes = {
        "labels": (batch, height, width),
        "logits": maps(1),
        "scores": maps(spec.score_stride),
    }
    return {name: shapes[name] for name in outputs}


class Buffer(Protocol):
    """Memory that a session reads its crops from, or writes an output to."""

    @property
    def value(self) -> Any:
        """The OrtValue to bind."""
        ...

    def write(self, array: NDArray[Any]) -> None:
        """Fill it."""
        ...

    def read(self) -> NDArray[Any]:
        """A copy, which belongs to the caller."""
        ...


Allocate = Callable[[tuple[int, ...], DTypeLike], Buffer]


@dataclass(frozen=True)
class HostBuffer:
    """Memory of the host; ONNX Runtime copies between it and the device by itself."""

    value: Any
    array: NDArray[Any]

    def write(self, array: NDArray[Any]) -> None:
        """Fill it."""
        np.copyto(self.array, array)

    def read(self) -> NDArray[Any]:
        """A copy, which belongs to the caller."""
        return self.array.copy()


@dataclass(frozen=True)
class CudaBuffer:
    """Memory of the GPU; both copies are complete when the call returns."""

    value: Any

    def write(self, array: NDArray[Any]) -> None:
        """Fill it."""
        self.value.update_inplace(np.ascontiguousarray(array))

    def read(self) -> NDArray[Any]:
        """A copy, which belongs to the caller."""
        return np.asarray(self.value.numpy())


def host_buffer(shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
    """Ordinary memory."""
    array = np.empty(shape, dtype)
    return HostBuffer(ort.OrtValue.ortvalue_from_numpy(array), array)


def cuda_buffer(shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
    """Memory of the first GPU.

    It comes from an arena of ONNX Runtime's own, which keeps what is given back to it.
    """
    return CudaBuffer(ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, "cuda", 0))


def pinned_buffers(device: Any) -> Allocate:
    """Page-locked memory of the host, which a GPU reads and writes by itself.

    Only providers that are plug-ins offer it to Python; the CUDA provider keeps its own to itself.

    Args:
        device: An OrtEpDevice.
    """
    info = device.memory_info(ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)

    def allocate(shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        if info is None:
            raise RuntimeError("The provider has no page-locked memory.")
        value = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, memory_info=info)
        array = value.numpy()
        if array.ctypes.data != value.data_ptr():
            raise RuntimeError("Page-locked memory cannot be written in place.")
        return HostBuffer(value, array)

    return allocate


@dataclass(frozen=True)
class _Bound:
    binding: Any
    image: Buffer
    results: list[Buffer]


class BoundRun:
    """One session with its buffers; used by one thread at a time.

    Args:
        session: An InferenceSession.
        shapes: Shapes of the wanted outputs by their names, of the shape of crops (N, H, W, 3).
        allocate: Where buffers are.
    """

    def __init__(
        self,
        session: Any,
        shapes: Callable[[tuple[int, ...]], dict[str, tuple[int, ...]]],
        allocate: Allocate,
    ) -> None:
        self._session = session
        self._shapes = shapes
        self._allocate = allocate
        self._kept: OrderedDict[tuple[int, ...], _Bound] = OrderedDict()

    def __call__(self, crops: NDArray[np.uint8]) -> list[NDArray[Any]]:
        """Outputs in the order of their names; the caller owns them."""
        try:
            bound = self._kept.pop(crops.shape, None) or self._bind(crops.shape)
            bound.image.write(crops)
            self._session.run_with_iobinding(bound.binding)
            results = [buffer.read() for buffer in bound.results]
        except Exception:
            self._kept.clear()  # what is tried next may need the memory
            raise
        self._kept[crops.shape] = bound
        return results

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        while len(self._kept) >= _SHAPES_KEPT:
            self._kept.popitem(last=False)
        binding = self._session.io_binding()
        image = self._allocate(shape, np.uint8)
        binding.bind_ortvalue_input(INPUT, image.value)
        results = []
        for name, output in self._shapes(shape).items():
            results.append(self._allocate(output, TYPES[name]))
            binding.bind_ortvalue_output(name, results[-1].value)
        return _Bound(binding, image, results)
