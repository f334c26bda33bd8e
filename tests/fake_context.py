"""FAKE of IExecutionContext: shapes, addresses and device memory, and work put into a stream."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fake_device import EXECUTION
from fake_engine import FakeEngine
from fake_library import ACTIVATION_ALIGNMENT, Library, activation_bytes
from fake_memory import Allocation, Span
from fake_network import Tensor
from fake_plan import Shape
from fake_queue import DeviceFaultError, Operation
from fake_streams import CudaError
from fake_tensorrt_names import FakeDims, Severity, invalid_dims


class FakeContext:
    """FAKE of IExecutionContext.

    What it does on the device touches memory that stands for its state, so that one context in two
    streams, and one that is gone before its work is done, are found out.

    Raises:
        MemoryError: Its activations do not fit; those of USER_MANAGED are the caller's.
    """

    _library: Library

    def __init__(self, engine: FakeEngine, config: Any) -> None:
        self._engine, self._config = engine, config
        self._network, self._logger = engine._network, engine._logger
        self._strategy = config.get_execution_context_allocation_strategy().name
        self._profile = 0
        self._shapes: dict[str, Shape] = self._fixed_shapes()
        self._addresses: dict[str, int] = dict.fromkeys(self._network.tensors, 0)
        self._memory: Span | None = None
        self._own: Allocation | None = None
        self._sized_for: dict[str, Shape] | None = None
        self._settled = -1
        self._state = Allocation("context", 1, "state of a context")
        self._generation = 0  # changes with whatever a captured graph holds on to
        self._allocate()
        self.name = ""

    def __del__(self) -> None:
        if state := getattr(self, "_state", None):
            with self._library.cuda.lock:
                user = self._library.cuda.streams.queue.in_flight(state)
                state.live = False
                self._release()
            assert user is None, f"a context is destroyed while {user.what} may still be at work"

    def _fixed_shapes(self) -> dict[str, Shape]:
        tensors = (self._network.tensors[name] for name in self._network.inputs)
        return {tensor.name: tensor.shape for tensor in tensors if -1 not in tensor.shape}

    def _allocate(self) -> None:
        sizes = {
            "STATIC": self._engine.device_memory_size_v2,
            "ON_PROFILE_CHANGE": self._engine._activations(self._profile),
        }
        if size := sizes.get(self._strategy, 0):
            self._own = self._library.allocate(size, "activations of a context")
            self._memory = Span(self._own, self._own.address, size)

    def _release(self) -> None:
        if self._own is not None:
            self._library.cuda.release(self._own)
            self._own = self._memory = None

    def _refuse(self, where: str, what: object) -> bool:
        self._library.error(self._logger, where, what)
        return False

    @property
    def engine(self) -> FakeEngine:
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    @property
    def all_binding_shapes_specified(self) -> bool:
        return not self.infer_shapes()

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        where, library = "setOptimizationProfileAsync", self._library
        with library.cuda.lock:
            if library.failed("set_optimization_profile_async", self._logger):
                return False
            if not 0 <= profile_index < self._engine.num_optimization_profiles:
                return self._refuse(where, f"there is no profile {profile_index}")
            if profile_index == self._profile:
                return True
            try:
                work = Operation("a change of the profile", writes=self._state_span())
                library.cuda.streams.add(library.cuda.stream_of(stream_handle), work)
                self._profile, self._shapes = profile_index, self._fixed_shapes()
                self._sized_for = None
                self._generation += 1
                if self._strategy == "ON_PROFILE_CHANGE":
                    library.require_device()
                    self._release()
                    self._allocate()
            except (CudaError, MemoryError) as error:
                return self._refuse(where, error)
            return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        if not isinstance(shape, tuple | list | FakeDims):
            raise TypeError(f"a shape is a tuple, a list or Dims, not {type(shape).__name__}")
        wanted = tuple(FakeDims(shape))
        if self._library.failed("set_input_shape", self._logger):
            return False
        if name not in self._network.inputs:
            return self._refuse("setInputShape", f"there is no input {name!r}")
        low, _, high = self._engine._profiles[self._profile][name]
        inside = len(wanted) == len(low) and all(
            a <= size <= b for a, size, b in zip(low, wanted, high, strict=True)
        )
        if not inside:
            where = f"profile {self._profile} of {name}: {low} to {high}"
            return self._refuse("setInputShape", f"{wanted} lies outside {where}")
        self._generation += self._shapes.get(name) != wanted
        self._shapes[name] = wanted
        return True

    def get_tensor_shape(self, name: str) -> FakeDims:
        tensor = self._engine._tensor(name, "getTensorShape")
        if tensor is None:
            return invalid_dims()
        if tensor.is_input:
            return FakeDims(self._shapes.get(name, tensor.shape))
        if self.infer_shapes():
            return FakeDims(tensor.shape)
        return FakeDims(self._network.output_shapes(self._shapes)[name])

    def infer_shapes(self) -> list[str]:
        return [name for name in self._network.inputs if name not in self._shapes]

    def get_max_output_size(self, name: str) -> int:
        tensor = self._network.tensors.get(name)
        if tensor is None or tensor.is_input or self.infer_shapes():
            return -1
        largest = {name: s[2] for name, s in self._engine._profiles[self._profile].items()}
        return math.prod(self._network.output_shapes(largest)[name]) * tensor.dtype.itemsize

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._library.failed("set_tensor_address", self._logger):
            return False
        if name not in self._addresses:
            return self._refuse("setTensorAddress", f"there is no tensor {name!r}")
        assert memory % ACTIVATION_ALIGNMENT == 0, (
            f"{memory:#x} for {name!r}: addresses of tensors are multiples of 256"
        )
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def update_device_memory_size_for_shapes(self) -> int:
        if self.infer_shapes():
            self._refuse("updateDeviceMemorySizeForShapes", "shapes of inputs are missing")
            return 0
        self._sized_for = dict(self._shapes)
        return activation_bytes(sum(math.prod(shape) for shape in self._shapes.values()))

    def set_device_memory(self, memory: int, size: int) -> None:
        assert self._strategy == "USER_MANAGED", "device memory for a context that has its own"
        assert memory % ACTIVATION_ALIGNMENT == 0, f"device memory at {memory:#x}: not 256-aligned"
        given = self._span("device memory", memory, size) if memory else None
        self._generation += given != self._memory
        self._memory = given

    def _set_device_memory_v1(self, memory: int) -> None:
        self.set_device_memory(memory, self._engine.device_memory_size_v2)

    device_memory = property(None, _set_device_memory_v1)

    def _required_bytes(self) -> int:
        """Of device memory; less than the whole only after it was asked for these shapes."""
        if self._sized_for == self._shapes:
            return self.update_device_memory_size_for_shapes()
        return self._engine.device_memory_size_v2

    def _span(self, what: str, address: int, size: int) -> Span:
        return self._library.cuda.memory.span("device", address, size, what)

    def _state_span(self) -> tuple[Span, ...]:
        return (Span(self._state, self._state.address, 1),)

    def execute_async_v3(self, stream_handle: int) -> bool:
        library, where = self._library, "enqueueV3"
        with library.cuda.lock:
            if library.failed("execute_async_v3", self._logger):
                return False
            if problem := self._problem():
                return self._refuse(where, problem)
            stream = library.cuda.stream_of(stream_handle)
            if stream is library.cuda.streams.legacy:
                self._logger.log(Severity.WARNING, "FAKE enqueueV3: the default stream is slow")
            if stream.capture is not None and not self._is_settled():
                # The first run of a shape allocates and waits.
                stream.capture.valid = False
                return self._refuse(where, "the first run of a shape cannot be captured")
            try:
                if library.cuda.broken:
                    raise CudaError(library.cuda.broken)
                library.cuda.streams.add(stream, self._work())
            except CudaError as error:
                return self._refuse(where, error)
            if stream.capture is None:
                self._settled = self._generation
                self._remember_kernels()
            return True

    def _problem(self) -> str:
        if missing := self.infer_shapes():
            return f"shapes are not set: {missing}"
        if missing := [name for name, address in self._addresses.items() if not address]:
            return f"addresses are not set: {missing}"
        needed, there = self._required_bytes(), self._memory.size if self._memory else 0
        if there < needed:
            return f"{needed} bytes of device memory are needed, {there} set"
        return ""

    def _is_settled(self) -> bool:
        return self._settled == self._generation

    def _relaunch_check(self) -> Callable[[], None]:
        """For a graph of what is done now: NVIDIA's guide leaves undefined what comes of others."""
        captured, current = self._generation, weakref.ref(self)

        def check() -> None:
            context = current()
            assert context is not None and context._generation == captured, (  # noqa: PT018
                "a graph is launched whose context has got other shapes or memory since"
            )

        return check

    def _remember_kernels(self) -> None:
        if self._config._cache is not None:
            self._config._cache._entries.add(str(sorted(self._shapes.items())))

    def _work(self) -> Operation:
        """The inference, with the shapes and addresses of now."""
        shapes = {**self._shapes, **self._network.output_shapes(self._shapes)}
        tensors = self._network.tensors
        spans = {
            name: self._span(
                f"tensor {name!r}",
                self._addresses[name],
                math.prod(shape) * tensors[name].dtype.itemsize,
            )
            for name, shape in shapes.items()
        }
        assert self._memory is not None
        writes = [spans[name] for name in self._network.outputs] + [self._memory]
        reads = [spans[name] for name in self._network.inputs]
        _require_apart(writes, reads)
        return Operation(
            f"an inference of {self._engine.name[:40] or 'an engine'}",
            self._computation(tensors, spans, shapes, self._memory),
            tuple(reads),
            (*writes, *self._state_span()),
            self._relaunch_check(),
        )

    def _computation(
        self,
        tensors: dict[str, Tensor],
        spans: dict[str, Span],
        shapes: dict[str, Shape],
        memory: Span,
    ) -> Callable[[], None]:
        network, fault = self._network, self._library.cuda.fault(EXECUTION)

        def compute() -> None:
            if fault is not None:
                raise DeviceFaultError(fault.error)
            memory.bytes[: 1 << 16] = 0xA5  # nobody else's, while it runs
            feeds = {
                name: spans[name].bytes.view(tensors[name].dtype).reshape(shapes[name])
                for name in network.inputs
            }
            for name, result in network.run(feeds).items():
                assert result.shape == shapes[name], f"{name} has the shape {result.shape}"
                spans[name].bytes[:] = np.ascontiguousarray(result).view(np.uint8).reshape(-1)

        return compute


class FakeRtxContext(FakeContext):
    """FAKE of the IExecutionContext of TensorRT-RTX."""

    def is_stream_capturable(self, stream: int) -> bool:
        default = self._library.cuda.stream_of(stream) is self._library.cuda.streams.legacy
        return not default and self._is_settled()


def _require_apart(writes: Sequence[Span], reads: Sequence[Span]) -> None:
    for number, written in enumerate(writes):
        for other in (*writes[number + 1 :], *reads):
            assert not written.overlaps(other), (
                f"one inference writes {written} and uses {other}, which overlap"
            )
