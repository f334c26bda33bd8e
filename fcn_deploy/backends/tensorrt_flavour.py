"""TensorRT or TensorRT for RTX, whichever is there: one API, imported under two names."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
from dataclasses import dataclass, field
from typing import Any

from fcn_deploy.errors import DeviceError, EngineError, MissingExtraError
from fcn_deploy.plan_header import REBUILD

MODULES = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "trt", "rtx": "rtx"}


@dataclass
class Flavour:
    """One of NVIDIA's two libraries.

    Attributes:
        name: ``tensorrt`` or ``rtx``.
        trt: Its Python module.
        messages: Errors and warnings that it has logged, the oldest first.
        logger: The object that collects them; the library keeps a pointer to it.
    """

    name: str
    trt: Any
    messages: list[str] = field(default_factory=list)
    logger: Any = None

    def __post_init__(self) -> None:
        self.logger = _collector(self.trt, self.messages)

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT-RTX, which compiles kernels where the engine is loaded."""
        return self.name == "rtx"

    @property
    def version(self) -> str:
        """Version of the library."""
        return str(self.trt.__version__)

    @property
    def first_error(self) -> str:
        """The first thing it complained of: without a GPU every error drags CUDA noise behind."""
        return self.messages[0] if self.messages else "no reason was given"

    def can_load(self, runtime: Any, plan: bytes) -> bool:
        """Whether RTX itself says that a plan loads here; it reads no more than its header."""
        validity, _ = runtime.get_engine_validity(plan)
        return bool(validity != self.trt.EngineValidity.INVALID)


def _collector(trt: Any, messages: list[str]) -> Any:
    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                messages.append(message.strip().splitlines()[0])

    return Collector()


_DIAGNOSES = {
    "VERSION_MISMATCH": "it was built by another release of TensorRT-RTX",
    "UNSUPPORTED_CC": "it was not built for this GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver here is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime here is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is damaged",
    "CUDA_ERROR": "CUDA does not work here",
}
_LOGGED = {
    "incompatible device": "it was built for another GPU",
    "expecting compute": "it was built for another GPU",
    "version tag": "it was built by another release",
    "serialized engine is too small": "it is cut short",
    "magic": "it is damaged, or of another library",
    "blobsize": "it is cut short, or something follows it",
}
"""What the library's own words mean, by a part of them in lower case."""

_MENDED_ELSEWHERE = ("OLD_CUDA_DRIVER", "OLD_CUDA_RUNTIME", "INSUFFICIENT_GPU_MEMORY", "CUDA_ERROR")


def load_failure(
    flavour: Flavour, runtime: Any, plan: bytes, name: str
) -> DeviceError | EngineError:
    """Why a plan does not load, in words: what RTX diagnoses, or what the library has logged."""
    found: list[str] = []
    if flavour.is_rtx:
        _, bits = runtime.get_engine_validity(plan)
        known = flavour.trt.EngineInvalidityDiagnostics
        found = [word for word in _DIAGNOSES if int(bits) & int(getattr(known, word))]
    text = " ".join(flavour.messages).lower()
    found_words = [_DIAGNOSES[word] for word in found]
    found_words = found_words or [words for part, words in _LOGGED.items() if part in text][:1]
    cause = ", ".join(found_words) or flavour.first_error
    problem = f"{name} does not load with {flavour.name} {flavour.version}: {cause}."
    if found and set(found) <= set(_MENDED_ELSEWHERE):
        return DeviceError(problem, "See what is missing here: fcn-deploy doctor")
    if "out of memory" in text or "outofmemory" in text:
        return DeviceError(problem, "Free memory on the GPU, or build with a smaller --max-shape.")
    return EngineError(problem, REBUILD)


def import_flavour(name: str) -> Flavour:
    """Import a flavour.

    Raises:
        MissingExtraError: It is not installed, or its libraries cannot be loaded.
    """
    try:
        return Flavour(name, importlib.import_module(MODULES[name]))
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingExtraError(MODULES[name], EXTRAS[name]) from error


def find_builder(name: str) -> Flavour:
    """The flavour to build with.

    Args:
        name: ``tensorrt``, ``rtx`` or ``auto``: TensorRT where there is a GPU for it to measure
            on, else TensorRT-RTX, which builds without one.

    Raises:
        MissingExtraError: It is not installed.
        DeviceError: TensorRT is to build, and there is no GPU.
    """
    if name == "rtx" or (name == "auto" and not (has_gpu() and _is_installed("tensorrt"))):
        return import_flavour("rtx")
    if not _is_installed("tensorrt"):
        raise MissingExtraError(MODULES["tensorrt"], EXTRAS["tensorrt"])
    try:
        require_gpu()  # before it is imported: without a driver some releases end the process
    except DeviceError as error:
        raise DeviceError(
            "TensorRT measures kernels on the GPU that an engine is for, and there is none here.",
            "Build on that device, or here for RTX cards: --flavour rtx",
        ) from error
    return import_flavour("tensorrt")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(MODULES[name]) is not None
    except ValueError:  # a module that was put into sys.modules without a specification
        return True


def requested_mib(messages: list[str]) -> int | None:
    """The memory that the library says it could not have, in MiB."""
    for message in messages:
        if match := re.search(r"[Rr]equested size was (\d+)", message):
            return -(-int(match[1]) >> 20)
    return None


def has_gpu() -> bool:
    """Whether CUDA finds a device."""
    try:
        require_gpu()
    except (DeviceError, MissingExtraError):
        return False
    return True


def require_gpu() -> Any:
    """CUDA's runtime API, after it has found a device.

    Asked before TensorRT is touched: without a driver some of its releases end the process.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        DeviceError: There is no NVIDIA driver or GPU.
    """
    try:
        from cuda.bindings import runtime as cuda
    except ImportError as error:
        try:
            ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        except OSError:  # nothing to install would help
            raise _no_gpu("its library cannot be loaded") from error
        raise MissingExtraError("cuda-bindings", "rtx") from error
    try:
        status, count = cuda.cudaGetDeviceCount()
    except (OSError, RuntimeError) as error:  # libcudart cannot be loaded at all
        raise _no_gpu(str(error).splitlines()[0]) from error
    if int(status) or not count:
        raise _no_gpu(cuda.cudaGetErrorString(status)[1].decode())
    return cuda


def device_capability(cuda: Any) -> str:
    """Compute capability of the first GPU, such as ``sm86``.

    Args:
        cuda: What :func:`require_gpu` returned.
    """
    attributes = cuda.cudaDeviceAttr
    kinds = (
        attributes.cudaDevAttrComputeCapabilityMajor,
        attributes.cudaDevAttrComputeCapabilityMinor,
    )
    major, minor = (cuda.cudaDeviceGetAttribute(kind, 0)[1] for kind in kinds)
    return f"sm{major}{minor}"


def device_name(cuda: Any) -> str:
    """What the first GPU is called.

    Args:
        cuda: What :func:`require_gpu` returned.
    """
    return str(cuda.cudaGetDeviceProperties(0)[1].name.decode().rstrip("\0"))


def _no_gpu(cause: str) -> DeviceError:
    return DeviceError(
        f"TensorRT engines cannot run here: no NVIDIA GPU or driver ({cause}).",
        "Engines can be built on this machine, not run.\n"
        "Pass --backend ort to segment on the CPU with the ONNX file.",
    )
