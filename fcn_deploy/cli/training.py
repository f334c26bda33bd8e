"""Settings and progress of ``fcn-deploy train``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy.artifacts import LAST
from fcn_deploy.cli.console import note
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from fcn_deploy.training.config import TrainConfig
    from fcn_deploy.training.progress import EpochReport


def settings_of(
    run: Path, given: dict[str, Any], preset: str | None, *, resume: bool
) -> TrainConfig:
    """The preset, or the settings of the run that is resumed, and over them what was given."""
    from fcn_deploy.training.checkpoint import load_checkpoint
    from fcn_deploy.training.config import PRESETS, TrainConfig

    if resume and preset is not None:
        raise UsageError("A resumed run has its settings.", "Leave --preset or --resume out.")
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"There is no preset {preset!r}.", f"Known: {', '.join(PRESETS)}.")
    settings: dict[str, Any] = dict(PRESETS[preset or "default"])
    if resume and (run / LAST).is_file():
        # Not from train.json, which is written later and could be lost on its own.
        stored = load_checkpoint(run / LAST).resume.get("config", {})
        known = {field.name for field in fields(TrainConfig)}
        settings = {k: v for k, v in stored.items() if k in known}
        for pair in {"crop_hw", "scale"} & set(settings):
            settings[pair] = tuple(settings[pair])
    settings |= {name: value for name, value in given.items() if value is not None}
    return TrainConfig(**settings)


def parse_range(text: str) -> tuple[float, float]:
    """Two numbers of an option: ``LOW,HIGH``.

    Raises:
        UsageError: Not two numbers.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--scale {text} is not LOW,HIGH.", "For example: 0.5,1.5") from error
    return low, high


class TrainingDisplay:
    """Shows a training as it goes: a bar for the epoch, a line when it is done."""

    def __init__(self, bar: Progress, config: TrainConfig) -> None:
        self._bar = bar
        self._config = config
        self._epoch = 0
        self._task = bar.add_task("", total=None, facts="")

    def on_start(self, *, examples: int, left_out: int, device: str, epoch: int) -> None:
        """Say what is trained on."""
        height, width = self._config.crop_hw
        without = f" {left_out} are smaller than the crop and left out." if left_out else ""
        note(f"Read {examples} examples, crops of {height}x{width}, on {device}.{without}")
        if epoch:
            note(f"Going on after epoch {epoch}.")
        self._epoch = epoch

    def on_step(
        self, step: int, steps: int, *, loss: float, accuracy: float, examples_per_s: float
    ) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            description=f"epoch {self._epoch + 1}/{self._config.epochs}",
            completed=step,
            total=steps,
            facts=f"loss {loss:.3f}  acc {accuracy:.3f}  {examples_per_s:.1f} examples/s",
        )

    def on_validation(self, image: int, images: int) -> None:
        """Move the bar of the validation."""
        self._bar.update(
            self._task, description="validation", completed=image, total=images, facts=""
        )

    def on_epoch(self, report: EpochReport) -> None:
        """Write a line that stays."""
        self._epoch = report.epoch
        validated = ""
        if report.val_accuracy is not None and report.val_mean_iou is not None:
            validated = (
                f"  val acc {report.val_accuracy:.4f}  val mean IoU {report.val_mean_iou:.4f}"
            )
        note(
            f"epoch {report.epoch}/{self._config.epochs}  loss {report.loss:.4f}  "
            f"train acc {report.train_accuracy:.4f}{validated}  "
            f"{report.examples_per_s:.1f} examples/s"
        )
