"""ONNX Runtime's execution providers: which are there, and of which something is missing."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import onnxruntime as ort

from fcn_deploy.backends.ort_binding import Allocate, cuda_buffer, host_buffer, pinned_buffers
from fcn_deploy.backends.ort_failures import cause_of
from fcn_deploy.backends.ort_libraries import driver_fault, library_fault
from fcn_deploy.backends.ort_options import CPU, CUDA, RTX, TENSORRT
from fcn_deploy.errors import DeviceError

PROVIDERS = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT, "rtx": RTX}

AUTO = (CUDA, RTX)
"""What ``auto`` tries before the CPU, the best first.

CUDA starts at once, takes crops of any shape, and computes float32 as float32. TensorRT-RTX may be
faster, but compiles for every new shape, takes no larger crops than its engine was made for, and
may round float32 to TF32, which its provider cannot be told not to do. TensorRT shares the last
two and builds for minutes first, so that it is only taken when it is named.
"""

RTX_PACKAGE = "onnxruntime_ep_nv_tensorrt_rtx"

_GPU_PACKAGE = 'For NVIDIA GPUs: pip uninstall onnxruntime; pip install "fcn-deploy[gpu]"'
_INSTALL = {
    CUDA: _GPU_PACKAGE,
    TENSORRT: _GPU_PACKAGE,
    RTX: "For RTX cards: pip install onnxruntime onnxruntime-ep-nv-tensorrt-rtx",
}
_REMEDY = {
    CUDA: 'Pass --provider cpu, or install a driver and "fcn-deploy[gpu]".',
    TENSORRT: 'Pass --provider cuda or cpu, or install a driver, "fcn-deploy[gpu]" and TensorRT.',
    RTX: "Pass --provider cuda or cpu.",
}


@dataclass(frozen=True)
class Provider:
    """An execution provider that can be asked for a session.

    Attributes:
        name: ONNX Runtime's spelling.
        on_device: Whether crops go to a device, in batches: true of all but the CPU's.
        buffers: Where crops and outputs may lie, the best first; empty: ONNX Runtime decides.
        plugin: An OrtEpDevice, where the provider is a plug-in.
    """

    name: str
    on_device: bool = True
    buffers: tuple[Allocate, ...] = ()
    plugin: Any = None


def listed() -> list[str]:
    """Providers that are installed, in ONNX Runtime's spelling; not all of them need to work."""
    # Azure's computes nothing that we have: all of it would fall to the CPU, without a word.
    there = [name for name in ort.get_available_providers() if name != "AzureExecutionProvider"]
    if RTX not in there and importlib.util.find_spec(RTX_PACKAGE):
        there.insert(0, RTX)
    return there


def find_provider(name: str) -> Provider:
    """A provider of which nothing is known to be missing.

    Args:
        name: A key of :data:`PROVIDERS`, or ONNX Runtime's own spelling.

    Raises:
        DeviceError: It is not installed, or cannot be loaded here; with the cause.
    """
    full, there = PROVIDERS.get(name, name), listed()
    if full not in there:
        shown = ", ".join(short for short, long in PROVIDERS.items() if long in there)
        raise DeviceError(
            f"This ONNX Runtime has no execution provider {name!r}, only: {shown}.",
            _INSTALL.get(full, ""),
        )
    if full == CPU:
        return Provider(full, on_device=False)
    if full == RTX:
        return _plugged_in()
    if fault := library_fault(full):
        raise _unusable(full, fault)
    return Provider(full, buffers=(cuda_buffer, host_buffer) if full in (CUDA, TENSORRT) else ())


def _plugged_in() -> Provider:
    """TensorRT-RTX, from the package that NVIDIA publishes beside the CPU's onnxruntime.

    Raises:
        DeviceError: It cannot be loaded, or supports no GPU of this machine.
    """
    if not hasattr(ort, "register_execution_provider_library"):
        raise _unusable(RTX, f"ONNX Runtime {ort.__version__} takes no plug-ins, 1.24 does")
    if fault := driver_fault():  # before the import, which loads hundreds of megabytes
        raise _unusable(RTX, fault)
    try:
        package = importlib.import_module(RTX_PACKAGE)
        ort.register_execution_provider_library(RTX, package.get_library_path())
    except Exception as error:  # the loader's, ONNX Runtime's, or the package's own
        # ONNX Runtime keeps it for the whole process.
        if "already registered" not in str(error).lower():
            raise _unusable(RTX, cause_of(error)) from error
    devices = [device for device in ort.get_ep_devices() if device.ep_name == RTX]
    if not devices:
        raise _unusable(RTX, "it supports none of the GPUs here, only RTX cards from Ampere on")
    # One of them: a session runs on a single GPU.
    return Provider(RTX, buffers=(pinned_buffers(devices[0]), host_buffer), plugin=devices[0])


def _unusable(name: str, cause: str) -> DeviceError:
    return DeviceError(
        f"ONNX Runtime cannot use {name}: {cause}.", _REMEDY.get(name, "Pass --provider cpu.")
    )
