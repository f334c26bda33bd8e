"""FAKE of ICudaEngine, and of what is made of one beside its contexts."""

# ruff: noqa: A002, ARG002 - signatures are NVIDIA's

from __future__ import annotations

import json
import math
from typing import Any

from fake_library import Library, activation_bytes
from fake_network import Network, Tensor
from fake_plan import PlanContents, Shape
from fake_streams import CudaError
from fake_tensorrt_names import NUMPY_TYPES, FakeDims, FakeHostMemory, invalid_dims

_CACHE = b"FAKE runtime cache "


class FakeEngine:
    """FAKE of ICudaEngine: a network for the CPU; its weights take device memory all the same.

    Raises:
        MemoryError: The weights do not fit.
        ValueError: There is no network in the plan.
    """

    _library: Library

    def __init__(self, runtime: Any, contents: PlanContents) -> None:
        self._runtime = runtime  # the binding keeps it alive as well
        self._logger = runtime.logger
        self._network = Network(contents.onnx)
        self._contents = contents
        self._profiles = [self._named(profile) for profile in contents.profiles]
        self._weights = self._library.allocate(len(contents.onnx), "weights of an engine")

    def __del__(self) -> None:
        if weights := getattr(self, "_weights", None):
            with self._library.cuda.lock:
                self._library.cuda.release(weights)

    def _named(self, profile: dict[str, list[Shape]]) -> dict[str, list[Shape]]:
        if "" in profile:
            (only,) = self._network.inputs
            return {only: profile[""]}
        assert set(profile) == set(self._network.inputs), f"a profile of {set(profile)}"
        return profile

    def _tensor(self, name: str, where: str) -> Tensor | None:
        if name not in self._network.tensors:
            self._library.error(self._logger, where, f"there is no tensor {name!r}")
        return self._network.tensors.get(name)

    def _activations(self, profile: int) -> int:
        shapes = [high for _, _, high in self._profiles[profile].values()]
        return activation_bytes(sum(math.prod(shape) for shape in shapes))

    @property
    def name(self) -> str:
        return self._contents.name

    @property
    def num_io_tensors(self) -> int:
        return len(self._network.tensors)

    @property
    def num_layers(self) -> int:
        return len(self._network.layers)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def num_aux_streams(self) -> int:
        return 0

    @property
    def device_memory_size_v2(self) -> int:
        return max(self._activations(index) for index in range(len(self._profiles)))

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._activations(profile_index)

    def get_tensor_name(self, index: int) -> str:
        return list(self._network.tensors)[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes, tensor = self._library.enums["TensorIOMode"], self._tensor(name, "getTensorIOMode")
        if tensor is None:
            return modes.NONE
        return modes.INPUT if tensor.is_input else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        types, tensor = self._library.enums["DataType"], self._tensor(name, "getTensorDataType")
        if tensor is None:
            return types.FLOAT
        return next(types[kind] for kind, of in NUMPY_TYPES.items() if tensor.dtype == of)

    def get_tensor_location(self, name: str) -> Any:
        return self._library.enums["TensorLocation"].DEVICE

    def get_tensor_shape(self, name: str) -> FakeDims:
        tensor = self._tensor(name, "getTensorShape")
        return invalid_dims() if tensor is None else FakeDims(tensor.shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[FakeDims]:
        if not 0 <= profile_index < len(self._profiles) or name not in self._network.inputs:
            where = f"profile {profile_index} of {name!r}"
            self._library.error(self._logger, "getProfileShape", f"there is no {where}")
            return [invalid_dims()] * 3
        return [FakeDims(shape) for shape in self._profiles[profile_index][name]]

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self, strategy: Any = None, *, runtime_config: Any = None) -> Any:
        library = self._library
        if isinstance(strategy, FakeRuntimeConfig):
            strategy, runtime_config = None, strategy
        if runtime_config is not None and not isinstance(runtime_config, FakeRuntimeConfig):
            raise TypeError("runtime_config is an IRuntimeConfig")
        strategies = library.enums["ExecutionContextAllocationStrategy"]
        if strategy is not None and not isinstance(strategy, strategies):
            raise TypeError("strategy is an ExecutionContextAllocationStrategy")
        config = runtime_config or library.classes["IRuntimeConfig"](library, strategy)
        with library.cuda.lock:
            if library.failed("create_execution_context", self._logger):
                return None
            try:
                library.require_device()
                return library.classes["IExecutionContext"](self, config)
            except (CudaError, MemoryError) as error:
                library.error(self._logger, "createExecutionContext", error)
                return None

    def create_engine_inspector(self) -> FakeInspector:
        inspector: FakeInspector = self._library.classes["EngineInspector"](self)
        return inspector


class FakeRuntimeConfig:
    """FAKE of IRuntimeConfig, as TensorRT 10.16 and 11 have it."""

    def __init__(self, library: Library, strategy: Any = None) -> None:
        self._library = library
        static = library.enums["ExecutionContextAllocationStrategy"].STATIC
        self._strategy = static if strategy is None else strategy
        self._cache: FakeRuntimeCache | None = None

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        if not isinstance(strategy, self._library.enums["ExecutionContextAllocationStrategy"]):
            raise TypeError("strategy is an ExecutionContextAllocationStrategy")
        self._strategy = strategy


class FakeRtxRuntimeConfig(FakeRuntimeConfig):
    """FAKE of IRuntimeConfig, as TensorRT-RTX has it."""

    def __init__(self, library: Library, strategy: Any = None) -> None:
        super().__init__(library, strategy)
        enums = library.enums
        self.cuda_graph_strategy = enums["CudaGraphStrategy"].DISABLED
        kernels = enums["DynamicShapesKernelSpecializationStrategy"]
        self.dynamic_shapes_kernel_specialization_strategy = kernels.LAZY

    def create_runtime_cache(self) -> FakeRuntimeCache:
        cache: FakeRuntimeCache = self._library.classes["IRuntimeCache"](self._library)
        return cache

    def set_runtime_cache(self, cache: Any = None) -> bool:
        if not isinstance(cache, FakeRuntimeCache):
            raise TypeError("cache is an IRuntimeCache")
        self._cache = cache
        return True

    def get_runtime_cache(self) -> FakeRuntimeCache | None:
        return self._cache


class FakeRuntimeCache:
    """FAKE of IRuntimeCache: the shapes that have been run, instead of kernels for them."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._entries: set[str] = set()

    def serialize(self) -> FakeHostMemory:
        about = {"version": self._library.version, "entries": sorted(self._entries)}
        return FakeHostMemory(_CACHE + json.dumps(about).encode())

    def deserialize(self, blob: Any) -> bool:
        content = bytes(memoryview(blob))
        if self._library.cuda.fault("deserialize") or not content.startswith(_CACHE):
            return False
        try:
            about = json.loads(content[len(_CACHE) :])
        except ValueError:
            return False
        if about["version"] != self._library.version:
            return False
        self._entries = set(about["entries"])
        return True

    def reset(self) -> bool:
        self._entries.clear()
        return True


class FakeInspector:
    """FAKE of EngineInspector: the nodes of the ONNX graph, as if built with DETAILED verbosity."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.execution_context: Any = None

    def get_layer_information(self, layer_index: int, format: Any) -> str:
        node = self._engine._network.layers[layer_index]
        if int(format) == 0:
            return f"{node.name or node.output[0]} ({node.op_type})"
        formats = self._engine._network.formats
        tensors = {
            kind: [{"Name": name, "Format/Datatype": formats.get(name, "")} for name in names]
            for kind, names in (("Inputs", node.input), ("Outputs", node.output))
        }
        return json.dumps(
            {"Name": node.name or node.output[0], "LayerType": node.op_type, **tensors}
        )

    def get_engine_information(self, format: Any) -> str:
        layers = range(self._engine.num_layers)
        texts = [self.get_layer_information(layer, format) for layer in layers]
        if int(format) == 0:
            return "\n".join(texts)
        bindings = list(self._engine._network.tensors)
        return json.dumps({"Layers": [json.loads(text) for text in texts], "Bindings": bindings})
