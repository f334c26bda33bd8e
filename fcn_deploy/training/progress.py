"""What a training tells while it runs, and when it is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class EpochReport:
    """What an epoch achieved.

    Attributes:
        epoch: From 1.
        loss: What was minimised, Dice included where it is, by the counted pixels of each step.
        train_accuracy: Share of those pixels that were right while training, in [0, 1].
        val_accuracy: Pixel accuracy on the full-size validation images, in [0, 1]; ``None`` in
            epochs without validation.
        val_mean_iou: Mean IoU on them, in [0, 1]; the same.
        examples_per_s: Training speed, validation not counted.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float | None
    val_mean_iou: float | None
    examples_per_s: float


@dataclass(frozen=True)
class TrainReport:
    """Where a training has been written, and how it went.

    Attributes:
        run: The run folder.
        examples: Number of training images.
        left_out: Images smaller than the crop.
        history: One report an epoch.
        best: The epoch with the highest validation mean IoU; ``None`` without epochs.
    """

    run: Path
    examples: int
    left_out: int
    history: tuple[EpochReport, ...]
    best: EpochReport | None


class Listener(Protocol):
    """What a training tells while it runs; all calls come from the training's own thread."""

    def on_start(self, *, examples: int, left_out: int, device: str, epoch: int) -> None:
        """Training begins after ``epoch`` epochs; ``left_out`` images are smaller than the crop."""
        ...

    def on_step(
        self, step: int, steps: int, *, loss: float, accuracy: float, examples_per_s: float
    ) -> None:
        """Step ``step`` of ``steps`` of the epoch is done; the figures are of the epoch so far."""
        ...

    def on_validation(self, image: int, images: int) -> None:
        """Validation image ``image`` of ``images`` is done."""
        ...

    def on_epoch(self, report: EpochReport) -> None:
        """An epoch is done, and saved if it was validated."""
        ...


class Quiet:
    """A listener that says nothing."""

    def on_start(self, *, examples: int, left_out: int, device: str, epoch: int) -> None:
        """Ignore."""

    def on_step(
        self, step: int, steps: int, *, loss: float, accuracy: float, examples_per_s: float
    ) -> None:
        """Ignore."""

    def on_validation(self, image: int, images: int) -> None:
        """Ignore."""

    def on_epoch(self, report: EpochReport) -> None:
        """Ignore."""
