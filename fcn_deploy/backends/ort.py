"""ONNX Runtime, on the execution provider that was asked for and no other."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.backends import ShapeLimits, check_finite
from fcn_deploy.errors import DeviceError, MissingExtraError, ModelError
from fcn_deploy.onnx_file import OnnxModel, keep_outputs, read_onnx
from fcn_deploy.spec import INPUT

try:
    import onnxruntime as ort
except ImportError as error:
    raise MissingExtraError("onnxruntime", "cpu") from error

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_AUTO = ("cuda", "cpu")
_QUIET = 3  # errors only: what ORT warns of, we check and raise


class OrtBackend:
    """An exported model in ONNX Runtime; see the Backend protocol.

    Each output has a session of its own, made when it is first wanted: ONNX Runtime computes all
    outputs of a session, and full-size logits cost more than the labels that are made of them.
    """

    name = "ort"

    def __init__(self, model: OnnxModel, path: Path, provider: str) -> None:
        self.spec = model.spec
        self.precision = model.precision
        self.limits = ShapeLimits(step=model.spec.output_stride)
        self._model = model
        self._path = path
        self._sessions: dict[tuple[str, ...], Any] = {}
        self.provider = provider
        self._session(self._with_scores(model.outputs[0]))  # fail now, not at the first image

    def _with_scores(self, output: str) -> tuple[str, ...]:
        # Scores are 1/64 of the logits or less, and NaN in either shows in them.
        has_scores = "scores" in self._model.outputs
        return (output, "scores") if has_scores and output != "scores" else (output,)

    def _session(self, outputs: tuple[str, ...]) -> Any:
        if outputs in self._sessions:
            return self._sessions[outputs]
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        content = keep_outputs(self._model.proto, outputs).SerializeToString()
        try:
            session = ort.InferenceSession(content, options, providers=[self.provider])
        except Exception as error:  # ORT's exceptions have no common public base
            cause = str(error).splitlines()[0]
            raise ModelError(f"ONNX Runtime refuses {self._path}: {cause}") from error
        # ORT only warns when a provider cannot be loaded, and computes on the CPU.
        if (active := session.get_providers()[0]) != self.provider:
            raise DeviceError(
                f"{self._path.name} loaded on {active}, not on {self.provider}.",
                'Pass --provider cpu, or install a driver and "fcn-deploy[gpu]".',
            )
        self._sessions[outputs] = session
        return session

    def _run(self, output: str, crops: NDArray[np.uint8]) -> Any:
        self.limits.check(crops.shape)
        if output not in self._model.outputs:
            raise ModelError(
                f"{self._path} has no output {output!r}, which this needs.",
                "Export it again: fcn-deploy export --outputs labels,logits,scores",
            )
        wanted = self._with_scores(output)
        session = self._session(wanted)
        try:
            results = session.run(list(wanted), {INPUT: np.ascontiguousarray(crops)})
        except Exception as error:  # as above
            shape = "x".join(str(size) for size in crops.shape)
            raise DeviceError(
                f"ONNX Runtime failed on crops of {shape}: {str(error).splitlines()[0]}",
                "If memory is short, pass a smaller --tile.",
            ) from error
        if results[-1].dtype == np.float32:
            check_finite(results[-1], f"ONNX Runtime with {self._path.name}")
        return results[0]

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Most likely class per pixel: uint8 (N, H, W)."""
        if "labels" not in self._model.outputs and "logits" in self._model.outputs:
            return np.asarray(self.logits(crops).argmax(1), np.uint8)
        return np.asarray(self._run("labels", crops), np.uint8)

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel: float32 (N, C, H, W)."""
        return np.asarray(self._run("logits", crops), np.float32)

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What enters the last transposed convolution: float32 (N, C, H/s, W/s)."""
        return np.asarray(self._run("scores", crops), np.float32)

    def close(self) -> None:
        """Drop the sessions."""
        self._sessions.clear()

    def __enter__(self) -> OrtBackend:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_ort(path: Path, provider: str = "auto") -> OrtBackend:
    """Load an exported model.

    Args:
        path: A file written by ``fcn-deploy export``.
        provider: ``cpu``, ``cuda``, ``tensorrt`` or ORT's own spelling; ``auto`` takes CUDA if a
            session really runs there, else the CPU.

    Raises:
        ModelError: The file is not usable.
        DeviceError: The provider is not there, or does not work.
    """
    model = read_onnx(path)
    # Azure's computes nothing that we have: all of it would fall to the CPU, without a word.
    there = [n for n in ort.get_available_providers() if n != "AzureExecutionProvider"]
    if provider not in ("auto", "cpu") or "CUDAExecutionProvider" in there:
        ort.preload_dlls()  # CUDA and cuDNN from the nvidia wheels, which the loader cannot see
    if provider == "auto":
        usable = [PROVIDERS[name] for name in _AUTO if PROVIDERS[name] in there]
        for candidate in usable[:-1]:
            try:
                return OrtBackend(model, path, candidate)
            except (DeviceError, ModelError):
                continue  # listed but not working; the caller is told which one was taken
        return OrtBackend(model, path, usable[-1])
    name = PROVIDERS.get(provider, provider)
    if name not in there:
        listed = ", ".join(short for short, long in PROVIDERS.items() if long in there)
        raise DeviceError(
            f"This ONNX Runtime has no execution provider {provider!r}, only: {listed}.",
            'For NVIDIA GPUs: pip uninstall onnxruntime; pip install "fcn-deploy[gpu]"',
        )
    return OrtBackend(model, path, name)
