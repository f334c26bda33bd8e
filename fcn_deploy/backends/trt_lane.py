"""A stream that an engine runs in, with contexts, buffers and graphs for each shape that came."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from fcn_deploy.backends.cuda import Capture, DeviceMemory, Graph, PinnedMemory, Stream
from fcn_deploy.backends.trt_engine import Engine, shape_text
from fcn_deploy.errors import DeviceError, DeviceMemoryError, ShapeError

log = logging.getLogger("fcn_deploy")

_SHAPES_KEPT = 8
"""Shapes of which a lane keeps context and graph: crops, last batches, bands, and two images."""


@dataclass
class _Prepared:
    """What one shape of input has been prepared for it.

    Attributes:
        context: Of its own: a graph holds on to the state of its context.
        activations: Bytes that the context needs while it runs.
        shapes: Of input and outputs.
        bound: Whether the context knows the addresses of this moment.
        runs: How often it ran since then.
        graph: The whole run, recorded; ``None`` until the second one.
    """

    context: Any
    activations: int
    shapes: dict[str, tuple[int, ...]]
    bound: bool = False
    runs: int = 0
    graph: Graph | None = None


class Lane:
    """A stream of its own for one engine; one run is under way at most.

    Memory is that of the largest shape that came so far, not of the largest that may come.

    Args:
        loaded: What runs.
        graphs: Record the second run of a shape, and launch the record from then on. RTX does that
            itself.
    """

    def __init__(self, loaded: Engine, *, graphs: bool = True) -> None:
        self._loaded, self._cuda = loaded, loaded.cuda
        self._record = graphs and not loaded.flavour.is_rtx
        self._stream = Stream(self._cuda)
        self._prepared: OrderedDict[tuple[int, int, int], _Prepared] = OrderedDict()
        self._activations = DeviceMemory(self._cuda)
        self._device = {n: DeviceMemory(self._cuda) for n in (loaded.input, *loaded.outputs)}
        self._host = {n: PinnedMemory(self._cuda) for n in (loaded.input, *loaded.outputs)}
        self._under_way: _Prepared | None = None

    def start(self, batch: Sequence[NDArray[Any]]) -> None:
        """Queue one run; returns before it is done.

        Args:
            batch: N arrays (H, W, channels) of the input's type. They are copied: the caller may
                change them at once.

        Raises:
            ShapeError: Outside of every profile.
            DeviceMemoryError: Too little memory for this shape; nothing is queued then, and the
                lane has given all of its own back.
            DeviceError: The engine does not run.
        """
        assert self._under_way is None, "a lane runs one batch at a time"
        height, width = batch[0].shape[:2]
        try:
            prepared = self._prepare((len(batch), height, width))
        except DeviceMemoryError:
            self.release()
            raise
        shape = prepared.shapes[self._loaded.input]
        staged = self._host[self._loaded.input].view(shape, self._loaded.types[self._loaded.input])
        for index, array in enumerate(batch):
            staged[index] = array
        try:
            self._launch(prepared)
        except DeviceError:
            self._settle()
            raise
        self._under_way = prepared

    def _launch(self, prepared: _Prepared) -> None:
        if prepared.graph is not None:
            prepared.graph.launch(self._stream)
        elif self._record and prepared.runs == 1:
            # Not the first run: it may allocate, which no graph can hold.
            self._recorded(prepared)
        else:
            self._queue(prepared)
        prepared.runs += 1

    def finish(self) -> dict[str, NDArray[Any]]:
        """Wait for the run that was started, and return its outputs; the caller owns them.

        Raises:
            DeviceError: It failed on the device.
        """
        prepared, self._under_way = self._under_way, None
        assert prepared is not None, "nothing was started"
        self._stream.wait()
        return {
            name: self._host[name].view(prepared.shapes[name], self._loaded.types[name]).copy()
            for name in self._loaded.outputs
        }

    def _queue(self, prepared: _Prepared) -> None:
        name, stream = self._loaded.input, self._stream
        size = self._size(prepared, name)
        stream.upload(self._device[name].address, self._host[name].address, size)
        if not prepared.context.execute_async_v3(int(stream)):
            raise DeviceError(
                f"{self._loaded.name} failed to run: {self._loaded.flavour.first_error}.",
                "See what works here: fcn-deploy doctor",
            )
        for name in self._loaded.outputs:
            size = self._size(prepared, name)
            stream.download(self._host[name].address, self._device[name].address, size)

    def _recorded(self, prepared: _Prepared) -> None:
        capture = Capture(self._cuda, self._stream)
        try:
            with capture:
                self._queue(prepared)
        except DeviceError as error:
            self._record = False
            log.warning("%s runs without CUDA graphs: %s", self._loaded.name, error.problem)
            self._queue(prepared)
            return
        prepared.graph = capture.graph
        assert prepared.graph is not None
        prepared.graph.launch(self._stream)

    def _size(self, prepared: _Prepared, tensor: str) -> int:
        return math.prod(prepared.shapes[tensor]) * int(self._loaded.types[tensor].itemsize)

    def _prepare(self, shape: tuple[int, int, int]) -> _Prepared:
        prepared = self._prepared.get(shape)
        if prepared is None:
            prepared = self._context_for(shape)
            self._prepared[shape] = prepared
            if len(self._prepared) > _SHAPES_KEPT:
                _, oldest = self._prepared.popitem(last=False)
                _drop_graph(oldest)
        self._prepared.move_to_end(shape)
        moved = self._activations.reserve(prepared.activations)
        for name in prepared.shapes:
            size = self._size(prepared, name)
            moved |= self._device[name].reserve(size)
            moved |= self._host[name].reserve(size)
        if moved:
            for other in self._prepared.values():
                _drop_graph(other)
                other.bound, other.runs = False, 0
        if not prepared.bound:
            self._bind(prepared)
        return prepared

    def _context_for(self, shape: tuple[int, int, int]) -> _Prepared:
        loaded = self._loaded
        index = loaded.profile_of(shape)
        loaded.flavour.messages.clear()
        context = loaded.create_context()
        dims = (*shape, loaded.channels)
        if not context.set_optimization_profile_async(index, int(self._stream)):
            raise DeviceError(f"{loaded.name} refuses its profile {index}: {self._reason()}.")
        self._stream.wait()
        if not context.set_input_shape(loaded.input, dims):
            raise ShapeError(f"{loaded.name} refuses {shape_text(shape)}: {self._reason()}.")
        sizes = {n: tuple(int(d) for d in context.get_tensor_shape(n)) for n in loaded.outputs}
        if unknown := [name for name, dims_ in sizes.items() if min(dims_) < 0]:
            raise DeviceError(f"{loaded.name} does not say how large {unknown[0]} will be.")
        activations = int(context.update_device_memory_size_for_shapes())
        return _Prepared(context, activations, {loaded.input: dims, **sizes})

    def _reason(self) -> str:
        return self._loaded.flavour.first_error

    def _bind(self, prepared: _Prepared) -> None:
        context, memory = prepared.context, self._activations
        if prepared.activations:
            context.set_device_memory(memory.address, memory.size)
        for name in prepared.shapes:
            if not context.set_tensor_address(name, self._device[name].address):
                raise DeviceError(f"{self._loaded.name} has no tensor {name}: {self._reason()}.")
        prepared.bound = True

    def abandon(self) -> None:
        """Wait for the run that was started, if any, and forget it."""
        if self._under_way is not None:
            self._under_way = None
            self._settle()

    def _settle(self) -> None:
        """Wait until nothing uses the buffers any more, whatever becomes of it."""
        try:
            self._stream.wait()
        except DeviceError:  # whoever waits has been told of a failure, or is about to be
            log.debug("a run of %s had failed", self._loaded.name)

    def release(self) -> None:
        """Give back all memory that depends on shapes; the next run takes its own again."""
        assert self._under_way is None, "a run still uses it"
        for prepared in self._prepared.values():
            _drop_graph(prepared)
        self._prepared.clear()
        self._activations.free()
        for name in self._device:
            self._device[name].free()
            self._host[name].free()

    def close(self) -> None:
        """Wait for what is under way, and give everything back."""
        if self._stream.handle is None:
            return
        self.abandon()
        self.release()
        self._stream.close()


def _drop_graph(prepared: _Prepared) -> None:
    if prepared.graph is not None:
        prepared.graph.close()
        prepared.graph = None
