"""The device that is measured, and what state it is in."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from machine import environment

from fcn_deploy.backends.cuda import Cuda
from fcn_deploy.backends.tensorrt_flavour import device_capability, device_name, require_gpu
from fcn_deploy.errors import DeviceError, MissingExtraError

_PACKAGES = (
    "fcn-deploy",
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
    "monai",
)

_STATE = (
    "name",
    "driver_version",
    "pstate",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "utilization.gpu",
    "memory.used",
)


@dataclass(frozen=True)
class Device:
    """Where contenders compute.

    Attributes:
        name: What its maker calls it.
        is_gpu: Whether times on it may be called those of a GPU.
        capability: Such as ``sm90``; empty for a CPU.
        cuda: Version of CUDA's runtime; empty for a CPU.
        synchronise: Returns when nothing is under way on it.
        used_bytes: Memory that is in use, by whomever; ``None`` where nobody counts it.
    """

    name: str
    is_gpu: bool
    capability: str
    cuda: str
    synchronise: Callable[[], object]
    used_bytes: Callable[[], int] | None


def find_device(kind: str) -> Device:
    """The device of a kind, ``cuda`` or ``cpu``.

    Raises:
        DeviceError: There is no GPU.
    """
    if kind == "cpu":
        return Device("CPU", False, "", "", lambda: None, None)
    try:
        return device_of(require_gpu())
    except MissingExtraError as error:
        return _device_of_torch(error)
    except DeviceError as error:
        raise DeviceError(error.problem.rpartition("here: ")[2]) from error


def device_of(api: Any) -> Device:
    """The GPU that ``cuda.bindings.runtime`` found."""
    cuda = Cuda(api)

    def used_bytes() -> int:
        status, free, total = api.cudaMemGetInfo()
        cuda.call((status,))
        return int(total) - int(free)

    version = int(cuda.call(api.cudaRuntimeGetVersion()))
    return Device(
        device_name(api),
        True,
        device_capability(api),
        f"{version // 1000}.{version % 1000 // 10}",
        lambda: cuda.call(api.cudaDeviceSynchronize()),
        used_bytes,
    )


def _device_of_torch(error: MissingExtraError) -> Device:
    """The same through PyTorch, where cuda-bindings is not installed."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise error from None
    if not torch.cuda.is_available():
        raise DeviceError("PyTorch finds no NVIDIA GPU, and cuda-bindings is not installed.")

    def used_bytes() -> int:
        free, total = torch.cuda.mem_get_info()
        return int(total) - int(free)

    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    synchronise = torch.cuda.synchronize
    return Device(name, True, f"sm{major}{minor}", torch.version.cuda, synchronise, used_bytes)


def give_back() -> None:
    """Return memory that PyTorch keeps for later, which others would miss."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def state_of_gpu() -> dict[str, str]:
    """Clocks, temperature and driver as nvidia-smi says them; empty where it is not there."""
    command = (
        "nvidia-smi",
        "--id=0",
        f"--query-gpu={','.join(_STATE)}",
        "--format=csv,noheader,nounits",
    )
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    return dict(zip(_STATE, values, strict=True)) if len(values) == len(_STATE) else {}


def environment_of(device: Device, day: str) -> dict[str, Any]:
    """The machine and what runs on it; ``day`` is the date that the results shall bear."""
    here = environment()
    versions = {name: _version(name) for name in _PACKAGES}
    installed = {name: version for name, version in versions.items() if version}
    changes = {"date": day, "capability": device.capability, "cuda": device.cuda}
    return {**here, **changes, "packages": installed}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
