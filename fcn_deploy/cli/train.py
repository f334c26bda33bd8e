"""``fcn-deploy train``."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.artifacts import BEST, LAST, RUNS
from fcn_deploy.cli.console import note, parse_hw, progress, relative
from fcn_deploy.cli.training import TrainingDisplay, parse_range, settings_of
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from fcn_deploy.cli.torchrun import Place
    from fcn_deploy.training.config import TrainConfig
    from fcn_deploy.training.progress import TrainReport


def train(
    context: typer.Context,
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
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on after the last finished epoch, with the settings of the run."
        ),
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings to start from: default, or chapter, those of Dive into Deep Learning."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="0 writes the initialised network.  [default: 60]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same weights on the CPU.  [default: 0]")
    ] = None,
    val_every: Annotated[
        int | None, typer.Option(help="Validate and save every N epochs.  [default: 1]")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="fcn32s, fcn16s or fcn8s.  [default: fcn8s]"),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="resnet18, resnet34 or resnet50.  [default: resnet18]"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Start of the body: imagenet, none, or a .pth or .safetensors file.  "
            "[default: imagenet]"
        ),
    ] = None,
    upsampling_init: Annotated[
        str | None, typer.Option(help="bilinear or xavier.  [default: bilinear]")
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
    crop: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Random crop; multiples of 32.  [default: 320x480]"),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(metavar="LOW,HIGH", help="Random enlargement.  [default: 0.5,1.5]"),
    ] = None,
    stretch: Annotated[
        float | None,
        typer.Option(help="Up to how much more in one direction.  [default: 1.25]"),
    ] = None,
    color: Annotated[
        float | None,
        typer.Option(
            help="Greatest change of brightness, contrast and saturation.  [default: 0.3]"
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror every other crop.  [default: flip]"),
    ] = None,
    pad: Annotated[
        bool | None,
        typer.Option(
            "--pad/--no-pad",
            help="Frame images smaller than the crop in gray, or leave them out.  [default: pad]",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Crops computed at once, over all devices.  [default: 8]")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Batches a step of the optimizer.  [default: 1]")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="sgd, adam or adamw.  [default: adamw]")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Greatest learning rate.  "
            "[default: 0.02 for sgd, 0.0005 for adam, 0.001 for adamw]"
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="constant, poly or cosine, which fall to zero.  [default: poly]"),
    ] = None,
    warmup_epochs: Annotated[
        float | None, typer.Option(help="Epochs of rising learning rate.  [default: 1.0]")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.  [default: 0.9]")] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="On weights of convolutions.  [default: 0.01]")
    ] = None,
    decay_all: Annotated[
        bool | None,
        typer.Option("--decay-all", help="Decay on norms, biases and upsampling, too."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="cross-entropy, cross-entropy+dice, or cross-entropy-sum over a batch.  "
            "[default: cross-entropy+dice]"
        ),
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(help="Rare classes weigh more: none, log or median.  [default: log]"),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Moving average of the weights; 0 is none.  [default: 0.998]"),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, cuda, cuda:1, ...  [default: the best that works]"),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="GPUs, or processes on the CPU, that share each batch.  [default: 1]"),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16, fp16, or auto: what the device is fast in.  [default: auto]"
        ),
    ] = None,
    compile_: Annotated[
        str | None,
        typer.Option(
            "--compile", help="torch.compile: on, off, or auto: where it pays.  [default: auto]"
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Repeatable on GPUs, too, and slower."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read images for a device.  [default: 2]")
    ] = None,
    cache: Annotated[
        int | None,
        typer.Option(
            metavar="MIB", help="Decoded images kept in memory, at most.  [default: 2048]"
        ),
    ] = None,
) -> None:
    """Train a fully convolutional network on a folder of labelled images.

    Writes best.safetensors, last.safetensors, train.json and curves.png into the run folder after
    every epoch. The defaults are those that gave the best networks; bad pairs are all listed before
    the first epoch.
    """
    place: Place | None = context.obj
    run = out or RUNS / data.resolve().name
    given = {
        "head": head,
        "backbone": backbone,
        "weights": weights,
        "upsampling_init": upsampling_init,
        "freeze_backbone": freeze_backbone,
        "freeze_upsampling": freeze_upsampling,
        "epochs": epochs,
        "seed": seed,
        "val_every": val_every,
        "crop_hw": crop and parse_hw(crop, "--crop"),
        "scale": scale and parse_range(scale),
        "stretch": stretch,
        "color": color,
        "flip": flip,
        "pad": pad,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer,
        "lr": lr,
        "schedule": schedule,
        "warmup_epochs": warmup_epochs,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "decay_all": decay_all,
        "loss": loss,
        "class_weights": class_weights,
        "ema": ema,
        "device": device,
        "devices": devices,
        "precision": precision,
        "compile": compile_,
        "deterministic": deterministic,
        "workers": workers,
        "cache_mib": cache,
    }
    config = settings_of(run, given, preset, resume=resume)
    if (
        config.deterministic
    ):  # cuBLAS reads it when it is first used, and is repeatable only with it
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if place is not None and devices is not None:
        raise UsageError("torchrun says how many processes there are.", "Leave --devices out.")
    if place is not None and not place.first:
        _train(data, run, config, place, resume=resume, bar=None)
        return
    try:
        with progress() as bar:
            report = _train(data, run, config, place, resume=resume, bar=bar)
    except KeyboardInterrupt:
        if (run / LAST).exists():
            start = "fcn-deploy train" if place is None else "torchrun ... -m fcn_deploy.training"
            note(f"Go on with: {start} {data} -o {relative(run)} --resume")
        raise
    if report.best is not None and report.best.val_mean_iou is not None:
        note(f"Best: epoch {report.best.epoch}, mean IoU {report.best.val_mean_iou:.4f}.")
    note(f"Wrote {relative(run / BEST)}. Next: fcn-deploy export")


def _train(
    data: Path,
    run: Path,
    config: TrainConfig,
    place: Place | None,
    *,
    resume: bool,
    bar: Progress | None,
) -> TrainReport:
    """Train in this process and those that it starts, or as one of torchrun's."""
    from fcn_deploy.training.progress import Quiet
    from fcn_deploy.training.train import train, train_rank

    listener = Quiet() if bar is None else TrainingDisplay(bar, config)
    if place is None:
        return train(data, run, config, resume=resume, listener=listener)
    config.check()
    return place.run(partial(train_rank, data, run, config, resume), config.device, listener)
