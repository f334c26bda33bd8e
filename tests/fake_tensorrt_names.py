"""Enums, Dims and loggers of the FAKE of TensorRT's Python module."""

# ruff: noqa: ARG002 - signatures are NVIDIA's

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

import numpy as np

from fake_plan import Shape


class FakeEnum(enum.Enum):
    """pybind11's enums are no ints, but can be made ints."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


COMMON_ENUMS: dict[str, dict[str, int]] = {
    "ExecutionContextAllocationStrategy": {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2},
    "LayerInformationFormat": {"ONELINE": 0, "JSON": 1},
    "TensorIOMode": {"NONE": 0, "INPUT": 1, "OUTPUT": 2},
    "TensorLocation": {"DEVICE": 0, "HOST": 1},
    "DataType": {
        "FLOAT": 0,
        "HALF": 1,
        "INT8": 2,
        "INT32": 3,
        "BOOL": 4,
        "UINT8": 5,
        "FP8": 6,
        "BF16": 7,
        "INT64": 8,
        "INT4": 9,
    },
}
RTX_ENUMS: dict[str, dict[str, int]] = {
    "CudaGraphStrategy": {"DISABLED": 0, "WHOLE_GRAPH_CAPTURE": 1},
    "DynamicShapesKernelSpecializationStrategy": {"LAZY": 0, "EAGER": 1, "NONE": 2},
    "EngineValidity": {"VALID": 0, "SUBOPTIMAL": 1, "INVALID": 2},
    "EngineInvalidityDiagnostics": {
        "VERSION_MISMATCH": 1,
        "UNSUPPORTED_CC": 2,
        "OLD_CUDA_DRIVER": 4,
        "OLD_CUDA_RUNTIME": 8,
        "INSUFFICIENT_GPU_MEMORY": 16,
        "MALFORMED_ENGINE": 32,
        "CUDA_ERROR": 64,
    },
}
NUMPY_TYPES: dict[str, type[np.generic]] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT64": np.int64,
}


class Severity(FakeEnum):
    """How bad a message is."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4

    def __lt__(self, other: Severity) -> bool:
        return int(self) < int(other)

    def __le__(self, other: Severity) -> bool:
        return int(self) <= int(other)


class FakeILogger:
    """FAKE of ILogger, for a class that overrides ``log`` and calls this constructor."""

    Severity = Severity
    INTERNAL_ERROR = Severity.INTERNAL_ERROR
    ERROR = Severity.ERROR
    WARNING = Severity.WARNING
    INFO = Severity.INFO
    VERBOSE = Severity.VERBOSE

    _constructed = False

    def __init__(self) -> None:
        self._constructed = True

    def log(self, severity: Any, msg: str) -> None:
        raise AssertionError("ILogger.log is to be overridden")


class FakeLogger(FakeILogger):
    """FAKE of Logger; it prints nothing."""

    def __init__(self, min_severity: Severity = Severity.WARNING) -> None:
        super().__init__()
        self.min_severity = min_severity

    def log(self, severity: Any, msg: str) -> None:
        """Drop the message."""


class FakeDims:
    """FAKE of Dims: iterable, and equal to tuples and lists, but neither of them; not hashable."""

    MAX_DIMS = 8
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, shape: Any = ()) -> None:
        # NumPy's numbers pass, floats do not.
        self._shape: Shape | None = tuple(size.__index__() for size in shape)

    @classmethod
    def _invalid(cls) -> FakeDims:
        dims = cls()
        dims._shape = None
        return dims

    def __len__(self) -> int:
        assert self._shape is not None, "these Dims are those of a tensor that the engine lacks"
        return len(self._shape)

    def __getitem__(self, index: Any) -> Any:
        assert self._shape is not None, "these Dims are those of a tensor that the engine lacks"
        return self._shape[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | list):
            raise TypeError("Dims can be compared with tuples and lists only")
        return self._shape == tuple(other)

    def __repr__(self) -> str:
        return repr(self._shape)


class FakeHostMemory(bytes):
    """FAKE of IHostMemory: bytes of the library's own."""

    @property
    def nbytes(self) -> int:
        return len(self)


def invalid_dims() -> FakeDims:
    """What TensorRT answers for a tensor that it does not know: a rank of -1."""
    return FakeDims._invalid()


def make_enum(name: str, values: dict[str, int]) -> Any:
    """An enum of this name, each time another."""
    return FakeEnum(name, values)  # type: ignore[call-arg]
