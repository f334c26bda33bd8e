"""Two backends on the same crops: how far apart are they, in the terms of the task?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.backends import Backend
from fcn_deploy.errors import CheckFailedError, DataError, InputError
from fcn_deploy.image import read_image
from fcn_deploy.tiling import cut_crops, plan_crops


@dataclass(frozen=True)
class Tolerance:
    """How far a candidate may be from its reference; all relative to the range of the logits.

    Attributes:
        logits: Largest absolute difference of a logit.
        margin: Labels must be equal wherever the two best classes are further apart than this.
    """

    logits: float
    margin: float


# Twice the logit error: two classes can each move by it, and only a closer race can then flip.
TOLERANCES = {
    "fp32": Tolerance(1e-4, 2e-4),
    "fp16": Tolerance(5e-3, 1e-2),
    # What eight bits cost is judged by labels and IoU; this is for what is broken.
    "int8": Tolerance(0.25, 0.5),
}


@dataclass(frozen=True)
class ParityReport:
    """How a candidate compares with its reference.

    Attributes:
        reference: What was compared with, for people.
        candidate: What was compared, for people.
        crops: Number of crops.
        pixels: Number of pixels.
        logit_range: Largest minus smallest logit of the reference.
        max_logit_error: Largest absolute difference, in logits.
        label_agreement: Share of pixels with the same label, in [0, 1].
        flips_outside_margin: Pixels whose label differs although the reference was certain.
        tolerance: What was allowed.
    """

    reference: str
    candidate: str
    crops: int
    pixels: int
    logit_range: float
    max_logit_error: float
    label_agreement: float
    flips_outside_margin: int
    tolerance: Tolerance

    @property
    def passed(self) -> bool:
        """Whether the candidate may be used instead of the reference."""
        limit = self.tolerance.logits * self.logit_range
        # Written so that NaN fails.
        return self.max_logit_error <= limit and self.flips_outside_margin == 0 and self.pixels > 0

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {"passed": self.passed, **asdict(self)}

    def summary(self) -> str:
        """One line for people."""
        relative = self.max_logit_error / self.logit_range if self.logit_range else float("nan")
        return (
            f"{self.candidate} against {self.reference}, {self.crops} crops: "
            f"labels {self.label_agreement:.4%} equal, "
            f"logits within {relative:.1e} of their range"
        )

    def require(self) -> None:
        """Stop if the candidate failed.

        Raises:
            CheckFailedError: With the figures.
        """
        if not self.passed:
            raise CheckFailedError(
                f"Parity failed: {self.summary()}.",
                f"Allowed: {self.tolerance.logits:.0e}, and no flip where the two best classes are "
                f"more than {self.tolerance.margin:.0e} apart; {self.flips_outside_margin} did.",
            )


class Reference(Protocol):
    """What is believed; every backend can be."""

    @property
    def name(self) -> str:
        """Of it, for people."""
        ...

    @property
    def precision(self) -> str:
        """``fp32`` or ``fp16``."""
        ...

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel of crops (N, H, W, 3): float32 (N, C, H, W)."""
        ...


def compare(
    reference: Reference,
    candidate: Backend,
    batches: Iterable[NDArray[np.uint8]],
    tolerance: Tolerance | None = None,
) -> ParityReport:
    """Run both backends on batches of crops, (N, H, W, 3) uint8, and compare logits and labels.

    Args:
        reference: What is believed.
        candidate: What is checked; its ``labels`` are compared as it computes them.
        batches: Crops; shapes may differ from batch to batch.
        tolerance: What is allowed; by default what fits the candidate's precision.

    Raises:
        CheckFailedError: A backend returned values that are not finite.
    """
    crops = pixels = equal = flips = 0
    low, high, error = np.inf, -np.inf, 0.0
    allowed = tolerance or TOLERANCES[candidate.precision]
    doubtful: list[NDArray[np.float32]] = []  # margins of the pixels whose labels differ
    for batch in batches:
        wanted, got = reference.logits(batch), candidate.logits(batch)
        labels = candidate.labels(batch)
        if wanted.shape != got.shape or wanted.argmax(1).shape != labels.shape:
            raise CheckFailedError(
                f"Of crops {batch.shape} {candidate.name} returns logits {got.shape} and labels "
                f"{labels.shape}, and {reference.name} logits {wanted.shape}.",
                "The exported network took the size of an image for a constant: let forward not "
                "branch on sizes, nor take int() of them.",
            )
        same = wanted.argmax(1) == labels
        crops, pixels, equal = crops + len(batch), pixels + same.size, equal + int(same.sum())
        low, high = min(low, float(wanted.min())), max(high, float(wanted.max()))
        # np.maximum, not max: it keeps NaN.
        error = float(np.maximum(error, np.abs(wanted - got).max()))
        doubtful.append(margins_of(wanted)[~same])
    span = high - low if pixels else 0.0
    flips = sum(int((margins > allowed.margin * span).sum()) for margins in doubtful)
    return ParityReport(
        reference=f"{reference.name} {reference.precision}",
        candidate=f"{candidate.name} {candidate.precision}",
        crops=crops,
        pixels=pixels,
        logit_range=span,
        max_logit_error=error,
        label_agreement=equal / pixels if pixels else 0.0,
        flips_outside_margin=flips,
        tolerance=allowed,
    )


def margins_of(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Best minus second-best logit of (N, C, H, W): (N, H, W)."""
    if logits.shape[1] == 1:
        return np.full((logits.shape[0], *logits.shape[2:]), np.inf, np.float32)
    best = np.partition(logits, -2, axis=1)
    return np.asarray(best[:, -1] - best[:, -2], np.float32)


def crops_of_images(paths: list[Path], *, step: int = 32) -> Iterator[NDArray[np.uint8]]:
    """Batches of crops of real images to compare on, of differing shapes and batch sizes.

    Args:
        paths: Images; unreadable ones are an error here, not something to skip.
        step: Output stride of the network; heights and widths are multiples of it.

    Yields:
        uint8 (N, H, W, 3), N 1 or 2, at most 512x512 pixels.

    Raises:
        DataError: An image cannot be read.
    """
    for number, path in enumerate(paths):
        try:
            image = read_image(path)
        except InputError as error:  # one of many elsewhere, but here all must be read
            raise DataError(error.problem, "Verify on other images: --images FOLDER") from error
        longest = (512, 384, 256)[number % 3] // step * step
        tile = (longest, max(step, longest * 3 // 4 // step * step))
        grid = plan_crops((image.shape[0], image.shape[1]), tile, 0, step=step)
        yield np.stack(list(islice(cut_crops(image, grid), 1 + number % 2)))


def generated_crops(*, step: int = 32) -> Iterator[NDArray[np.uint8]]:
    """Batches of cloudy colour textures, for models that come without a data set.

    Yields:
        uint8 (N, H, W, 3), in four shapes.
    """
    random = np.random.default_rng(0)
    for count, rows, columns in ((1, 8, 12), (2, 4, 7), (1, 1, 1), (3, 6, 5)):
        height, width = rows * step, columns * step
        crops = np.zeros((count, height, width, 3), np.float32)
        for cells in (3, 9, 40, 150):  # coarse to fine, each octave weaker
            coarse = random.integers(0, 256, (count, cells, cells, 3), np.uint8)
            for crop, noise in zip(crops, coarse, strict=True):
                octave = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
                crop += np.asarray(octave, np.float32) * (1.5 / cells**0.5)
        low, high = crops.min(), crops.max()
        yield ((crops - low) * (255 / (high - low))).astype(np.uint8)
