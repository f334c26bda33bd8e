"""Names of cuda.bindings.runtime for FakeCuda: the real ones, or a FAKE where there are none.

Only what FakeCuda takes or returns. The values of the stand-ins are compared with the real ones in
tests/test_fakes_of_tensorrt.py, on machines that have both.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

installed: Any = None
"""The real module, where cuda-bindings is installed."""
try:
    from cuda.bindings import runtime
except ImportError:
    pass
else:
    installed = runtime

ENUMS: dict[str, dict[str, int]] = {
    "cudaError_t": {
        "cudaSuccess": 0,
        "cudaErrorInvalidValue": 1,
        "cudaErrorMemoryAllocation": 2,
        "cudaErrorInsufficientDriver": 35,
        "cudaErrorNoDevice": 100,
        "cudaErrorInvalidDevice": 101,
        "cudaErrorInvalidResourceHandle": 400,
        "cudaErrorIllegalState": 401,
        "cudaErrorNotReady": 600,
        "cudaErrorIllegalAddress": 700,
        "cudaErrorLaunchFailure": 719,
        "cudaErrorStreamCaptureUnsupported": 900,
        "cudaErrorStreamCaptureInvalidated": 901,
        "cudaErrorStreamCaptureMerge": 902,
        "cudaErrorStreamCaptureUnmatched": 903,
        "cudaErrorStreamCaptureUnjoined": 904,
        "cudaErrorStreamCaptureIsolation": 905,
        "cudaErrorStreamCaptureImplicit": 906,
        "cudaErrorCapturedEvent": 907,
        "cudaErrorStreamCaptureWrongThread": 908,
        "cudaErrorUnknown": 999,
    },
    "cudaMemcpyKind": {
        "cudaMemcpyHostToHost": 0,
        "cudaMemcpyHostToDevice": 1,
        "cudaMemcpyDeviceToHost": 2,
        "cudaMemcpyDeviceToDevice": 3,
        "cudaMemcpyDefault": 4,
    },
    "cudaStreamCaptureMode": {
        "cudaStreamCaptureModeGlobal": 0,
        "cudaStreamCaptureModeThreadLocal": 1,
        "cudaStreamCaptureModeRelaxed": 2,
    },
    "cudaStreamCaptureStatus": {
        "cudaStreamCaptureStatusNone": 0,
        "cudaStreamCaptureStatusActive": 1,
        "cudaStreamCaptureStatusInvalidated": 2,
    },
    "cudaDeviceAttr": {
        "cudaDevAttrMultiProcessorCount": 16,
        "cudaDevAttrIntegrated": 18,
        "cudaDevAttrCanMapHostMemory": 19,
        "cudaDevAttrConcurrentKernels": 31,
        "cudaDevAttrAsyncEngineCount": 40,
        "cudaDevAttrUnifiedAddressing": 41,
        "cudaDevAttrComputeCapabilityMajor": 75,
        "cudaDevAttrComputeCapabilityMinor": 76,
        "cudaDevAttrMemoryPoolsSupported": 115,
    },
}
CONSTANTS: dict[str, int] = {
    "cudaStreamDefault": 0,
    "cudaStreamNonBlocking": 1,
    "cudaStreamLegacy": 1,
    "cudaEventDefault": 0,
    "cudaEventBlockingSync": 1,
    "cudaEventDisableTiming": 2,
    "cudaHostAllocDefault": 0,
    "cudaHostAllocPortable": 1,
    "cudaHostAllocMapped": 2,
    "cudaHostAllocWriteCombined": 4,
}
HANDLES = ("cudaStream_t", "cudaEvent_t", "cudaGraph_t", "cudaGraphExec_t")


class StandInHandle:
    """What stands in for a handle's type where cuda-bindings is not installed."""

    def __init__(self, init_value: int = 0) -> None:
        self._value = init_value

    def __int__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and int(self) == int(other)

    def __hash__(self) -> int:
        return hash(self._value)


def stand_ins() -> dict[str, Any]:
    """Enums, constants and types without cuda-bindings."""
    enums: dict[str, Any] = {name: IntEnum(name, values) for name, values in ENUMS.items()}
    handles = {name: type(name, (StandInHandle,), {}) for name in HANDLES}
    return {**enums, **CONSTANTS, **handles}


def names() -> dict[str, Any]:
    """The same of the installed cuda-bindings; the stand-ins where there is none."""
    if installed is None:
        return stand_ins()
    return {name: getattr(installed, name) for name in (*ENUMS, *CONSTANTS, *HANDLES)}
