"""A FAKE device behind FakeCuda, not a GPU: handles, failures, and what tests ask about it."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Any

import fake_cuda_names
from fake_memory import Allocation, Memory
from fake_queue import DeviceFaultError
from fake_streams import CudaError, Event, Executable, Graph, Stream, Streams

TENSORRT_FAULTS = frozenset(
    {
        "create_execution_context",
        "deserialize",
        "deserialize_cuda_engine",
        "execute_async_v3",
        "set_input_shape",
        "set_optimization_profile_async",
        "set_tensor_address",
    }
)
"""Methods of the fake of TensorRT that can be told to fail; ``deserialize`` is the cache's."""

EXECUTION = "execution"
"""Not a function: an inference that was queued, and fails on the device while it runs."""

_RELEASING = frozenset(
    {
        "cudaEventDestroy",
        "cudaFree",
        "cudaFreeAsync",
        "cudaFreeHost",
        "cudaGraphDestroy",
        "cudaGraphExecDestroy",
        "cudaStreamDestroy",
    }
)
_DEFAULT_ERRORS = {
    "cudaMalloc": "cudaErrorMemoryAllocation",
    "cudaMallocAsync": "cudaErrorMemoryAllocation",
    "cudaMallocHost": "cudaErrorMemoryAllocation",
    "cudaHostAlloc": "cudaErrorMemoryAllocation",
    EXECUTION: "cudaErrorIllegalAddress",
}


@dataclass
class Fault:
    """A failure that a test has asked for; ``after`` calls succeed before it, ``times`` fail."""

    error: str
    log: str
    times: int
    after: int


class FakeDevice:
    """A FAKE device, not a GPU.

    Args:
        memory_bytes: Memory of the device.
        devices: How many there are; 0 for a machine without.
        capability: Its compute capability.
        name: What it says it is.
        seed: ``None``: work is done when the host waits for it, and no sooner. A number: streams
            run ahead and overtake each other at random, as far as nothing orders them.

    Attributes:
        calls: How often each function has been called.
        memory: What has been allocated; for the fake of TensorRT.
        lock: Held during each call.
        broken: The error that the device has failed with, after which every call answers it.
    """

    def __init__(
        self,
        memory_bytes: int = 1 << 30,
        *,
        devices: int = 1,
        capability: tuple[int, int] = (8, 9),
        name: str = "FAKE device of a test, not a GPU",
        seed: int | None = None,
    ) -> None:
        for key, value in fake_cuda_names.names().items():
            setattr(self, key, value)
        self.devices, self.capability, self.name = devices, capability, name
        self.calls: Counter[str] = Counter()
        self.memory = Memory(memory_bytes)
        self.streams = Streams(seed)
        self.lock = threading.RLock()
        self.broken = ""
        self.device = 0
        self.last_error = "cudaSuccess"
        self._objects: dict[int, Any] = {}
        self._faults: dict[str, list[Fault]] = {}
        self._handles = count(0x1000, 0x10)  # never used again, so that stale ones are found out

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the FAKE of cuda.bindings.runtime has no {name!r}: add it if needed")

    # For tests.

    @property
    def live_allocations(self) -> tuple[Allocation, ...]:
        """Memory that nobody has freed, of the device and pinned."""
        return tuple(self.memory.live.values())

    @property
    def live_streams(self) -> tuple[Stream, ...]:
        return self._live(Stream)

    @property
    def live_events(self) -> tuple[Event, ...]:
        return self._live(Event)

    @property
    def live_graphs(self) -> tuple[Graph | Executable, ...]:
        """Graphs, and what was instantiated of them."""
        return (*self._live(Graph), *self._live(Executable))

    def require_nothing_left(self) -> None:
        """Raise AssertionError for anything that was not given back, or a fault nobody met."""
        assert not self.live_allocations, f"not freed: {self.live_allocations}"
        assert not self.live_streams, f"not destroyed: {self.live_streams}"
        assert not self.live_events, f"not destroyed: {self.live_events}"
        assert not self.live_graphs, f"not destroyed: {self.live_graphs}"
        assert not self._faults, f"never called: {self._faults}"

    def fail_next(
        self, name: str, *, error: str = "", log: str = "", times: int = 1, after: int = 0
    ) -> None:
        """Let a function fail.

        Args:
            name: A function of this class, one of TENSORRT_FAULTS, or EXECUTION.
            error: Name of a ``cudaError_t``; for functions of CUDA and EXECUTION.
            log: What TensorRT logs as an error; for functions of TensorRT.
            times: How often it fails.
            after: How often it succeeds before.
        """
        known = name in TENSORRT_FAULTS or name == EXECUTION or hasattr(type(self), name)
        assert known, f"the FAKE has no function {name!r}"
        error = error or _DEFAULT_ERRORS.get(name, "cudaErrorUnknown")
        assert hasattr(self.cudaError_t, error), f"there is no {error}"
        self._faults.setdefault(name, []).append(Fault(error, log, times, after))

    # For the fake of TensorRT.

    def fault(self, name: str) -> Fault | None:
        """The failure that was asked for, if this call is to fail."""
        waiting = self._faults.get(name, [])
        if not waiting:
            return None
        if waiting[0].after:
            waiting[0].after -= 1
            return None
        fault = waiting[0]
        fault.times -= 1
        if not fault.times:
            waiting.pop(0)
            if not waiting:
                del self._faults[name]
        return fault

    def stream_of(self, handle: Any) -> Stream:
        """The stream of a handle; 0 is the default one."""
        number = 0 if handle is None else int(handle)
        if number in (0, self.cudaStreamLegacy):
            return self.streams.legacy
        found: Stream = self.object(number, Stream)
        return found

    def release(self, allocation: Allocation) -> None:
        """Free memory that nothing in flight may touch."""
        user = self.streams.queue.in_flight(allocation)
        assert user is None, f"{allocation} is freed while {user.what} may still be touching it"
        self.memory.release(allocation)

    # For the functions below.

    def before_call(self, name: str, *, without_device: bool) -> None:
        """Refuse what fails whatever its arguments are."""
        if without_device:
            return
        if not self.devices:
            raise CudaError("cudaErrorNoDevice")
        if self.broken and name not in _RELEASING:
            raise CudaError(self.broken)
        if fault := self.fault(name):
            raise CudaError(fault.error)
        self.streams.queue.run_ahead()

    def refused(self, code: str, values: int) -> tuple[Any, ...]:
        """What a call answers that has failed."""
        self.last_error = code
        return (getattr(self.cudaError_t, code), *[None] * values)

    def break_down(self, fault: DeviceFaultError) -> str:
        """The device has failed for good: nothing that waits will be done."""
        self.broken = fault.code
        self.streams.queue.abandon()
        return self.broken

    def new(self, thing: Any, kind: Any) -> Any:
        """A handle, of NVIDIA's type, for a stream, an event or a graph."""
        handle = next(self._handles)
        self._objects[handle] = thing
        return kind(handle)

    def object(self, handle: Any, kind: type) -> Any:
        """What a handle is of; it must be of this kind, and not destroyed."""
        number = int(handle)
        thing = self._objects.get(number)
        what = kind.__name__.lower()
        assert thing is not None, f"{number:#x} is no {what}, or no longer"
        assert type(thing) is kind, f"{number:#x} is a {type(thing).__name__}, not a {what}"
        return thing

    def forget(self, handle: Any, kind: type) -> Any:
        """The same, and the handle is valid no longer."""
        thing = self.object(handle, kind)
        del self._objects[int(handle)]
        return thing

    def _live(self, kind: type) -> tuple[Any, ...]:
        return tuple(thing for thing in self._objects.values() if type(thing) is kind)
