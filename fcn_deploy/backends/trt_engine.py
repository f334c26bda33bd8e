"""One loaded plan: what it takes and returns, and contexts to run it in."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.artifacts import write_atomically
from fcn_deploy.backends.cuda import Cuda
from fcn_deploy.backends.tensorrt_flavour import Flavour, load_failure
from fcn_deploy.errors import (
    DeviceError,
    DeviceMemoryError,
    EnvironmentFault,
    ShapeError,
)
from fcn_deploy.passport import Profile

log = logging.getLogger("fcn_deploy")


class Engine:
    """A deserialised plan of one input.

    Args:
        flavour: The library that built it.
        cuda: The device.
        plan: Its bytes, of which it is known whose they are.
        name: How messages call it.
        jit_cache: File of kernels that were compiled here earlier (RTX); ``None``: keep none.
        version_compatible: Whether the plan brings the runtime that it needs.

    Raises:
        EngineError: It does not load; building it again would mend that.
        DeviceError: It does not run on this device.
    """

    def __init__(
        self,
        flavour: Flavour,
        cuda: Cuda,
        plan: bytes,
        name: str,
        *,
        jit_cache: Path | None = None,
        version_compatible: bool = False,
    ) -> None:
        self.flavour, self.cuda, self.name = flavour, cuda, name
        trt = flavour.trt
        flavour.messages.clear()
        # The runtime outlives the engine, and the engine its contexts: keep all of them.
        self._runtime = trt.Runtime(flavour.logger)
        if version_compatible:
            self._runtime.engine_host_code_allowed = True
        if flavour.is_rtx and not flavour.can_load(self._runtime, plan):
            raise load_failure(flavour, self._runtime, plan, name)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise load_failure(flavour, self._runtime, plan, name)
        tensors = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        inputs = [n for n in tensors if self._mode(n) == trt.TensorIOMode.INPUT]
        self.outputs = tuple(n for n in tensors if self._mode(n) == trt.TensorIOMode.OUTPUT)
        if len(inputs) != 1:
            raise DeviceError(f"{name} has {len(inputs)} inputs, where one was expected.")
        self.input = inputs[0]
        self.types = {n: np.dtype(trt.nptype(self._engine.get_tensor_dtype(n))) for n in tensors}
        self.profiles = tuple(
            self._profile(index) for index in range(self._engine.num_optimization_profiles)
        )
        self.channels = int(self._engine.get_tensor_shape(self.input)[3])
        self._jit_cache = jit_cache
        self._runtime_config = self._configured()

    def _mode(self, tensor: str) -> Any:
        return self._engine.get_tensor_mode(tensor)

    def _profile(self, index: int) -> Profile:
        shapes = self._engine.get_tensor_profile_shape(self.input, index)
        low, best, high = ((int(s[0]), int(s[1]), int(s[2])) for s in shapes)
        return Profile(low, best, high)

    def _configured(self) -> Any:
        """Where the library captures graphs and compiles kernels itself (RTX), let it."""
        trt = self.flavour.trt
        if not self.flavour.is_rtx:
            return None
        runtime_config = self._engine.create_runtime_config()
        runtime_config.set_execution_context_allocation_strategy(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._compiled = runtime_config.create_runtime_cache()
        if self._jit_cache is not None and self._jit_cache.is_file():
            self._compiled.deserialize(self._jit_cache.read_bytes())
        runtime_config.set_runtime_cache(self._compiled)
        return runtime_config

    def create_context(self) -> Any:
        """A context that brings no memory of its own.

        Raises:
            DeviceMemoryError: Not even that fits.
        """
        if self._runtime_config is not None:
            context = self._engine.create_execution_context(self._runtime_config)
        else:
            strategy = self.flavour.trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise DeviceMemoryError(
                f"{self.name} loads, but cannot run: {self.flavour.first_error}.",
                "If memory is short, build with a smaller --max-shape or --max-batch.",
            )
        return context

    def profile_of(self, shape: tuple[int, int, int]) -> int:
        """The first profile that takes (N, H, W).

        Raises:
            ShapeError: None does; names the ranges.
        """
        for index, profile in enumerate(self.profiles):
            if profile.takes(shape):
                return index
        ranges = " or ".join(f"{shape_text(p.min)} to {shape_text(p.max)}" for p in self.profiles)
        raise ShapeError(
            f"{self.name} takes {ranges}, not {shape_text(shape)}.",
            "Pass another --tile, or build an engine for it: --min-shape, --max-shape.",
        )

    def close(self) -> None:
        """Keep what was compiled for the next time, and let go of the engine."""
        if self._engine is None:
            return
        if self._runtime_config is not None and self._jit_cache is not None:
            try:
                write_atomically(self._jit_cache, bytes(self._compiled.serialize()))
            except EnvironmentFault:
                log.info("%s cannot be written: kernels are compiled again.", self._jit_cache)
        self._runtime_config = self._compiled = None
        self._engine = self._runtime = None


def shape_text(shape: tuple[int, int, int]) -> str:
    """``1x512x512``, of (N, H, W)."""
    return "x".join(map(str, shape))
