"""Training: repeatable, resumable, and clear about what it leaves out or refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fcn_deploy.errors import CheckFailedError, DataError, InputError, UsageError
from fcn_deploy.training.checkpoint import load_checkpoint
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.examples import Shuffle
from fcn_deploy.training.progress import EpochReport, Quiet
from fcn_deploy.training.train import train

SMALL = TrainConfig(
    head="fcn32s",
    weights="none",
    epochs=2,
    batch_size=4,
    crop_hw=(64, 64),
    workers=0,
    device="cpu",
    optimizer="sgd",
    lr=0.01,
)


class Recorder(Quiet):
    def __init__(self) -> None:
        self.start: dict[str, object] = {}
        self.epochs: list[EpochReport] = []

    def on_start(self, **facts: object) -> None:
        self.start = facts

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report)


def weights_of(run: Path, name: str = "last.safetensors") -> dict[str, torch.Tensor]:
    return load_checkpoint(run / name).weights


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd"},
        {"optimizer": "adam", "schedule": "constant", "ema": 0.0, "lr": 1e-3},
        {"optimizer": "adamw", "schedule": "cosine", "lr": 1e-3},
        {"accumulate": 2, "batch_size": 2, "class_weights": "median"},
    ],
)
def test_resumed_training_ends_with_the_same_weights(
    toy_data: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = replace(SMALL, **change)

    class Killed(Quiet):
        def on_epoch(self, report: EpochReport) -> None:  # noqa: ARG002
            raise KeyboardInterrupt

    straight = train(toy_data, tmp_path / "straight", config)
    with pytest.raises(KeyboardInterrupt):
        train(toy_data, tmp_path / "cut", config, listener=Killed())
    recorder = Recorder()
    resumed = train(toy_data, tmp_path / "cut", config, resume=True, listener=recorder)
    assert recorder.start["epoch"] == 1
    assert [report.epoch for report in recorder.epochs] == [2]
    assert_equal(weights_of(straight.run), weights_of(resumed.run))
    losses = [[report.loss for report in result.history] for result in (straight, resumed)]
    assert losses[0] == losses[1]


def test_a_training_that_is_made_longer_is_the_longer_training(
    toy_data: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, schedule="constant")
    straight = train(toy_data, tmp_path / "straight", config)
    train(toy_data, tmp_path / "run", replace(config, epochs=1))
    longer = train(toy_data, tmp_path / "run", config, resume=True)
    assert_equal(weights_of(straight.run), weights_of(longer.run))


def test_same_seed_same_weights_whatever_the_number_of_workers(
    toy_data: Path, tmp_path: Path
) -> None:
    config = replace(SMALL, epochs=1)
    for name, changed in (
        ("a", config),
        ("b", replace(config, workers=1)),
        ("c", replace(config, seed=1)),
    ):
        train(toy_data, tmp_path / name, changed)
    assert_equal(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    other = weights_of(tmp_path / "c")
    assert not torch.equal(weights_of(tmp_path / "a")["score.weight"], other["score.weight"])


def test_deterministic_training_works_and_ends_with_the_training(
    toy_data: Path, tmp_path: Path
) -> None:
    seen = []

    class Look(Quiet):
        def on_epoch(self, report: EpochReport) -> None:  # noqa: ARG002
            seen.append(torch.are_deterministic_algorithms_enabled())

    config = replace(SMALL, epochs=1, deterministic=True, loss="cross-entropy+dice", ema=0.9)
    train(toy_data, tmp_path / "run", config, listener=Look())
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_training_learns_the_toy_scenes(toy_run: Path) -> None:
    record = json.loads((toy_run / "train.json").read_text())
    assert record["history"][-1]["loss"] < 0.7 * record["history"][0]["loss"]
    best = max(record["history"], key=lambda epoch: epoch["val_mean_iou"])
    assert record["best_epoch"] == best["epoch"]
    spec = load_checkpoint(toy_run / "best.safetensors").spec
    assert spec.training["val_mean_iou"] == best["val_mean_iou"]
    assert spec.classes == ("ground", "disc", "stripe")
    assert not any("/" in str(value) for value in spec.training.values())
    with Image.open(toy_run / "curves.png") as curves:
        assert min(curves.size) > 300


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_vanishes_while_training_is_named_in_one_line(
    toy_data: Path, tmp_path: Path, workers: int
) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)

    class Vandal(Quiet):
        def on_start(self, **_: object) -> None:
            (data / "train" / "images" / "scene3.jpg").unlink()

    with pytest.raises(InputError) as caught:
        train(data, tmp_path / "run", replace(SMALL, workers=workers), listener=Vandal())
    assert "scene3.jpg" in str(caught.value)
    assert "\n" not in caught.value.problem


def test_frozen_parts_stay_as_they_start(toy_data: Path, tmp_path: Path) -> None:
    train(toy_data, tmp_path / "start", replace(SMALL, epochs=0))
    config = replace(SMALL, epochs=1, freeze_backbone=True, freeze_upsampling=True)
    train(toy_data, tmp_path / "run", config)
    start, end = weights_of(tmp_path / "start"), weights_of(tmp_path / "run")
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {"score.weight", "score.bias"}


def test_no_epochs_write_the_initialised_network(toy_data: Path, tmp_path: Path) -> None:
    report = train(toy_data, tmp_path / "run", replace(SMALL, epochs=0))
    assert report.history == ()
    assert report.best is None
    assert_equal(weights_of(tmp_path / "run"), weights_of(tmp_path / "run", "best.safetensors"))


def test_no_epochs_need_no_image_as_large_as_the_crop(toy_data: Path, tmp_path: Path) -> None:
    report = train(
        toy_data, tmp_path / "run", replace(SMALL, epochs=0, crop_hw=(320, 480), pad=False)
    )
    assert (report.examples, report.left_out) == (0, 10)
    assert (tmp_path / "run" / "best.safetensors").is_file()


@pytest.mark.parametrize("change", [{"optimizer": "sgd"}, {"freeze_backbone": True}, {"ema": 0.9}])
def test_a_run_is_not_resumed_with_other_parts(
    toy_data: Path, toy_run: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    # The optimizer's state would go to other weights than those that it was kept for.
    shutil.copy(toy_run / "last.safetensors", tmp_path)
    stored = load_checkpoint(toy_run / "last.safetensors").resume["config"]
    config = TrainConfig(**{**stored, "crop_hw": (64, 64), "scale": (1.0, 1.0), **change})
    with pytest.raises(UsageError, match=r"The run was trained with|cannot begin or end"):
        train(toy_data, tmp_path, config, resume=True)


def test_images_smaller_than_the_crop_are_counted_and_left_out(
    toy_data: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        picture = Image.open(data / "train" / kind / f"scene0.{suffix}")
        picture.crop((0, 0, 60, 40)).save(data / "train" / kind / f"small.{suffix}")
    recorder = Recorder()
    config = replace(SMALL, epochs=0, pad=False, precision="fp32")
    train(data, tmp_path / "run", config, listener=recorder)
    assert recorder.start == {"examples": 10, "left_out": 1, "device": "cpu in fp32", "epoch": 0}
    with pytest.raises(DataError, match="None of the 11 training images is as large"):
        train(data, tmp_path / "big", replace(SMALL, crop_hw=(320, 480), pad=False))
    report = train(data, tmp_path / "padded", replace(SMALL, epochs=1))
    assert (report.examples, report.left_out) == (11, 0)


def test_all_bad_pairs_are_listed_before_the_first_epoch(toy_data: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    (data / "train" / "masks" / "scene1.png").unlink()
    Image.new("L", (3, 3)).save(data / "val" / "masks" / "scene2.png")
    with pytest.raises(DataError) as caught:
        train(data, tmp_path / "run", SMALL)
    assert "2 of the labelled images" in caught.value.problem
    assert "scene1.png is missing" in caught.value.problem
    assert "scene2.png is 3x3" in caught.value.problem
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head": "fcn64s"}, "no head 'fcn64s'"),
        ({"backbone": "vgg16"}, "no backbone 'vgg16'"),
        ({"optimizer": "lion"}, "no optimizer 'lion'"),
        ({"upsampling_init": "zeros"}, "no upsampling-init 'zeros'"),
        ({"crop_hw": (321, 480)}, "not a multiple of 32"),
        ({"epochs": -1}, "0 or more"),
        ({"lr": -1.0}, "No training with --lr -1"),
        ({"lr": float("nan")}, "No training with --lr nan"),
        ({"seed": -1}, "seed -1"),
        ({"ema": 1.0}, "nothing would be learned"),
        ({"scale": (2.0, 1.0)}, "No training with --scale 1"),
        ({"accumulate": 0}, "1 or more"),
        ({"loss": "hinge"}, "no loss 'hinge'"),
        ({"class_weights": "some"}, "no class-weights 'some'"),
        ({"crop_hw": (32, 32), "batch_size": 1}, "batch norm needs two values"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    toy_data: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        train(toy_data, tmp_path / "run", replace(SMALL, **change))  # type: ignore[arg-type]


def test_a_run_is_neither_overwritten_nor_resumed_from_nothing(
    toy_data: Path, toy_run: Path, tmp_path: Path
) -> None:
    before = (toy_run / "last.safetensors").read_bytes()
    with pytest.raises(UsageError, match="already holds a training"):
        train(toy_data, toy_run, SMALL)
    assert (toy_run / "last.safetensors").read_bytes() == before
    with pytest.raises(UsageError, match="nothing to resume"):
        train(toy_data, tmp_path, SMALL, resume=True)


def test_a_diverging_loss_stops_the_training(toy_data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailedError, match="no longer finite"):
        train(toy_data, tmp_path / "run", replace(SMALL, lr=1e30, epochs=5))


def test_an_epoch_shows_each_example_once_in_an_order_of_its_own() -> None:
    shuffle = Shuffle(50, seed=0)
    orders = []
    for epoch in range(2):
        shuffle.epoch = epoch
        orders.append([draw.index for draw in shuffle])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]
