"""What NVIDIA's execution providers have to load: asked first, since ONNX Runtime does not tell.

Where a library is missing, ONNX Runtime writes that to standard error, in colour, and goes on with
the CPU. Asked beforehand, the same loader gives its reason as an exception.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import os
import sys
import warnings
from contextlib import redirect_stdout, suppress
from pathlib import Path

import onnxruntime as ort

_SHARED = "libonnxruntime_providers_shared.so"
_LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
_TENSORRT_PARTS = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


def library_fault(provider: str, folder: Path | None = None) -> str | None:
    """Why an execution provider of onnxruntime-gpu cannot be loaded here.

    Args:
        provider: In ONNX Runtime's spelling.
        folder: Where its libraries are; by default inside of the onnxruntime package.

    Returns:
        The cause in one line; ``None`` where nothing is known to be missing.
    """
    folder = folder or Path(ort.__file__).parent / "capi"
    library = folder / _LIBRARIES.get(provider, "")
    if not library.is_file():
        return None  # built in, of another vendor, or of a system that names it otherwise
    if fault := driver_fault():
        return fault
    preload()
    if provider == "TensorrtExecutionProvider":
        _preload_tensorrt()
    try:
        # As ONNX Runtime does it: the one that the others take their functions from, then one.
        ctypes.CDLL(str(folder / _SHARED), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library))
    except OSError as error:
        return _first_line(error)
    return None


def driver_fault() -> str | None:
    """Why CUDA does not work on this machine, in one line; ``None`` where it finds a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError as error:
        return f"there is no NVIDIA driver ({_first_line(error)})"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(text))
        return f"the NVIDIA driver reports: {(text.value or b'').decode()} ({status})"
    return None if count.value else "the NVIDIA driver finds no GPU"


def preload() -> None:
    """Load CUDA and cuDNN from the nvidia wheels, where the loader would not look for them.

    What it prints of missing libraries is dropped: the loader names them again, as an error.
    """
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ort.preload_dlls()


def _preload_tensorrt() -> None:
    """The same for TensorRT, whose wheel ONNX Runtime does not know."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec("tensorrt_libs")
        places = list(spec.submodule_search_locations or []) if spec else []
        for place in places if sys.platform == "linux" else []:
            for part in _TENSORRT_PARTS:
                for library in sorted(Path(place).glob(f"{part}.so.*")):
                    with suppress(OSError):
                        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _first_line(error: OSError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
