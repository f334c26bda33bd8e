"""A FAKE of cuda.bindings.runtime for tests of the TensorRT runner's logic, without any GPU.

Functions have the names, the parameters and the answers of the real ones. Memory and streams are
those of fake_memory and fake_streams: work is done late, and what a GPU would answer with wrong
pixels is an AssertionError. It has no clock: cudaEventElapsedTime is NaN, and no time taken with
this fake says anything of a device.
"""

# ruff: noqa: ARG002, N802, N803 - names of functions and parameters are NVIDIA's

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Concatenate, ParamSpec

import numpy as np

from fake_device import FakeDevice
from fake_memory import Allocation, Span, pageable
from fake_queue import DeviceFaultError, Operation
from fake_streams import CudaError, Event, Executable, Graph, Stream

P = ParamSpec("P")

_VERSION = 13000  # 13.0, as CUDA writes it


def _call(
    values: int = 0, *, without_device: bool = False
) -> Callable[
    [Callable[Concatenate[FakeCuda, P], Any]],
    Callable[Concatenate[FakeCuda, P], tuple[Any, ...]],
]:
    """Make a function of CUDA's API: status, then so many values, ``None`` where it failed."""

    def decorate(
        function: Callable[Concatenate[FakeCuda, P], Any],
    ) -> Callable[Concatenate[FakeCuda, P], tuple[Any, ...]]:
        @functools.wraps(function)
        def call(self: FakeCuda, /, *args: P.args, **kwargs: P.kwargs) -> tuple[Any, ...]:
            name = function.__name__
            with self.lock:
                self.calls[name] += 1
                try:
                    self.before_call(name, without_device=without_device)
                    result = function(self, *args, **kwargs)
                    if self.broken and not without_device:
                        raise CudaError(self.broken)
                except CudaError as error:
                    return self.refused(error.code, values)
                except DeviceFaultError as fault:
                    return self.refused(self.break_down(fault), values)
            success = self.cudaError_t.cudaSuccess
            return (success, *result) if values > 1 else (success, result)[: values + 1]

        return call

    return decorate


class FakeCuda(FakeDevice):
    """A FAKE of cuda.bindings.runtime on a FAKE device, not a GPU; see FakeDevice for arguments."""

    # The device.

    @_call(1)
    def cudaGetDeviceCount(self) -> int:
        return self.devices

    @_call(1)
    def cudaGetDevice(self) -> int:
        return self.device

    @_call()
    def cudaSetDevice(self, device: int) -> None:
        self.device = self._require_device(device)

    @_call(1)
    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> int:
        self._require_device(device)
        attributes = self.cudaDeviceAttr
        known = {
            attributes.cudaDevAttrComputeCapabilityMajor: self.capability[0],
            attributes.cudaDevAttrComputeCapabilityMinor: self.capability[1],
            attributes.cudaDevAttrMultiProcessorCount: 1,
            attributes.cudaDevAttrIntegrated: 0,
            attributes.cudaDevAttrCanMapHostMemory: 1,
            attributes.cudaDevAttrConcurrentKernels: 1,
            attributes.cudaDevAttrAsyncEngineCount: 2,
            attributes.cudaDevAttrUnifiedAddressing: 1,
            attributes.cudaDevAttrMemoryPoolsSupported: 1,
        }
        assert attr in known, f"the FAKE device has no attribute {attr!r}: add it if needed"
        return known[attr]

    @_call(1)
    def cudaGetDeviceProperties(self, device: int) -> SimpleNamespace:
        self._require_device(device)
        return SimpleNamespace(
            name=self.name.encode(),
            totalGlobalMem=self.memory.total,
            major=self.capability[0],
            minor=self.capability[1],
            multiProcessorCount=1,
            integrated=0,
        )

    @_call()
    def cudaDeviceSynchronize(self) -> None:
        self.streams.wait_for_all()

    @_call(1, without_device=True)
    def cudaRuntimeGetVersion(self) -> int:
        return _VERSION

    @_call(1, without_device=True)
    def cudaDriverGetVersion(self) -> int:
        return _VERSION if self.devices else 0

    # Errors.

    @_call(1, without_device=True)
    def cudaGetErrorString(self, error: Any) -> bytes:
        return f"{self.cudaError_t(error).name}, as the FAKE says".encode()

    @_call(1, without_device=True)
    def cudaGetErrorName(self, error: Any) -> bytes:
        return str(self.cudaError_t(error).name).encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        with self.lock:
            last, self.last_error = self.last_error, self.broken or "cudaSuccess"
            return (getattr(self.cudaError_t, last),)

    def cudaPeekAtLastError(self) -> tuple[Any, ...]:
        return (getattr(self.cudaError_t, self.last_error),)

    # Memory.

    @_call(1)
    def cudaMalloc(self, size: int) -> int:
        self.streams.forbid_unsafe()
        return self._allocate("device", size).address if size else 0

    @_call()
    def cudaFree(self, devPtr: Any) -> None:
        self.streams.forbid_unsafe()
        if address := _address(devPtr):
            self.release(self._allocated("device", address, "cudaFree"))

    @_call(1)
    def cudaMallocAsync(self, size: int, hStream: Any) -> int:
        stream = self._not_capturing(hStream, "cudaMallocAsync")
        allocation = self._allocate("device", size)
        whole = Span(allocation, allocation.address, allocation.size)
        self.streams.add(stream, Operation("cudaMallocAsync", writes=(whole,)))
        return allocation.address

    @_call()
    def cudaFreeAsync(self, devPtr: Any, hStream: Any) -> None:
        stream = self._not_capturing(hStream, "cudaFreeAsync")
        allocation = self._allocated("device", _address(devPtr), "cudaFreeAsync")
        whole = Span(allocation, allocation.address, allocation.size)
        work = Operation("cudaFreeAsync", lambda: self.memory.release(allocation), writes=(whole,))
        self.streams.add(stream, work)

    @_call(1)
    def cudaMallocHost(self, size: int) -> int:
        self.streams.forbid_unsafe()
        return self._allocate("pinned", size).address

    @_call(1)
    def cudaHostAlloc(self, size: int, flags: int) -> int:
        self.streams.forbid_unsafe()
        return self._allocate("pinned", size).address

    @_call()
    def cudaFreeHost(self, ptr: Any) -> None:
        self.streams.forbid_unsafe()
        self.release(self._allocated("pinned", _address(ptr), "cudaFreeHost"))

    @_call(2)
    def cudaMemGetInfo(self) -> tuple[int, int]:
        return self.memory.free_bytes, self.memory.total

    # Copies.

    @_call()
    def cudaMemcpyAsync(self, dst: Any, src: Any, count: int, kind: Any, stream: Any) -> None:
        self._copy(_address(dst), _address(src), count, kind, self.stream_of(stream))

    @_call()
    def cudaMemcpy(self, dst: Any, src: Any, count: int, kind: Any) -> None:
        self.streams.forbid_unsafe()
        self.streams.require_no_blocking_capture()
        work = self._copy(_address(dst), _address(src), count, kind, self.streams.legacy)
        self.streams.queue.finish(work)

    @_call()
    def cudaMemsetAsync(self, devPtr: Any, value: int, count: int, stream: Any) -> None:
        self._fill(_address(devPtr), value, count, self.stream_of(stream))

    @_call()
    def cudaMemset(self, devPtr: Any, value: int, count: int) -> None:
        self._fill(_address(devPtr), value, count, self.streams.legacy)

    # Streams.

    @_call(1)
    def cudaStreamCreate(self) -> Any:
        return self._new_stream(self.cudaStreamDefault)

    @_call(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return self._new_stream(flags)

    @_call(1)
    def cudaStreamCreateWithPriority(self, flags: int, priority: int) -> Any:
        return self._new_stream(flags)

    @_call()
    def cudaStreamDestroy(self, stream: Any) -> None:
        self.streams.destroy(self.forget(stream, Stream))

    @_call()
    def cudaStreamSynchronize(self, stream: Any) -> None:
        self.streams.wait(self.stream_of(stream))

    @_call()
    def cudaStreamQuery(self, stream: Any) -> None:
        if not self.streams.poll(self.stream_of(stream)):
            raise CudaError("cudaErrorNotReady")

    @_call()
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> None:
        self.streams.wait_event(self.stream_of(stream), self.object(event, Event))

    # Events.

    @_call(1)
    def cudaEventCreate(self) -> Any:
        return self.new(Event(timing=True), self.cudaEvent_t)

    @_call(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        timing = not flags & self.cudaEventDisableTiming
        return self.new(Event(timing=timing), self.cudaEvent_t)

    @_call()
    def cudaEventRecord(self, event: Any, stream: Any) -> None:
        self.streams.record(self.object(event, Event), self.stream_of(stream))

    @_call()
    def cudaEventSynchronize(self, event: Any) -> None:
        self.streams.require_done(self.object(event, Event))

    @_call()
    def cudaEventQuery(self, event: Any) -> None:
        if not self.streams.poll_event(self.object(event, Event)):
            raise CudaError("cudaErrorNotReady")

    @_call(1)
    def cudaEventElapsedTime(self, start: Any, end: Any) -> float:
        events = [self.object(event, Event) for event in (start, end)]
        for event in events:
            if event.operation is None or not event.timing:
                raise CudaError("cudaErrorInvalidResourceHandle")
        if not all(event.operation.done for event in events):
            raise CudaError("cudaErrorNotReady")
        return float("nan")

    @_call()
    def cudaEventDestroy(self, event: Any) -> None:
        self.forget(event, Event)

    # Graphs.

    @_call()
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        self.streams.begin(self.stream_of(stream), int(mode))

    @_call(1)
    def cudaStreamEndCapture(self, stream: Any) -> Any:
        return self.new(self.streams.end(self.stream_of(stream)), self.cudaGraph_t)

    @_call(1)
    def cudaStreamIsCapturing(self, stream: Any) -> Any:
        status, capture = self.cudaStreamCaptureStatus, self.stream_of(stream).capture
        if capture is None:
            return status.cudaStreamCaptureStatusNone
        if capture.valid:
            return status.cudaStreamCaptureStatusActive
        return status.cudaStreamCaptureStatusInvalidated

    @_call(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        captured = self.object(graph, Graph)
        return self.new(Executable(captured.operations), self.cudaGraphExec_t)

    @_call()
    def cudaGraphUpload(self, graphExec: Any, stream: Any) -> None:
        self.object(graphExec, Executable)
        self._not_capturing(stream, "cudaGraphUpload")

    @_call()
    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> None:
        self.streams.launch(self.object(graphExec, Executable), self.stream_of(stream))

    @_call()
    def cudaGraphDestroy(self, graph: Any) -> None:
        self.forget(graph, Graph)

    @_call()
    def cudaGraphExecDestroy(self, graphExec: Any) -> None:
        self.forget(graphExec, Executable)

    # What they share.

    def _require_device(self, device: int) -> int:
        if not 0 <= device < self.devices:
            raise CudaError("cudaErrorInvalidDevice")
        return device

    def _allocate(self, kind: str, size: int) -> Allocation:
        allocation = self.memory.allocate(kind, int(size), "of the caller")
        if allocation is None:
            raise CudaError("cudaErrorMemoryAllocation")
        return allocation

    def _allocated(self, kind: str, address: int, what: str) -> Allocation:
        allocation = self.memory.span(kind, address, 0, what).allocation
        assert allocation.address == address, f"{what} of the middle of {allocation}"
        assert allocation.owner == "of the caller", f"{what} of what is not yours: {allocation}"
        return allocation

    def _new_stream(self, flags: int) -> Any:
        number = self.calls["cudaStreamCreate"] + self.calls["cudaStreamCreateWithFlags"]
        blocking = not flags & self.cudaStreamNonBlocking
        return self.new(
            self.streams.create(f"stream {number}", blocking=blocking), self.cudaStream_t
        )

    def _not_capturing(self, handle: Any, what: str) -> Stream:
        stream = self.stream_of(handle)
        assert stream.capture is None, f"the FAKE knows no {what} in a stream that captures"
        return stream

    def _fill(self, address: int, value: int, size: int, stream: Stream) -> None:
        span = self.memory.span("device", address, size, "cudaMemset")
        self.streams.add(
            stream, Operation(f"cudaMemset of {span}", lambda: span.bytes.fill(value), (), (span,))
        )

    def _copy(self, target: int, source: int, size: int, kind: Any, stream: Stream) -> Operation:
        """Queue a copy; with pageable memory of the host, as much of it is done as CUDA does."""
        from_device, to_device = self._directions(target, source, kind)
        what = f"{self.cudaMemcpyKind(kind).name} of {size} bytes in {stream.name}"
        read = self._side(from_device, source, size, f"source of {what}")
        write = self._side(to_device, target, size, f"target of {what}")
        staged = read.bytes if read else pageable(source, size, what).copy()
        work = Operation(
            what,
            lambda: np.copyto(write.bytes if write else pageable(target, size, what), staged),
            (read,) if read else (),
            (write,) if write else (),
        )
        if stream.capture is not None:
            assert None not in (read, write), f"{what} is captured, but not all of it is pinned"
        self.streams.add(stream, work)
        # Pageable memory is read before the call returns, and written before it returns.
        if write is None or not (from_device or to_device):
            self.streams.queue.finish(work)
        return work

    def _directions(self, target: int, source: int, kind: Any) -> tuple[bool, bool]:
        kinds = self.cudaMemcpyKind
        if kind == kinds.cudaMemcpyDefault:
            owners = [self.memory.owning(address, "a copy") for address in (source, target)]
            first, second = (owner is not None and owner.kind == "device" for owner in owners)
            return first, second
        return (
            kind in (kinds.cudaMemcpyDeviceToHost, kinds.cudaMemcpyDeviceToDevice),
            kind in (kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToDevice),
        )

    def _side(self, on_device: bool, address: int, size: int, what: str) -> Span | None:
        """Device or pinned memory, checked; ``None`` for pageable memory."""
        if not on_device and self.memory.owning(address, what) is None:
            return None
        return self.memory.span("device" if on_device else "pinned", address, size, what)


def _address(value: Any) -> int:
    """What cuda-bindings takes for an address: a number, or the memory of a buffer."""
    if value is None:
        return 0
    if isinstance(value, int):
        return value
    # NumPy's numbers are buffers as well: the address would be that of the number.
    assert not isinstance(value, np.generic), f"{value!r} is no int: pass int(address)"
    if hasattr(value, "__int__"):
        return int(value)
    return int(np.frombuffer(value, np.uint8).ctypes.data)
