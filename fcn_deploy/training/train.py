"""Train a network on a folder of labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fcn_deploy.artifacts import LAST, require_writable
from fcn_deploy.backends.eager import pick_device
from fcn_deploy.dataset import Dataset, Pair, check, open_dataset
from fcn_deploy.errors import DataError, UsageError
from fcn_deploy.training.acceleration import repeatable
from fcn_deploy.training.backbone import initialise_body
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.distributed import ALONE, Ranks, from_first, rank_device_name
from fcn_deploy.training.launch import launch
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
    one. With several ``devices``, each is a process of its own, and programs that call this need
    the guard ``if __name__ == "__main__":``.

    Args:
        data: Data set in the plain or the Pascal VOC layout.
        run: Run folder.
        config: Settings.
        resume: Go on after the last epoch in ``run``.
        listener: Told of the progress.

    Raises:
        DataError: Lists every unusable pair, before the first epoch; or no image fits the crop.
        UsageError: Settings that contradict each other, or a run that would be overwritten.
        EnvironmentFault: Device, disk, or weights that cannot be downloaded; or a process that was
            killed.
        CheckFailedError: The loss is no longer finite.
    """
    config.check()
    if config.devices == 1:
        return train_rank(data, run, config, resume, ALONE, listener or Quiet())
    work = partial(train_rank, data, run, config, resume)
    return launch(work, config.devices, device=config.device, listener=listener)


def train_rank(
    data: Path, run: Path, config: TrainConfig, resume: bool, ranks: Ranks, listener: Listener
) -> TrainReport:
    """One rank's part of :func:`train`; of several, once they have met.

    Rank 0 alone looks at the data set, and writes; the others learn what it found, or how it
    failed.
    """
    with repeatable(config.deterministic):
        return _train_rank(data, run, config, resume, ranks, listener)


def _train_rank(
    data: Path, run: Path, config: TrainConfig, resume: bool, ranks: Ranks, listener: Listener
) -> TrainReport:
    device = pick_device(rank_device_name(config.device, ranks))
    task = from_first(lambda: _task(data, run, config, resume=resume, world=ranks.world), ranks)
    session = Session(task.dataset, task.examples, task.validation, config, device, ranks)
    folder = RunFolder(run, data)
    if resume:
        updates = folder.restore(session)
    else:
        network = session.network
        from_first(lambda: initialise_body(network, config.backbone, config.weights), ranks)
        updates = session.start()
    several = f"{ranks.world} x " if ranks.world > 1 else ""
    listener.on_start(
        examples=len(task.examples),
        left_out=task.left_out,
        device=f"{several}{device.type if several else device} in {session.precision}",
        epoch=session.epoch,
    )

    def save(*, best: bool) -> None:
        from_first(lambda: folder.save(session, updates, best=best), ranks)

    if config.epochs == 0:
        save(best=True)
    while session.epoch < config.epochs:
        report = session.run_epoch(updates, listener)
        if session.is_due():
            save(best=session.best is report)
        listener.on_epoch(report)
    history = tuple(session.history)
    return TrainReport(run, len(task.examples), task.left_out, history, session.best)


@dataclass(frozen=True)
class _Task:
    """What is there to train on.

    Attributes:
        dataset: Where it lies.
        examples: Images that are trained on.
        validation: Images that are not.
        left_out: Number of images smaller than the crop.
    """

    dataset: Dataset
    examples: list[Sized]
    validation: list[Pair]
    left_out: int


def _task(data: Path, run: Path, config: TrainConfig, *, resume: bool, world: int) -> _Task:
    _check_run(run, resume=resume)
    require_writable(run)
    dataset = open_dataset(data)
    sound = check(dataset, ["train", "val"])
    examples = _fitting(sound["train"], config)
    if world > 1 and config.epochs:
        _check_sharing(min(config.batch_size, len(examples)), config, world)
    left_out = len(sound["train"]) - len(examples)
    return _Task(dataset, examples, [pair for pair, _ in sound["val"]], left_out)


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


def _check_sharing(batch: int, config: TrainConfig, world: int) -> None:
    if batch < world:
        raise UsageError(
            f"A batch of {batch} cannot be shared by {world} devices.",
            "Take fewer devices, or a larger --batch-size.",
        )
    if config.compile == "on":
        raise UsageError(
            "torch.compile does not go with several devices here.", "Leave --compile out."
        )


def _check_run(run: Path, *, resume: bool) -> None:
    if resume and not (run / LAST).is_file():
        raise UsageError(f"There is nothing to resume in {run}.", "Leave --resume out to start.")
    if not resume and (run / LAST).exists():
        raise UsageError(
            f"{run} already holds a training.",
            "Pass --resume to go on with it, or another folder with -o.",
        )
