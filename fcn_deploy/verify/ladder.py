"""The climb: every rung against the reference, on crops and on whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.backends import Backend, ComputesBoth
from fcn_deploy.errors import CheckFailedError, ModelError, ShapeError
from fcn_deploy.parity import TOLERANCES, margins_of
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling import CropGrid
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.verify.diagnosis import diagnose
from fcn_deploy.verify.inputs import Batch
from fcn_deploy.verify.limits import limits_for, problems_of
from fcn_deploy.verify.logits import LogitFigures
from fcn_deploy.verify.pictures import worst_picture, worst_pixel
from fcn_deploy.verify.result import Rung
from fcn_deploy.verify.weights import WeightFigures
from fcn_deploy.verify.whole_images import Count, Images, predictions

Pixels = NDArray[np.uint8]

_DIAGNOSED = 256  # side of the crop that causes are tried on, in pixels


@dataclass(frozen=True)
class Candidate:
    """What is to be compared.

    Attributes:
        name: For people.
        backend: Loaded; ``None`` where it cannot run here.
        file: ``None`` for what is no file.
        sha256: Of the file.
        why_not: Why there is no backend.
        weights: How its weights compare with the checkpoint's, where that can be seen.
        precision: ``None`` where it is not known.
    """

    name: str
    backend: Backend | None
    file: Path | None = None
    sha256: str | None = None
    why_not: str = ""
    weights: WeightFigures | None = None
    precision: str | None = None


@dataclass(frozen=True)
class Findings:
    """What was found, and how long it took.

    Attributes:
        rungs: One for each candidate, in their order.
        seconds: Of all of it.
        inference_seconds: Of the reference's and the candidates' networks, with their tiling.
    """

    rungs: tuple[Rung, ...]
    seconds: float
    inference_seconds: float


class _Stopwatch:
    """Adds up the time that is spent inside of ``with``."""

    def __init__(self) -> None:
        self.seconds, self._since = 0.0, 0.0

    def __enter__(self) -> None:
        self._since = perf_counter()

    def __exit__(self, *_error: object) -> None:
        self.seconds += perf_counter() - self._since


@dataclass
class _Climb:
    """What is found out about one candidate on the way."""

    candidate: Candidate
    backend: Backend
    crops: LogitFigures = field(default_factory=LogitFigures)
    images: Count | None = None
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    has_logits: bool = True
    worst: tuple[float, str, Pixels, Pixels, Pixels, CropGrid] | None = None

    def compare(
        self, batch: Batch, wanted: NDArray[np.float32], margins: Any, watch: _Stopwatch
    ) -> None:
        try:
            with watch:
                labels, got = self._decided(batch.crops)
        except ShapeError as error:
            self._note(f"Left out: {error.problem}")
            return
        except CheckFailedError as error:
            self.failures.append(error.problem)
            return
        if labels.shape != margins.shape or (got is not None and got.shape != wanted.shape):
            shape = labels.shape if got is None else got.shape
            self.failures.append(
                f"Of crops {batch.crops.shape} it returns {shape}, the reference {wanted.shape}."
            )
            return
        self.crops.add(wanted, got, labels, margins, batch.source)

    def _decided(self, crops: Pixels) -> tuple[Pixels, NDArray[np.float32] | None]:
        """Labels as it decides them, and logits where it has some."""
        if not self.has_logits:
            return self.backend.labels(crops), None
        try:
            if isinstance(self.backend, ComputesBoth):
                return self.backend.labels_and_logits(crops)
            return self.backend.labels(crops), self.backend.logits(crops)
        except ModelError as error:
            self.has_logits = False
            self._note(f"Judged by its labels alone. {error.problem}")
            return self.backend.labels(crops), None

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def verify(
    reference: Backend,
    candidates: Sequence[Candidate],
    batches: Iterable[Batch],
    images: Images | None = None,
    *,
    min_agreement: float | None = None,
    max_miou_drop: float | None = None,
    tiling: Tiling = Tiling(),
    on_step: Callable[[str], None] | None = None,
) -> Findings:
    """Compare everything with the reference, which computes each crop and image once.

    Args:
        reference: What is believed; its logits are needed.
        candidates: From the bottom of the ladder up.
        batches: Crops to compare logits on.
        images: To compare labels on, through tiling and merging, and IoU where there are masks.
        min_agreement: Least share of pixels with the reference's label, in [0, 1]; ``None``: what
            is usual in the candidate's precision.
        max_miou_drop: Most that the mean IoU may fall by, in [0, 1]; ``None``: the same.
        tiling: How images are cut into crops.
        on_step: Told what was compared, after each batch and image.

    Raises:
        DataError: An image cannot be read, or its mask does not fit.
        CheckFailedError: The reference itself returns values that are not finite.
        DeviceError: A device failed.
    """
    climbs = [_Climb(c, c.backend) for c in candidates if c.backend is not None]
    sample: Batch | None = None
    watch, start = _Stopwatch(), perf_counter()
    for batch in batches:
        if sample is None or _rather(batch, sample):
            sample = batch
        with watch:
            wanted = reference.logits(batch.crops)
        margins = margins_of(wanted)
        for climb in climbs:
            if not climb.failures:
                climb.compare(batch, wanted, margins, watch)
        if on_step is not None:
            on_step("{}x{}".format(*batch.crops.shape[1:3]))
    images = images or Images()
    _compare_images(reference, climbs, images, tiling, watch, on_step)
    noise = _noise(climbs)
    done = iter(
        [
            _rung(climb, reference, sample, noise, len(images), (min_agreement, max_miou_drop))
            for climb in climbs
        ]
    )
    rungs = tuple(_not_run(c) if c.backend is None else next(done) for c in candidates)
    return Findings(rungs, perf_counter() - start, watch.seconds)


def _rather(batch: Batch, sample: Batch) -> bool:
    """Whether causes are better tried on these: real ones, neither tiny nor slow."""
    larger = max(sample.crops.shape[1:3]) < max(batch.crops.shape[1:3]) <= _DIAGNOSED
    return batch.source == sample.source and larger


def _compare_images(
    reference: Backend,
    climbs: Sequence[_Climb],
    images: Images,
    tiling: Tiling,
    watch: _Stopwatch,
    on_step: Callable[[str], None] | None,
) -> None:
    believed = Segmenter(reference)
    for name, image, truth in images.read():
        alive = [climb for climb in climbs if not climb.failures]
        with watch:
            found = list(
                predictions(believed, [Segmenter(c.backend) for c in alive], image, tiling)
            )
        for climb, result in zip(alive, found, strict=True):
            if isinstance(result, CheckFailedError):
                climb.failures.append(f"{name}: {result.problem}")
                continue
            grid, wanted, got = result
            climb.images = climb.images or Count(reference.spec.classes)
            agreement = climb.images.add(name, wanted, got, truth)
            if agreement < 1 and (climb.worst is None or agreement < climb.worst[0]):
                climb.worst = (agreement, name, image, wanted, got, grid)
        if on_step is not None:
            on_step(name)


def _noise(climbs: Sequence[_Climb]) -> float | None:
    """The error of eager half precision, if that is one of the rungs."""
    for climb in climbs:
        if climb.backend.name == "eager" and climb.backend.precision == "fp16":
            return climb.crops.figures(0).rms_error
    return None


def _rung(
    climb: _Climb,
    reference: Backend,
    sample: Batch | None,
    noise: float | None,
    images: int,
    named: tuple[float | None, float | None],
) -> Rung:
    candidate, backend, weights = climb.candidate, climb.backend, climb.candidate.weights
    crops = climb.crops.figures(TOLERANCES[backend.precision].margin)
    whole = climb.images.figures(images) if climb.images else None
    problems = list(climb.failures)
    if not problems:
        limits = limits_for(backend.precision, *named)
        problems = list(problems_of(backend.precision, limits, crops, whole, noise))
    if weights is not None and weights.different:
        problems.append(weights.sentence())
    rung = Rung(
        name=candidate.name,
        file=candidate.file.name if candidate.file else None,
        sha256=candidate.sha256,
        backend=backend.name,
        provider=backend.provider,
        precision=backend.precision,
        passed=not problems,
        problems=tuple(problems),
        notes=tuple(climb.notes),
        weights=weights.as_dict() if weights else None,
        crops=crops,
        images=whole,
    )
    if problems and not climb.failures and climb.has_logits and sample is not None:
        rung = replace(rung, diagnosis=_diagnosis(reference, backend, sample.crops[:1]))
    if climb.worst is None:
        return rung
    agreement, name, image, wanted, got, grid = climb.worst
    return replace(
        rung,
        worst_pixel=worst_pixel(name, image, wanted, got, grid, Segmenter(reference)),
        pictures=(worst_picture(name, image, wanted, got, reference.spec, agreement),),
    )


def _diagnosis(reference: Backend, backend: Backend, sample: Pixels) -> str | None:
    try:
        return diagnose(reference.logits, backend.logits, sample)
    except (CheckFailedError, ShapeError):  # strange inputs may be too much for a broken network
        return None


def _not_run(candidate: Candidate) -> Rung:
    backend = {".onnx": "ort", ".plan": "trt"}.get(candidate.file.suffix if candidate.file else "")
    return Rung(
        name=candidate.name,
        file=candidate.file.name if candidate.file else None,
        sha256=candidate.sha256,
        backend=backend or "eager",
        provider=None,
        precision=candidate.precision,
        passed=None,
        notes=(f"Not run here. {candidate.why_not}",),
    )
