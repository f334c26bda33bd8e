"""A FAKE of TensorRT's Python module, for tests of the runner's logic without a GPU.

Engines run on the CPU, by ONNX Runtime, when the stream that they were put into gets to it. What is
here has the names of the real modules (tests/test_fakes_of_tensorrt.py compares them), and behaves
as their documentation says, but nobody has compared that with a GPU. No time taken with it says
anything of TensorRT.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

from fake_context import FakeContext, FakeRtxContext
from fake_cuda import FakeCuda
from fake_engine import (
    FakeEngine,
    FakeInspector,
    FakeRtxRuntimeConfig,
    FakeRuntimeCache,
    FakeRuntimeConfig,
)
from fake_library import Library
from fake_plan import (
    HEADER,
    MAGIC,
    VERSIONS,
    PlanError,
    fake_plan,
    header_problem,
    read_plan,
)
from fake_streams import CudaError
from fake_tensorrt_names import (
    COMMON_ENUMS,
    NUMPY_TYPES,
    RTX_ENUMS,
    FakeDims,
    FakeHostMemory,
    FakeILogger,
    FakeLogger,
    make_enum,
)

__all__ = ["fake_module", "fake_plan"]

_MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}


class FakeRuntime:
    """FAKE of Runtime; loads FAKE plans."""

    _library: Library

    def __init__(self, logger: FakeILogger) -> None:
        if not isinstance(logger, FakeILogger):
            raise TypeError("Runtime takes an ILogger of its own module")
        if not logger._constructed:
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        assert self._library.cuda.devices, (
            "a Runtime without a GPU: some releases end the process here, ask CUDA for one before"
        )
        self._logger = logger
        self.DLA_core = -1
        self.max_threads = 1
        self.engine_host_code_allowed = False

    @property
    def logger(self) -> FakeILogger:
        return self._logger

    @property
    def num_DLA_cores(self) -> int:  # noqa: N802 - NVIDIA's name
        return 0

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        """The engine in a plan; ``None``, and a message to the logger, where it does not load."""
        library, plan = self._library, bytes(memoryview(serialized_engine))
        with library.cuda.lock:
            if library.failed("deserialize_cuda_engine", self._logger):
                return None
            try:
                library.require_device()
                contents = read_plan(plan, library.magic, library.version, library.cuda.capability)
                return library.classes["ICudaEngine"](self, contents)
            except (PlanError, CudaError, MemoryError, ValueError) as error:
                library.error(self._logger, "deserializeCudaEngine", error)
                return None


class FakeRtxRuntime(FakeRuntime):
    """FAKE of the Runtime of TensorRT-RTX."""

    engine_header_size = HEADER

    def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
        """Whether a plan loads here, and why not, from its first bytes or from all of them."""
        library, plan = self._library, bytes(memoryview(buffer))
        validity = library.enums["EngineValidity"]
        problem = header_problem(plan, library.magic, library.version)
        if problem is None and len(plan) > HEADER + 8:
            try:
                read_plan(plan, library.magic, library.version, library.cuda.capability)
            except PlanError as error:
                problem = error
        if problem is None:
            return validity.VALID, 0
        diagnosis = library.enums["EngineInvalidityDiagnostics"][problem.diagnosis]
        return validity.INVALID, int(diagnosis)


def fake_module(cuda: FakeCuda, *, flavour: str = "tensorrt", version: str = "") -> ModuleType:
    """A FAKE of a release of TensorRT's Python module; to be put into ``sys.modules``.

    Known are the names of 10.3, 10.16, 11.4 and RTX 1.7; a release between two of them gets those
    of the older one.

    Args:
        cuda: The FAKE device that it runs on.
        flavour: ``tensorrt`` or ``rtx``.
        version: Of the release, such as ``10.3.0``; for the flavour's usual one, nothing.
    """
    library = Library(cuda, flavour, version or VERSIONS[MAGIC[flavour]])
    library.enums.update(_enums(library))
    library.classes.update(_classes(library))
    module = ModuleType(_MODULES[flavour], __doc__)
    numbers = {np.dtype(value): name for name, value in NUMPY_TYPES.items()}
    types = {library.enums["DataType"][name]: of.type for of, name in numbers.items()}
    names: dict[str, Any] = {
        "__version__": library.version,
        "nptype": lambda trt_type: types[trt_type],
        "volume": lambda iterable: math.prod(iterable),
        "init_libnvinfer_plugins": lambda _logger, _namespace: True,
        **library.enums,
        **{name: made for name, made in library.classes.items() if name in _public(library)},
    }
    for name, value in names.items():
        setattr(module, name, value)
    return module


def _release(library: Library) -> tuple[int, int]:
    major, minor = library.version.split(".")[:2]
    return int(major), int(minor)


def _has_config(library: Library) -> bool:
    return library.flavour == "rtx" or _release(library) >= (10, 16)


def _public(library: Library) -> set[str]:
    hidden = set() if library.flavour == "rtx" else {"IRuntimeCache"}
    return set(library.classes) - hidden - (set() if _has_config(library) else {"IRuntimeConfig"})


def _enums(library: Library) -> dict[str, Any]:
    enums = {name: dict(values) for name, values in COMMON_ENUMS.items()}
    if _has_config(library):
        enums["DataType"].update(FP4=10, E8M0=11)
    if library.flavour == "rtx":
        enums.update(RTX_ENUMS)
    return {name: make_enum(name, values) for name, values in enums.items()}


def _classes(library: Library) -> dict[str, Any]:
    """Classes with just the names that this release has."""
    rtx = library.flavour == "rtx"
    engine: dict[str, Any] = {}
    if _has_config(library):
        engine["create_runtime_config"] = lambda _: library.classes["IRuntimeConfig"](library)
    if not rtx and _release(library) < (11, 0):
        engine["device_memory_size"] = FakeEngine.device_memory_size_v2
    made: dict[str, tuple[type, dict[str, Any]]] = {
        "Runtime": (FakeRtxRuntime if rtx else FakeRuntime, {}),
        "ICudaEngine": (FakeEngine, engine),
        "IExecutionContext": (FakeRtxContext if rtx else FakeContext, {}),
        "IRuntimeConfig": (FakeRtxRuntimeConfig if rtx else FakeRuntimeConfig, {}),
        "IRuntimeCache": (FakeRuntimeCache, {}),
        "EngineInspector": (FakeInspector, {}),
        "ILogger": (FakeILogger, {}),
        "Dims": (FakeDims, {}),
        "IHostMemory": (FakeHostMemory, {}),
    }
    classes = {
        name: type(name, (base,), {**own, "_library": library, "__doc__": base.__doc__})
        for name, (base, own) in made.items()
    }
    classes["Logger"] = type("Logger", (FakeLogger, classes["ILogger"]), {})
    return classes
