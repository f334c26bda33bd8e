"""Ranks: what they compute together is the training of one process, and they fail as one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy import errors
from fcn_deploy.cli.torchrun import Place
from fcn_deploy.errors import DataError, DeviceError, MissingExtraError, UsageError
from fcn_deploy.training.checkpoint import load_checkpoint
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.decoded import DecodedPairs
from fcn_deploy.training.distributed import (
    ALONE,
    RankLostError,
    Ranks,
    any_rank,
    from_first,
    rank_device_name,
    together,
    total,
)
from fcn_deploy.training.examples import Shuffle
from fcn_deploy.training.network import Normalising
from fcn_deploy.training.progress import Quiet, TrainReport
from fcn_deploy.training.shares import Shares
from fcn_deploy.training.train import train_rank
from two_ranks import TwoRanks, two_ranks

CONFIG = TrainConfig(
    weights="none",
    epochs=2,
    batch_size=5,
    crop_hw=(64, 64),
    optimizer="sgd",
    lr=1e-3,
    device="cpu",
    workers=0,
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    with two_ranks(tmp_path_factory.mktemp("ranks")) as ranks:
        yield ranks


@contextmanager
def in_float64() -> Iterator[None]:
    """Training in which rounding does not make two trainings differ, as it soon does."""
    plain = Normalising.normalise
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(Normalising, "normalise", lambda *args: plain(*args).double()):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def train_here(ranks: Ranks, data: Path, run: Path, config: TrainConfig, exact: bool) -> Any:
    with in_float64() if exact else nullcontext():
        return train_rank(data, run, config, False, ranks, Quiet())


def train_there(
    pair: TwoRanks, data: Path, run: Path, config: TrainConfig, exact: bool
) -> list[TrainReport]:
    reports: list[TrainReport] = pair.run(
        train_here, (data,) * 2, (run,) * 2, (config,) * 2, (exact,) * 2
    )
    return reports


def state(run: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Weights, statistics, moving averages and momentum."""
    checkpoint = load_checkpoint(run / "last.safetensors")
    tensors = checkpoint.weights | checkpoint.resume_tensors
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def assert_same(one: TrainReport, two: TrainReport, tolerance: float) -> None:
    for single, shared in zip(one.history, two.history, strict=True):
        assert shared.loss == pytest.approx(single.loss, rel=tolerance)
        assert shared.train_accuracy == pytest.approx(single.train_accuracy, abs=tolerance)
        assert shared.val_mean_iou == pytest.approx(single.val_mean_iou, abs=tolerance)
    ours, theirs = state(one.run), state(two.run)
    assert list(ours) == list(theirs)
    for name in ours:
        distance = np.linalg.norm(ours[name] - theirs[name])
        assert distance <= tolerance * np.linalg.norm(ours[name]), name


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"loss": "cross-entropy", "class_weights": "median", "accumulate": 2, "batch_size": 3},
        pytest.param(
            {"loss": "cross-entropy-sum", "class_weights": "none", "ema": 0.0, "lr": 1e-4},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_ranks_train_as_one_process(
    pair: TwoRanks, toy_data: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    # Batches of 5 and of 3: the ranks' shares of them differ in size.
    config = replace(CONFIG, **change)
    one = train_here(ALONE, toy_data, tmp_path / "one", config, True)
    two, other = train_there(pair, toy_data, tmp_path / "two", config, True)
    assert_same(one, two, 1e-5)
    assert [epoch.loss for epoch in other.history] == [epoch.loss for epoch in two.history]


def test_in_float32_they_differ_by_its_rounding(
    pair: TwoRanks, toy_data: Path, tmp_path: Path
) -> None:
    frozen = replace(CONFIG, epochs=2, freeze_backbone=True, optimizer="adamw", workers=1)
    one = train_here(ALONE, toy_data, tmp_path / "one", frozen, False)
    two, _ = train_there(pair, toy_data, tmp_path / "two", frozen, False)
    assert_same(one, two, 1e-4)
    # With batch norm of 20 values a channel, rounding grows a hundredfold an epoch, also between
    # one thread and two: so this is about the first steps.
    config = replace(CONFIG, epochs=1)
    one = train_here(ALONE, toy_data, tmp_path / "three", config, False)
    two, _ = train_there(pair, toy_data, tmp_path / "four", config, False)
    assert two.history[0].loss == pytest.approx(one.history[0].loss, rel=1e-4)


def test_a_loss_that_is_not_finite_ends_all_ranks_alike(
    pair: TwoRanks, toy_data: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, lr=1e30, ema=0.0, warmup_epochs=0.0, schedule="constant")
    said = pair.run(error_of_training, (toy_data,) * 2, (tmp_path / "run",) * 2, (config,) * 2)
    assert said[0] == said[1]
    assert said[0][0] == "CheckFailedError"
    assert "The loss is no longer finite, in epoch" in said[0][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 1, "crop_hw": (64, 96)}, "A batch of 1 cannot be shared by 2 devices"),
        ({"compile": "on"}, "torch.compile does not go with several devices"),
        ({"device": "cuda:1"}, "2 ranks do not train on one device, cuda:1"),
        ({"weights": "nowhere.pth"}, "There is no weights file nowhere.pth"),
    ],
)
def test_what_ranks_cannot_do_all_of_them_refuse(
    pair: TwoRanks, toy_data: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    config = replace(CONFIG, **change)
    said = pair.run(error_of_training, (toy_data,) * 2, (tmp_path / "run",) * 2, (config,) * 2)
    assert said[0] == said[1]
    assert words in said[0][1]


def error_of_training(ranks: Ranks, data: Path, run: Path, config: TrainConfig) -> tuple[str, str]:
    with pytest.raises(errors.FcnDeployError) as caught:
        train_rank(data, run, config, False, ranks, Quiet())
    return type(caught.value).__name__, str(caught.value)


def error_of_reading(ranks: Ranks, data: Path, run: Path, at: int) -> tuple[str, str]:
    """What a training raises in which one image can no longer be read, by whoever has it."""
    plain = DecodedPairs.read

    def read(pairs: DecodedPairs, index: int) -> Any:
        if index == at:
            raise DataError(f"Rank {ranks.rank} cannot read image {index}.")
        return plain(pairs, index)

    with patch.object(DecodedPairs, "read", read):
        return error_of_training(ranks, data, run, CONFIG)


def test_an_image_that_one_rank_cannot_read_ends_all(
    pair: TwoRanks, toy_data: Path, tmp_path: Path
) -> None:
    guilty = set()
    for at in range(10):
        said = pair.run(error_of_reading, (toy_data,) * 2, (tmp_path / "run",) * 2, (at,) * 2)
        assert said[0] == said[1]
        assert said[0][0] == "DataError"
        guilty.add(said[0][1])
    assert {words.split()[1] for words in guilty} == {"0", "1"}


def fail_in(ranks: Ranks, guilty: tuple[int, ...], kind: str) -> tuple[str, str] | None:
    """What this rank raises at the end of a block in which the guilty ranks fail."""
    try:
        with together(ranks):
            if ranks.rank in guilty:
                if kind == "bug":
                    raise KeyError(ranks.rank)
                raise DataError(f"Rank {ranks.rank} found a bad image.", "Mend it.")
    except Exception as error:
        return type(error).__name__, str(error)
    return None


def test_what_one_rank_cannot_do_no_rank_can(pair: TwoRanks) -> None:
    for guilty in ((0,), (1,), (0, 1)):
        said = pair.run(fail_in, (guilty,) * 2, ("data",) * 2)
        assert said == [("DataError", f"Rank {guilty[0]} found a bad image.\nMend it.")] * 2
    assert pair.run(fail_in, ((),) * 2, ("data",) * 2) == [None, None]
    # A bug keeps its own type where it is, since its traceback is there.
    own, others = pair.run(fail_in, ((0,),) * 2, ("bug",) * 2)
    assert own == ("KeyError", "0")
    assert others == ("RankLostError", "Another rank failed: KeyError: 0")


def sums(ranks: Ranks) -> list[Any]:
    values = torch.arange(3, dtype=torch.int64) * (ranks.rank + 1)
    kept = values.clone()
    found = [total(values, ranks).tolist(), any_rank(ranks.rank == 1, ranks)]
    found += [any_rank(False, ranks), from_first(lambda: f"of rank {ranks.rank}", ranks)]
    assert torch.equal(values, kept)
    return found


def test_sums_and_answers_are_the_same_on_all_ranks(pair: TwoRanks) -> None:
    assert pair.run(sums) == [[[0, 3, 6], True, False, "of rank 0"]] * 2


def test_one_process_has_nobody_to_ask() -> None:
    assert total(torch.ones(2), ALONE).tolist() == [1, 1]
    assert from_first(lambda: 3, ALONE) == 3
    assert fail_in(ALONE, (0,), "data") == ("DataError", "Rank 0 found a bad image.\nMend it.")
    assert fail_in(ALONE, (0,), "bug") == ("KeyError", "0")


@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    world=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_shares_of_all_ranks_are_the_batches_of_one_process(
    count: int, batch_size: int, world: int, epoch: int
) -> None:
    shuffle = Shuffle(count, seed=7)
    shuffle.epoch = epoch
    whole = list(Shares(shuffle, batch_size, ALONE))
    shares = [Shares(shuffle, batch_size, Ranks(rank, world)) for rank in range(world)]
    size = min(batch_size, count)
    order = list(shuffle)
    assert whole == [order[at : at + size] for at in range(0, count - size + 1, size)]
    assert all(len(share) == len(list(share)) == len(whole) for share in shares)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert sorted(map(repr, batch)) == sorted(repr(draw) for part in parts for draw in part)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def every_error(kind: type[errors.FcnDeployError]) -> list[type[errors.FcnDeployError]]:
    return [kind, *(error for child in kind.__subclasses__() for error in every_error(child))]


def test_errors_come_through_a_pipe_unchanged() -> None:
    kinds = every_error(errors.FcnDeployError)
    assert {MissingExtraError, RankLostError} <= set(kinds)
    for kind in kinds:
        error = kind("the problem", "the remedy")
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is kind
        assert (copy.problem, copy.remedy) == (error.problem, error.remedy)
        assert copy.args == error.args


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    third = Ranks(rank=6, world=8, local=2, beside=4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert rank_device_name("auto", third) == rank_device_name("cuda", third) == "cuda:2"
    assert rank_device_name("cpu", third) == "cpu"
    assert rank_device_name("cuda:1", ALONE) == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(DeviceError, match=r"has 3 GPUs .* fewer than 4\.\nPass --devices 3"):
        rank_device_name("auto", third)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert rank_device_name("auto", third) == "cpu"
    with pytest.raises(DeviceError, match="has 0 GPUs"):
        rank_device_name("cuda", third)


def test_what_torchrun_does_not_start_is_told_how_to() -> None:
    with pytest.raises(UsageError, match=r"torchrun --nproc-per-node=2 -m fcn_deploy\.training"):
        Place({"RANK": "0"})
