"""ONNX Runtime, on the execution provider that was asked for and no other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.auto_tile import CROPS_AT_ONCE, Footprint
from fcn_deploy.backends import check_finite
from fcn_deploy.errors import DeviceError, MissingExtraError, ModelError
from fcn_deploy.onnx_file import OnnxModel, read_onnx
from fcn_deploy.onnx_footprint import bytes_per_pixel
from fcn_deploy.onnx_upsampling import upsampling_of
from fcn_deploy.receptive import exact_halo

try:
    import onnxruntime  # noqa: F401
except ImportError as error:
    raise MissingExtraError("onnxruntime", "cpu") from error

from fcn_deploy.backends.ort_batches import BatchLimit, stream_batches, stream_side_by_side
from fcn_deploy.backends.ort_binding import Allocate, BoundRun, Run, output_shapes, plain_run
from fcn_deploy.backends.ort_failures import run_failure
from fcn_deploy.backends.ort_options import CPU, GpuSettings
from fcn_deploy.backends.ort_providers import AUTO, Provider, find_provider, listed
from fcn_deploy.backends.ort_sessions import open_session, session_options
from fcn_deploy.backends.ort_weights import Weights, cut_for_session, share_weights

log = logging.getLogger("fcn_deploy")


class OrtBackend:
    """An exported model in ONNX Runtime; see the Backend protocol.

    Each output has a session of its own, made when it is first wanted: ONNX Runtime computes all
    outputs of a session, and full-size logits cost more than the labels that are made of them.

    Args:
        model: The checked file.
        path: Where it is from, for messages.
        provider: One of :func:`find_provider`, or the name of one that is there.
        settings: For GPUs; ``None`` for the defaults.
        weights: What :func:`share_weights` has taken out of the model; ``None`` where it is whole.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
        DeviceError: The provider does not work: on devices, a crop is computed to see that.
    """

    name = "ort"

    def __init__(
        self,
        model: OnnxModel,
        path: Path,
        provider: Provider | str,
        *,
        settings: GpuSettings | None = None,
        weights: Weights | None = None,
    ) -> None:
        if isinstance(provider, str):
            provider = Provider(provider, on_device=provider != CPU)
        self.spec = model.spec
        self.precision = model.precision
        self.provider = provider.name
        self.labels_on_device = provider.on_device
        self.upsampling = None
        if "scores" in model.outputs:
            self.upsampling = upsampling_of(model.proto, model.spec.num_classes)
        self._settings = settings or GpuSettings()
        self.limits = self._settings.limits(provider.name, model.spec.output_stride)
        if weights is None:
            # Providers on devices copy weights in ways of their own.
            model, weights = (model, {}) if provider.on_device else share_weights(model)
        self._model, self._weights = model, weights
        self._path = path
        self._provider = provider
        self._runs: dict[tuple[tuple[str, ...], bool], Run] = {}
        self._allocate: Allocate | None = None
        self._batch = BatchLimit(self._settings.at_once(provider.name))
        # Fail now, not at the first image; with the session that whole images need first.
        first = "scores" if self.upsampling and not self.labels_on_device else model.outputs[0]
        if provider.on_device:
            self._prove(first)
        else:
            self._runner(self._with_scores(first))

    def _prove(self, output: str) -> None:
        """Compute the smallest crop: there are sessions that open, and then have no kernels."""
        height, width = (max(side, self.limits.step) for side in self.limits.min_hw)
        failures = []
        for place in self._provider.buffers or (None,):
            self._allocate = place
            self._runs.clear()
            run = self._runner(self._with_scores(output))
            try:
                self._run_session(run, np.zeros((1, height, width, 3), np.uint8))
                return
            except DeviceError as error:
                failures.append(error)
        raise failures[0]

    @cached_property
    def footprint(self) -> Footprint:
        """Memory that crops need while they are computed."""
        # Whatever the provider, the precision (which CPUs compute in float32) and the number of
        # cores: the plan, and so the mask, is to be the same everywhere.
        widened = 2 if self.precision == "fp16" else 1
        needed = bytes_per_pixel(self._model.proto, step=self.limits.step)
        return Footprint(widened * needed, CROPS_AT_ONCE)

    @cached_property
    def halo(self) -> int | None:
        """Pixels of a crop's border that what lies beyond it would change."""
        return exact_halo(self._model.proto, self.spec)

    @property
    def _workers(self) -> int:
        return 1 if self.labels_on_device else min(CROPS_AT_ONCE, _cores())

    def _with_scores(self, output: str) -> tuple[str, ...]:
        # Scores are 1/64 of the logits or less, and NaN in either shows in them. Without scores,
        # labels are not believed without their logits: NaN would be a class.
        there = self._model.outputs
        witness = next((name for name in ("scores", "logits") if name in there), output)
        return (output,) if witness == output else (output, witness)

    def _runner(self, outputs: tuple[str, ...], *, streamed: bool = False) -> Run:
        key = (outputs, streamed)
        if key in self._runs:
            return self._runs[key]
        threads = None
        if streamed:
            # One thread of each run is its caller's.
            threads = max(_cores() - self._workers + 1, 1)
            if not any(other for _, other in self._runs):
                # Its memory serves the new one, which may be all that is needed.
                self._runs.pop((outputs, False), None)
        options = session_options(self.provider, threads)
        content = cut_for_session(self._model.proto, self._weights, outputs, options)
        session = open_session(content, options, self._provider, self._settings, self._path)
        if self._allocate is None:
            run: Run = partial(plain_run, session, outputs)
        else:
            run = BoundRun(session, partial(output_shapes, self.spec, outputs), self._allocate)
        self._runs[key] = run
        return run

    def _run(self, output: str, crops: NDArray[np.uint8]) -> Any:
        if output not in self._model.outputs:
            raise ModelError(
                f"{self._path} has no output {output!r}, which this needs.",
                "Export it again: fcn-deploy export --outputs labels,logits,scores",
            )
        return self._run_session(self._runner(self._with_scores(output)), crops)

    def _run_session(self, run: Run, crops: NDArray[np.uint8]) -> Any:
        return self._results(run, crops)[0]

    def _results(self, run: Run, crops: NDArray[np.uint8]) -> Any:
        self.limits.check(crops.shape)
        try:
            results = run(np.ascontiguousarray(crops))
        except Exception as error:  # ORT's exceptions have no common public base
            raise run_failure(error, crops.shape, self.provider) from error
        if results[-1].dtype == np.float32:
            check_finite(results[-1], f"ONNX Runtime with {self._path.name}")
        return results

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Most likely class per pixel: uint8 (N, H, W)."""
        if "labels" not in self._model.outputs and "logits" in self._model.outputs:
            return np.asarray(self.logits(crops).argmax(1), np.uint8)
        return np.asarray(self._run("labels", crops), np.uint8)

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel: float32 (N, C, H, W)."""
        return np.asarray(self._run("logits", crops), np.float32)

    def labels_and_logits(
        self, crops: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Both, of one run.

        Raises:
            ModelError: The file does not return logits.
        """
        if not {"labels", "logits"} <= set(self._model.outputs):
            return self.labels(crops), self.logits(crops)
        labels, logits = self._results(self._runner(("labels", "logits")), crops)
        return np.asarray(labels, np.uint8), np.asarray(logits, np.float32)

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What enters the last transposed convolution: float32 (N, C, H/s, W/s)."""
        return np.asarray(self._run("scores", crops), np.float32)

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Scores (C, H/s, W/s) of each crop (H, W, 3), in order: two at once on CPUs, else more."""
        if self.labels_on_device:
            self._runner(("scores",))
            return stream_batches(crops, self.scores, self._batch)
        if self._workers == 1:
            return (self.scores(crop[None])[0] for crop in crops)
        # Here and not in the generator, which may run in another thread: what the C library has
        # once given to one thread it does not give to others.
        run = partial(self._run_session, self._runner(("scores",), streamed=True))
        return stream_side_by_side(crops, run, self._workers)

    def close(self) -> None:
        """Drop the sessions."""
        self._runs.clear()

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


def open_ort(path: Path, provider: str = "auto", settings: GpuSettings | None = None) -> OrtBackend:
    """Load an exported model.

    Args:
        path: A file written by ``fcn-deploy export``.
        provider: ``cpu``, ``cuda``, ``tensorrt``, ``rtx`` or ONNX Runtime's own spelling; ``auto``
            for the first of CUDA, TensorRT-RTX and the CPU that really computes. Why an installed
            one was not taken is logged.
        settings: For GPUs; ``None`` for the defaults.

    Raises:
        ModelError: The file is not usable.
        DeviceError: The provider is not there, or does not work.
        ShapeError: No engine can be made for the shapes in ``settings``.
    """
    model, weights = read_onnx(path), None
    there = listed() if provider == "auto" else []
    for candidate in (name for name in AUTO if name in there):
        try:
            return OrtBackend(model, path, find_provider(candidate), settings=settings)
        except DeviceError as error:
            log.warning("%s --provider auto goes on without it.", error.problem)
    chosen = find_provider("cpu" if provider == "auto" else provider)
    if not chosen.on_device:
        model, weights = share_weights(model)  # here, where nothing keeps the whole one alive
    return OrtBackend(model, path, chosen, settings=settings, weights=weights)
