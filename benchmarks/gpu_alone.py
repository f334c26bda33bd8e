"""An engine by itself, between two events on its stream: what the GPU needs, without the copies."""

from __future__ import annotations

import math
from typing import Any

from gpu_job import Pixels

from fcn_deploy.backends.cuda import Capture, DeviceMemory, Graph, PinnedMemory, Stream
from fcn_deploy.backends.trt_engine import Engine


class EngineAlone:
    """One engine on crops of one shape that stay where they are.

    Args:
        engine: Its only output that counts is ``labels``.
        shape: N, H, W.
        graphs: Record the launch of the engine, and replay it; RTX does that itself.
    """

    def __init__(self, engine: Engine, shape: tuple[int, int, int], *, graphs: bool) -> None:
        cuda, api = engine.cuda, engine.cuda.api
        self._engine, self._cuda, self._api = engine, cuda, api
        self.seconds = math.nan
        self._stream = Stream(cuda)
        self._events = [cuda.call(api.cudaEventCreate()) for _ in range(2)]
        self._record = graphs and not engine.flavour.is_rtx
        self._graph: Graph | None = None
        self._runs = 0
        self._context = self._context_for(shape)
        dims = {engine.input: (*shape, engine.channels)}
        dims |= {n: tuple(map(int, self._context.get_tensor_shape(n))) for n in engine.outputs}
        self._sizes = {n: math.prod(d) * int(engine.types[n].itemsize) for n, d in dims.items()}
        self._dims = dims
        self._memory = {name: DeviceMemory(cuda) for name in (*dims, "activations")}
        self._host = {name: PinnedMemory(cuda) for name in (engine.input, "labels")}
        self._bind()

    def _context_for(self, shape: tuple[int, int, int]) -> Any:
        context = self._engine.create_context()
        index = self._engine.profile_of(shape)
        self._must(context.set_optimization_profile_async(index, int(self._stream)))
        self._stream.wait()
        self._must(context.set_input_shape(self._engine.input, (*shape, self._engine.channels)))
        return context

    def _bind(self) -> None:
        activations = int(self._context.update_device_memory_size_for_shapes())
        scratch = self._memory["activations"]
        if activations:
            scratch.reserve(activations)
            self._context.set_device_memory(scratch.address, scratch.size)
        for name, size in self._sizes.items():
            self._memory[name].reserve(size)
            self._must(self._context.set_tensor_address(name, self._memory[name].address))
        for name, memory in self._host.items():
            memory.reserve(self._sizes[name])

    def _must(self, done: bool) -> None:
        if not done:
            raise RuntimeError(self._engine.flavour.first_error)

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._must(self._context.execute_async_v3(int(self._stream)))

    def labels(self, crops: Pixels) -> Pixels:
        """Labels uint8 (N, H, W); :attr:`seconds` is then what the engine alone took."""
        name, size = self._engine.input, self._sizes[self._engine.input]
        self._host[name].view(self._dims[name], crops.dtype)[:] = crops
        self._stream.upload(self._memory[name].address, self._host[name].address, size)
        self._stream.wait()
        if self._record and self._runs == 1:  # the first run may allocate, which is not recorded
            with Capture(self._cuda, self._stream) as capture:
                self._launch()
            self._graph = capture.graph
        start, end = self._events
        self._cuda.call(self._api.cudaEventRecord(start, self._stream.handle))
        self._launch()
        self._cuda.call(self._api.cudaEventRecord(end, self._stream.handle))
        self._stream.wait()
        self.seconds = float(self._cuda.call(self._api.cudaEventElapsedTime(start, end))) / 1e3
        self._runs += 1
        answer = self._host["labels"]
        source, size = self._memory["labels"].address, self._sizes["labels"]
        self._stream.download(answer.address, source, size)
        self._stream.wait()
        found: Pixels = answer.view(self._dims["labels"], crops.dtype).copy()
        return found

    def close(self) -> None:
        """Give everything back."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        for event in self._events:
            self._api.cudaEventDestroy(event)
        self._events = []
        for device_memory in self._memory.values():
            device_memory.free()
        for host_memory in self._host.values():
            host_memory.free()
        self._context = None
        self._stream.close()
