"""Train a network on a folder of labelled images."""

from __future__ import annotations

from pathlib import Path

import torch

from fcn_deploy.artifacts import LAST, require_writable
from fcn_deploy.backends.eager import pick_device
from fcn_deploy.dataset import check, open_dataset
from fcn_deploy.errors import DataError, UsageError
from fcn_deploy.training.backbone import initialise_body
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.progress import Listener, Quiet, TrainReport
from fcn_deploy.training.run_folder import RunFolder
from fcn_deploy.training.session import Session, Sized


def train(
    data: Path,
    run: Path,
    config: TrainConfig,
    *,
    resume: bool = False,
    listener: Listener | None = None,
) -> TrainReport:
    """Train a network on a folder of labelled images.

    Writes ``best.safetensors``, ``last.safetensors`` and ``train.json`` into ``run`` after every
    validated epoch, and ``curves.png`` now and then, each whole or not at all. The same seed
    gives the same weights on the CPU. A resumed training ends with the weights of an uninterrupted
    one.

    Args:
        data: Data set in the plain or the Pascal VOC layout.
        run: Run folder.
        config: Settings.
        resume: Go on after the last epoch in ``run``.
        listener: Told of the progress.

    Raises:
        DataError: Lists every unusable pair, before the first epoch; or no image fits the crop.
        UsageError: Settings that contradict each other, or a run that would be overwritten.
        EnvironmentFault: Device, disk, or weights that cannot be downloaded.
        CheckFailedError: The loss is no longer finite.
    """
    config.check()
    _check_run(run, resume=resume)
    require_writable(run)
    device = pick_device(config.device)
    dataset = open_dataset(data)
    sound = check(dataset, ["train", "val"])
    examples = _fitting(sound["train"], config)
    left_out = len(sound["train"]) - len(examples)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    listener = listener or Quiet()
    session = Session(dataset, examples, [pair for pair, _ in sound["val"]], config, device)
    folder = RunFolder(run, data)
    if resume:
        updates = folder.restore(session)
    else:
        initialise_body(session.network, config.backbone, config.weights)
        updates = session.start()
    listener.on_start(
        examples=len(examples),
        left_out=left_out,
        device=f"{device} in {session.precision}",
        epoch=session.epoch,
    )
    if config.epochs == 0:
        folder.save(session, updates, best=True)
    while session.epoch < config.epochs:
        report = session.run_epoch(updates, listener)
        if session.is_due():
            folder.save(session, updates, best=session.best is report)
        listener.on_epoch(report)
    return TrainReport(run, len(examples), left_out, tuple(session.history), session.best)


def _fitting(pairs: list[Sized], config: TrainConfig) -> list[Sized]:
    """The images that are trained on, after a look at whether batch norm can work with them."""
    height, width = config.crop_hw
    fitting = [
        (pair, (h, w)) for pair, (h, w) in pairs if config.pad or (h >= height and w >= width)
    ]
    if not fitting and config.epochs:
        raise DataError(
            f"None of the {len(pairs)} training images is as large as the crop, {height}x{width}.",
            "Pass a smaller --crop HxW, in multiples of 32; or --pad.",
        )
    cells = min(config.batch_size, len(fitting)) * (height // 32) * (width // 32)
    if cells == 1 and config.epochs and not config.freeze_backbone:
        raise UsageError(
            "One crop of 32x32 a step is too little: batch norm needs two values a channel.",
            "Pass a larger --crop or --batch-size, or --freeze-backbone.",
        )
    return fitting


def _check_run(run: Path, *, resume: bool) -> None:
    if resume and not (run / LAST).is_file():
        raise UsageError(f"There is nothing to resume in {run}.", "Leave --resume out to start.")
    if not resume and (run / LAST).exists():
        raise UsageError(
            f"{run} already holds a training.",
            "Pass --resume to go on with it, or another folder with -o.",
        )
