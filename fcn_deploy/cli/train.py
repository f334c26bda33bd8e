"""``fcn-deploy train``."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcn_deploy.artifacts import BEST, LAST, RUNS
from fcn_deploy.cli.console import note, parse_hw, progress, relative

if TYPE_CHECKING:
    from rich.progress import Progress

    from fcn_deploy.training.config import TrainConfig
    from fcn_deploy.training.progress import EpochReport


def train(
    data: Annotated[
        Path,
        typer.Argument(
            help="Labelled images: {train,val}/{images,masks} with classes.toml, or Pascal VOC.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Run folder.  [default: runs/DATA]")
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="fcn32s, fcn16s or fcn8s.  [default: fcn32s]")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="resnet18, resnet34 or resnet50.  [default: resnet18]")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start of the body: imagenet, none, or a .pth or .safetensors file.  "
            "[default: imagenet]"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="0 writes the initialised network.  [default: 30]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Crops a step.  [default: 8]")] = None,
    crop: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Random crop; multiples of 32.  [default: 320x480]"),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(help="First learning rate.  [default: 0.02 for sgd, 0.0005 for adam]"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="constant, or poly: falling to zero.  [default: constant]"),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adam.  [default: sgd]")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="L2 penalty.  [default: 0.0001]")
    ] = None,
    freeze_backbone: Annotated[
        bool | None, typer.Option("--freeze-backbone", help="Leave the body as it starts.")
    ] = None,
    freeze_upsampling: Annotated[
        bool | None,
        typer.Option(
            "--freeze-upsampling", help="Leave the transposed convolutions as they start."
        ),
    ] = None,
    upsampling_init: Annotated[
        str | None, typer.Option(help="bilinear or xavier.  [default: bilinear]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same weights on the CPU.  [default: 0]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...  [default: the best that works]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images.  [default: 2]")
    ] = None,
    val_every: Annotated[
        int | None, typer.Option(help="Validate and save every N epochs.  [default: 1]")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on after the last finished epoch, with the settings of the run."
        ),
    ] = False,
) -> None:
    """Train a fully convolutional network on a folder of labelled images.

    Writes best.safetensors, last.safetensors, train.json and curves.png into the run folder after
    every epoch. Images smaller than the crop are left out of training, and counted; bad pairs are
    all listed before the first epoch.
    """
    from fcn_deploy.training.train import train as run_training

    run = out or RUNS / data.resolve().name
    given = {
        "head": head,
        "backbone": backbone,
        "weights": weights,
        "epochs": epochs,
        "batch_size": batch_size,
        "crop_hw": crop and parse_hw(crop, "--crop"),
        "lr": lr,
        "optimizer": optimizer,
        "schedule": schedule,
        "weight_decay": weight_decay,
        "freeze_backbone": freeze_backbone,
        "freeze_upsampling": freeze_upsampling,
        "upsampling_init": upsampling_init,
        "seed": seed,
        "device": device,
        "workers": workers,
        "val_every": val_every,
    }
    config = _settings(run, given, resume=resume)
    try:
        with progress() as bar:
            report = run_training(data, run, config, resume=resume, listener=_Display(bar, config))
    except KeyboardInterrupt:
        if (run / LAST).exists():
            note(f"Go on with: fcn-deploy train {data} -o {relative(run)} --resume")
        raise
    if report.best is not None and report.best.val_mean_iou is not None:
        note(f"Best: epoch {report.best.epoch}, mean IoU {report.best.val_mean_iou:.4f}.")
    note(f"Wrote {relative(run / BEST)}. Next: fcn-deploy export")


def _settings(run: Path, given: dict[str, Any], *, resume: bool) -> TrainConfig:
    """The defaults, or those of the run that is resumed, and over them what was given."""
    from fcn_deploy.training.checkpoint import load_checkpoint
    from fcn_deploy.training.config import TrainConfig

    config = TrainConfig()
    if resume and (run / LAST).is_file():
        # Not from train.json, which is written later and could be lost on its own.
        stored = load_checkpoint(run / LAST).resume.get("config", {})
        known = {field.name for field in fields(TrainConfig)}
        config = replace(config, **{k: v for k, v in stored.items() if k in known})
        config = replace(config, crop_hw=(config.crop_hw[0], config.crop_hw[1]))
    return replace(config, **{name: value for name, value in given.items() if value is not None})


class _Display:
    """Shows a training as it goes: a bar for the epoch, a line when it is done."""

    def __init__(self, bar: Progress, config: TrainConfig) -> None:
        self._bar = bar
        self._config = config
        self._epoch = 0
        self._task = bar.add_task("", total=None, facts="")

    def on_start(self, *, examples: int, left_out: int, device: str, epoch: int) -> None:
        height, width = self._config.crop_hw
        without = f" {left_out} are smaller than the crop and left out." if left_out else ""
        note(f"Read {examples} examples, crops of {height}x{width}, on {device}.{without}")
        if epoch:
            note(f"Going on after epoch {epoch}.")
        self._epoch = epoch

    def on_step(
        self, step: int, steps: int, *, loss: float, accuracy: float, examples_per_s: float
    ) -> None:
        self._bar.update(
            self._task,
            description=f"epoch {self._epoch + 1}/{self._config.epochs}",
            completed=step,
            total=steps,
            facts=f"loss {loss:.3f}  acc {accuracy:.3f}  {examples_per_s:.1f} examples/s",
        )

    def on_validation(self, image: int, images: int) -> None:
        self._bar.update(
            self._task, description="validation", completed=image, total=images, facts=""
        )

    def on_epoch(self, report: EpochReport) -> None:
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
