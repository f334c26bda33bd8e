"""CUDA's runtime API with errors as exceptions, and memory that is given back."""

from __future__ import annotations

import ctypes
import math
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.errors import DeviceError, DeviceMemoryError

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_ALIGNMENT = 256


class Cuda:
    """CUDA's runtime API on the first device.

    Args:
        api: The module ``cuda.bindings.runtime``.
    """

    def __init__(self, api: Any) -> None:
        self.api = api

    def call(self, result: tuple[Any, ...]) -> Any:
        """The value of a call.

        Raises:
            DeviceMemoryError: The device, or the host's pinned memory, is full.
            DeviceError: It failed otherwise; what the driver says.
        """
        status, *values = result
        if int(status) == _OUT_OF_MEMORY:
            self.api.cudaGetLastError()  # or every later call would report it again
            raise DeviceMemoryError(
                "The GPU has too little free memory.",
                "Pass a smaller --tile, or build with a smaller --max-shape or --max-batch.",
            )
        if int(status):
            reason = self.api.cudaGetErrorString(status)[1].decode()
            raise DeviceError(
                f"The GPU reports: {reason}.", "See what works here: fcn-deploy doctor"
            )
        return values[0] if values else None

    def free_mib(self) -> tuple[int, int]:
        """Free and total memory of the device, in MiB."""
        _, free, total = self.api.cudaMemGetInfo()
        return int(free) >> 20, int(total) >> 20


class DeviceMemory:
    """A block on the device that grows when it must."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> bool:
        """Have at least ``size`` bytes; the content is lost where that takes another block.

        Nothing that is under way may use it.

        Returns:
            Whether the address has changed.

        Raises:
            DeviceMemoryError: There are not as many; the block is gone then.
        """
        if size <= self.size:
            return False
        self.free()
        size = -(-size // _ALIGNMENT) * _ALIGNMENT
        self.address = int(self._cuda.call(self._cuda.api.cudaMalloc(size)))
        self.size = size
        return True

    def free(self) -> None:
        """Give it back."""
        if self.address:
            self._cuda.api.cudaFree(self.address)
        self.address = self.size = 0


class PinnedMemory:
    """A block of page-locked host memory that grows when it must.

    Only from and to such memory do copies run beside computation.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.address = 0
        self.size = 0

    def reserve(self, size: int) -> bool:
        """As :meth:`DeviceMemory.reserve`."""
        if size <= self.size:
            return False
        self.free()
        self.address = int(self._cuda.call(self._cuda.api.cudaHostAlloc(size, 0)))
        self.size = size
        return True

    def view(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The first bytes as an array; dead as soon as the block grows or goes."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        block = (ctypes.c_uint8 * size).from_address(self.address)
        return np.frombuffer(block, dtype).reshape(shape)

    def free(self) -> None:
        """Give it back."""
        if self.address:
            self._cuda.api.cudaFreeHost(self.address)
        self.address = self.size = 0


class Stream:
    """A queue of work on the device."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        # Not the default stream's kind, which would wait for everything else.
        self.handle = cuda.call(cuda.api.cudaStreamCreateWithFlags(_NON_BLOCKING))

    def __int__(self) -> int:
        return int(self.handle)

    def upload(self, target: int, source: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from pinned memory to the device."""
        self._copy(target, source, size, self._cuda.api.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, target: int, source: int, size: int) -> None:
        """Queue a copy of ``size`` bytes from the device to pinned memory."""
        self._copy(target, source, size, self._cuda.api.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        api = self._cuda.api
        self._cuda.call(api.cudaMemcpyAsync(target, source, size, kind, self.handle))

    def wait(self) -> None:
        """Return when all that was queued is done."""
        self._cuda.call(self._cuda.api.cudaStreamSynchronize(self.handle))

    def close(self) -> None:
        """Give it back."""
        if self.handle is not None:
            self._cuda.api.cudaStreamDestroy(self.handle)
            self.handle = None


class Capture:
    """Work that is recorded on a stream instead of done, as a graph to be launched at once.

    A context manager: ``graph`` is there after it ended without an exception, else ``None``.
    """

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda, self._stream = cuda, stream
        self.graph: Graph | None = None

    def __enter__(self) -> Capture:
        api = self._cuda.api
        # Other threads go on allocating meanwhile, which concerns them alone.
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda.call(api.cudaStreamBeginCapture(self._stream.handle, mode))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        api = self._cuda.api
        result = api.cudaStreamEndCapture(self._stream.handle)
        if kind is not None:
            api.cudaGetLastError()
            if not int(result[0]) and result[1]:
                api.cudaGraphDestroy(result[1])
            return
        recorded = self._cuda.call(result)
        try:
            self.graph = Graph(self._cuda, self._cuda.call(api.cudaGraphInstantiate(recorded, 0)))
        finally:
            api.cudaGraphDestroy(recorded)


class Graph:
    """Recorded work, launched by one call; it refers to the addresses that were recorded."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self._cuda, self._handle = cuda, handle

    def launch(self, stream: Stream) -> None:
        """Queue all of it."""
        self._cuda.call(self._cuda.api.cudaGraphLaunch(self._handle, stream.handle))

    def close(self) -> None:
        """Give it back."""
        if self._handle is not None:
            self._cuda.api.cudaGraphExecDestroy(self._handle)
            self._handle = None
