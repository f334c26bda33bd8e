"""A model file, found and loaded: which one is meant, and what runs it."""

from __future__ import annotations

from pathlib import Path

from fcn_deploy.artifacts import find_model
from fcn_deploy.backends import SUFFIXES, open_backend
from fcn_deploy.backends.tensorrt_flavour import require_gpu
from fcn_deploy.errors import UsageError
from fcn_deploy.freshness import require_fresh
from fcn_deploy.segment import Segmenter


def load(
    model: str | Path | None = None,
    *,
    backend: str = "auto",
    provider: str = "auto",
    trust_engine: bool = False,
    cache: Path | None = None,
) -> Segmenter:
    """Load a model: a file, a run folder, or the newest run under ``./runs``.

    Args:
        model: ``.onnx``, ``.plan`` or ``.safetensors`` file, or a folder that holds one.
        backend: ``eager``, ``ort``, ``trt``; ``auto`` goes by the file, and in a folder prefers
            the ONNX file to the checkpoint.
        provider: ``cpu``, ``cuda``, ..., or ``auto`` for the best that really works.
        trust_engine: Load a plan that has no passport, too: native code, of unknown origin.
        cache: Folder of the user's own for what is compiled for this machine; ``None``: keep none.

    Raises:
        FcnDeployError: No such model, not usable, or its backend cannot run here.
    """
    path = locate(model, backend)
    return Segmenter(open_backend(path, backend, provider, trust_engine=trust_engine, cache=cache))


def locate(model: str | Path | None, backend: str = "auto") -> Path:
    """The file that :func:`load` would open.

    Raises:
        UsageError: No such backend, or nothing was named and there is no run.
        ModelError: There is no such file; or the one that was picked is older than its source.
        DeviceError: There is no plan for the backend ``trt``, and no GPU to run it on either.
    """
    if backend != "auto" and backend not in SUFFIXES:
        raise UsageError(
            f"There is no backend {backend!r}.", f"Backends: auto, {', '.join(SUFFIXES)}."
        )
    wanted = (".onnx", ".safetensors") if backend == "auto" else (SUFFIXES[backend],)
    path = None
    try:
        path = find_model(None if model is None else Path(model), suffixes=wanted)
    finally:
        if backend == "trt" and (path is None or path.suffix != SUFFIXES["trt"]):
            require_gpu()  # without one, there is no use in making the plan that is missing
    if model is None or Path(model).is_dir():
        require_fresh(path)
    return path
