"""What is asked in a process of its own; see :mod:`~fcn_deploy.doctor.child`.

Every question loads its native library itself, and nothing of it before.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MARK = "\x1e"
"""Parts the answer from what libraries print to standard output before it."""

RTX_PROVIDER = "NvTensorRTRTXExecutionProvider"

# A 1x1 Conv: x float32 (1, 1, 4, 4) times 2 is y; IR version 10, opset 18. As bytes, so that ONNX
# Runtime can be tried where onnx is missing.
MODEL = (
    b'\x08\n:c\n\x0f\n\x01x\n\x01w\x12\x01y"\x04Conv\x12\x01g*\x13\x08\x01\x08\x01\x08\x01\x08\x01'
    b'\x10\x01"\x04\x00\x00\x00@B\x01wZ\x1b\n\x01x\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08\x01\n'
    b"\x02\x08\x01\n\x02\x08\x04\n\x02\x08\x04b\x1b\n\x01y\x12\x16\n\x14\x08\x01\x12\x10\n\x02\x08"
    b"\x01\n\x02\x08\x01\n\x02\x08\x04\n\x02\x08\x04B\x04\n\x00\x10\x12"
)


def answer(question: str, arguments: Sequence[str]) -> None:
    """Answer on standard output and end the process, without its libraries' own farewells."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is to leave no file behind
    try:
        facts = QUESTIONS[question](*arguments)
    except Exception as error:  # whatever a broken installation raises is what is to be told
        line = (str(error).strip().splitlines() or [""])[0]
        facts = {"error": f"{type(error).__name__}: {line}" if line else type(error).__name__}
    sys.stdout.write(MARK + json.dumps(facts))
    sys.stdout.flush()
    os._exit(0)


def cuda() -> dict[str, Any]:
    """CUDA's own view: versions of driver and runtime (1000 * major + 10 * minor), and GPUs."""
    from cuda.bindings import runtime

    status, count = runtime.cudaGetDeviceCount()
    facts: dict[str, Any] = {
        "status": int(status),
        "message": runtime.cudaGetErrorString(status)[1].decode(),
        "driver": int(runtime.cudaDriverGetVersion()[1]),
        "runtime": int(runtime.cudaRuntimeGetVersion()[1]),
        # Read here, since hidden GPUs are what makes CUDA differ from nvidia-smi.
        "hidden": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "devices": [],
    }
    for index in range(0 if int(status) else count):
        properties = runtime.cudaGetDeviceProperties(index)[1]
        name = properties.name
        facts["devices"].append(
            {
                "name": (name.decode() if isinstance(name, bytes) else name).rstrip("\0"),
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_mib": int(properties.totalGlobalMem) >> 20,
            }
        )
    return facts


def pytorch() -> dict[str, Any]:
    """Version, CUDA release it was built for, and the sum of two ones where it computes."""
    import torch

    cuda: Any = torch.cuda
    facts: dict[str, Any] = {
        "version": torch.__version__,
        "built_for_cuda": torch.version.cuda,
        "device": "cpu",
        "why_not_cuda": "",
    }
    if torch.version.cuda is not None:
        libraries: Any = torch.backends
        facts["cudnn"] = libraries.cudnn.version()
        try:
            cuda.init()  # says why, where is_available() only says no
            facts["device"] = cuda.get_device_name(0)
        except (RuntimeError, AssertionError) as error:
            facts["why_not_cuda"] = str(error).strip().splitlines()[0]
    device = "cpu" if facts["device"] == "cpu" else "cuda"
    # Also shows a GPU for which this build has no kernels.
    facts["sum"] = float(torch.ones(2, device=device).sum().cpu())
    return facts


def providers() -> dict[str, Any]:
    """Execution providers that this ONNX Runtime lists, which says nothing of what works."""
    import onnxruntime

    return {
        "version": onnxruntime.__version__,
        "cuda": getattr(onnxruntime, "cuda_version", "") or "",
        "providers": onnxruntime.get_available_providers(),
    }


def provider(name: str) -> dict[str, Any]:
    """Run the one-node model on a provider: which one it really was, and what came out."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    chosen: dict[str, Any] = {"providers": [name]}
    if name == RTX_PROVIDER:
        plugin = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
        ort.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        devices = [d for d in ort.get_ep_devices() if d.ep_name == plugin.get_ep_name()]
        if not devices:
            return {"active": "", "error": "it finds no GPU that it supports"}
        options.add_provider_for_devices(devices, {})
        chosen = {}
    elif name != "CPUExecutionProvider" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN from the nvidia wheels, where no loader looks
    if name == "TensorrtExecutionProvider":
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt_libs")  # loads what is in it
    if name != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    session = ort.InferenceSession(MODEL, options, **chosen)
    image = np.ones((1, 1, 4, 4), np.float32)
    result = session.run(None, {"x": image})[0]
    return {
        "active": session.get_providers()[0],
        "right": bool(np.allclose(result, 2 * image, atol=1e-2)),
    }


def tensorrt(module: str) -> dict[str, Any]:
    """Load a flavour, make a builder where that can be, and with RTX build a network of a layer."""
    trt = importlib.import_module(module)
    facts: dict[str, Any] = {"version": str(trt.__version__), "builder": False, "plan_bytes": 0}
    if module == "tensorrt" and not _has_gpu():
        return facts  # without a driver its builder fails, or ends the process
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    facts["builder"] = True
    if module == "tensorrt_rtx":  # TensorRT would measure kernels for seconds
        import numpy as np

        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        image = network.add_input("x", trt.DataType.HALF, (1, 1, 4, 4))
        kernel = np.ones((1, 1, 1, 1), np.float16)
        layer = network.add_convolution_nd(image, 1, (1, 1), trt.Weights(kernel), trt.Weights())
        network.mark_output(layer.get_output(0))
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        if plan is None:
            return {"error": "a network of one layer could not be built"}
        facts["plan_bytes"] = int(plan.nbytes)
    return facts


def _has_gpu() -> bool:
    try:
        return bool(cuda()["devices"])
    except (ImportError, RuntimeError, OSError):
        return False


def rasterio() -> dict[str, Any]:
    """Versions of rasterio and of the GDAL inside."""
    import rasterio as package

    return {"version": package.__version__, "gdal": package.__gdal_version__}


def newest_run(folder: str) -> dict[str, Any]:
    """The newest run below a folder, and which of its artifacts an earlier checkpoint made."""
    from fcn_deploy.artifacts import RUNS
    from fcn_deploy.artifacts import newest_run as newest
    from fcn_deploy.errors import ModelError
    from fcn_deploy.freshness import require_fresh

    run = newest(Path(folder) / RUNS)
    artifacts = []
    for path in sorted(run.iterdir()):
        if path.suffix not in (".onnx", ".plan") or path.name.startswith("."):
            continue
        try:
            require_fresh(path)
            problem = ""
        except ModelError as error:
            problem = error.problem
        artifacts.append({"name": path.name, "problem": problem})
    return {"run": str(run), "artifacts": artifacts}


QUESTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "cuda": cuda,
    "pytorch": pytorch,
    "providers": providers,
    "provider": provider,
    "tensorrt": tensorrt,
    "rasterio": rasterio,
    "newest_run": newest_run,
}
