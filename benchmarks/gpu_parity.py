"""Labels held against float32 PyTorch: who is wrong gets no time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from gpu_job import Files, Job, Pixels
from numpy.typing import NDArray

from fcn_deploy.backends import Backend
from fcn_deploy.errors import MissingExtraError
from fcn_deploy.parity import TOLERANCES
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling_options import Tiling

_PIECE = 2048
"""Side of the crops by which an image in one piece is judged: their exact halo is the whole's."""

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """What the reference says.

    Attributes:
        labels: uint8 (N, H, W) or (H, W).
        lead: Best minus second best logit, float32 of the same shape.
        span: Largest minus smallest logit.
    """

    labels: Pixels
    lead: NDArray[np.float32]
    span: float


class Verdict(NamedTuple):
    """Labels held against the reference, in pixels.

    Attributes:
        wrong: Differ although the two best classes are further apart than rounding explains.
        differ: Differ at all.
        pixels: In all.
    """

    wrong: int
    differ: int
    pixels: int


def open_reference(files: Files, device: str) -> Backend:
    """Float32 without TF32: PyTorch, on the GPU if it finds one, or else ONNX Runtime.

    To be opened anew for each job: contenders change what PyTorch may round.
    """
    try:
        from gpu_torch import cuda_works, set_arithmetic

        from fcn_deploy.backends.eager import open_eager
    except (ImportError, MissingExtraError):
        from fcn_deploy.backends.ort import open_ort

        return open_ort(files.onnx, "cpu")
    set_arithmetic(tf32=False, search=False)
    on_gpu = device == "cuda" and cuda_works()
    return open_eager(files.checkpoint, "cuda" if on_gpu else "cpu")


def truth_of(reference: Backend, job: Job, *, in_one_piece: bool = False) -> Truth:
    """What the reference says of a job's pixels."""
    pixels = job.load()
    if not job.is_image:
        return _joined(job.shape, enumerate(reference.logits(crop[None])[0] for crop in pixels))
    segmenter = Segmenter(reference)
    tiling = Tiling((job.tile, job.tile), job.overlap)
    if in_one_piece:
        small = max(job.shape) <= _PIECE
        tiling = Tiling(None) if small else Tiling((_PIECE, _PIECE), halo="exact")
    grid = segmenter.plan((pixels.shape[0], pixels.shape[1]), tiling)
    return _joined(job.shape, segmenter.logit_bands(pixels, grid))


def _joined(shape: tuple[int, ...], parts: Iterable[tuple[int, Logits]]) -> Truth:
    """Put together what begins at some index: one logit map of a batch, or rows of an image."""
    labels, lead = np.empty(shape, np.uint8), np.empty(shape, np.float32)
    low, high = np.inf, -np.inf
    for start, logits in parts:
        place = start if len(shape) == 3 else slice(start, start + logits.shape[1])
        labels[place], lead[place] = _decided(logits)
        low, high = min(low, float(logits.min())), max(high, float(logits.max()))
    return Truth(labels, lead, high - low)


def _decided(logits: Logits) -> tuple[Pixels, NDArray[np.float32]]:
    """Arg-max of (C, H, W), and by how much it leads; class by class, as sorting is slow."""
    labels = np.zeros(logits.shape[1:], np.uint8)
    best, second = logits[0].copy(), np.full(labels.shape, -np.inf, np.float32)
    for label, plane in enumerate(logits[1:], 1):
        labels[plane > best] = label
        np.maximum(second, np.minimum(best, plane), out=second)
        np.maximum(best, plane, out=best)
    return labels, best - second


def judge(labels: Pixels, truth: Truth, precision: str) -> Verdict:
    """Compare labels; ``precision`` says how close a race rounding may decide otherwise."""
    if labels.shape != truth.labels.shape:
        return Verdict(truth.labels.size, truth.labels.size, truth.labels.size)
    differ = labels != truth.labels
    clear = truth.lead > TOLERANCES[precision].margin * truth.span
    return Verdict(int((differ & clear).sum()), int(differ.sum()), labels.size)


def reference_name(reference: Backend) -> str:
    """What computed the truth, for people."""
    return f"{reference.name} {reference.precision} on {reference.provider}"
