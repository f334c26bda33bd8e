"""ONNX Runtime, on the execution provider that was asked for and no other."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import CROPS_AT_ONCE, Footprint
from fcn_deploy.backends import ShapeLimits, check_finite
from fcn_deploy.errors import DeviceError, MissingExtraError, ModelError
from fcn_deploy.onnx_file import OnnxModel, keep_outputs, read_onnx
from fcn_deploy.onnx_footprint import bytes_per_pixel
from fcn_deploy.onnx_upsampling import upsampling_of
from fcn_deploy.receptive import halo_for, reach_of_scores
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
        self.provider = provider
        self.labels_on_device = provider != PROVIDERS["cpu"]
        self.upsampling = None
        if "scores" in model.outputs:
            self.upsampling = upsampling_of(model.proto, model.spec.num_classes)
        self._model = model
        self._path = path
        self._sessions: dict[tuple[tuple[str, ...], bool], Any] = {}
        # Fail now, not at the first image; with the session that whole images need first.
        first = "scores" if self.upsampling and not self.labels_on_device else model.outputs[0]
        self._session(self._with_scores(first))

    @cached_property
    def footprint(self) -> Footprint:
        """Memory that crops need while they are computed."""
        # Whatever the provider, the precision (which CPUs compute in float32) and the number of
        # cores: the plan, and so the mask, is to be the same everywhere.
        widened = 2 if self.precision == "fp16" else 1
        return Footprint(widened * bytes_per_pixel(self._model.proto), CROPS_AT_ONCE)

    @cached_property
    def halo(self) -> int | None:
        """Pixels of a crop's border that what lies beyond it would change."""
        if "scores" not in self._model.outputs:
            return None
        stride = self.spec.score_stride
        return halo_for(reach_of_scores(self._model.proto, stride), stride, self.limits.step)

    @property
    def _workers(self) -> int:
        return 1 if self.labels_on_device else min(CROPS_AT_ONCE, _cores())

    def _with_scores(self, output: str) -> tuple[str, ...]:
        # Scores are 1/64 of the logits or less, and NaN in either shows in them.
        has_scores = "scores" in self._model.outputs
        return (output, "scores") if has_scores and output != "scores" else (output,)

    def _session(self, outputs: tuple[str, ...], *, streamed: bool = False) -> Any:
        key = (outputs, streamed)
        if key in self._sessions:
            return self._sessions[key]
        options = ort.SessionOptions()
        options.log_severity_level = _QUIET
        # With patterns, the memory of a run is one block, which the arena rounds up: twice as much,
        # and no faster. Without an arena it is as much, since the C library keeps the pieces.
        options.enable_mem_pattern = self.labels_on_device
        if streamed:
            # One thread of each run is its caller's.
            options.intra_op_num_threads = max(_cores() - self._workers + 1, 1)
            if not any(other for _, other in self._sessions):
                # Its 75 MB (of a ResNet-18) serve the new one, which may be all that is needed.
                self._sessions.pop((outputs, False), None)
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
        self._sessions[key] = session
        return session

    def _run(self, output: str, crops: NDArray[np.uint8]) -> Any:
        self.limits.check(crops.shape)
        if output not in self._model.outputs:
            raise ModelError(
                f"{self._path} has no output {output!r}, which this needs.",
                "Export it again: fcn-deploy export --outputs labels,logits,scores",
            )
        wanted = self._with_scores(output)
        return self._run_session(self._session(wanted), wanted, crops)

    def _run_session(self, session: Any, wanted: tuple[str, ...], crops: NDArray[np.uint8]) -> Any:
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

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Scores (C, H/s, W/s) of each crop (H, W, 3), in order, two at once on CPUs."""
        if self._workers == 1:
            return (self.scores(crop[None])[0] for crop in crops)
        # Here and not in the generator, which may run in another thread: what the C library has
        # once given to one thread it does not give to others.
        session = self._session(("scores",), streamed=True)
        return self._stream(session, crops)

    def _stream(
        self, session: Any, crops: Iterable[NDArray[np.uint8]]
    ) -> Iterator[NDArray[np.float32]]:
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(self._workers, "fcn-deploy-crop") as pool:
            try:
                for crop in crops:
                    self.limits.check((1, *crop.shape))
                    # A copy, unless it is whole rows: the band that it lies in may be let go.
                    ready = np.ascontiguousarray(crop)[None]
                    waiting.append(pool.submit(self._run_session, session, ("scores",), ready))
                    if len(waiting) > self._workers:
                        yield waiting.popleft().result()[0]
                while waiting:
                    yield waiting.popleft().result()[0]
            finally:
                for future in waiting:
                    future.cancel()

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


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
