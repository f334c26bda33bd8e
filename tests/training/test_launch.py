"""Jobs of several processes as people start them: they end as one, whatever happens to a rank."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch.multiprocessing.spawn import ProcessRaisedException

from fcn_deploy.errors import DataError
from fcn_deploy.training.checkpoint import load_checkpoint
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.distributed import RankLostError, Ranks, total
from fcn_deploy.training.launch import launch
from fcn_deploy.training.progress import EpochReport, Listener, Quiet, TrainReport
from fcn_deploy.training.train import train

BIN = Path(sys.executable).parent
EPOCHS = 6
"""Enough that a job on a busy machine is still at work when it is told to end after the first."""
OPTIONS = (
    f"--weights none --epochs {EPOCHS} --batch-size 4 --crop 64x64 --optimizer sgd --lr 0.001 "
    "--device cpu --workers 1"
)
CONFIG = TrainConfig(
    weights="none",
    epochs=EPOCHS,
    batch_size=4,
    crop_hw=(64, 64),
    optimizer="sgd",
    lr=1e-3,
    device="cpu",
    devices=2,
    workers=1,
)
STARTS = {
    "devices": (BIN / "fcn-deploy", "train", "--devices", "2"),
    "torchrun": (BIN / "torchrun", "--nproc-per-node=2", "-m", "fcn_deploy.training"),
}
MARK = "FCN_DEPLOY_TEST_JOB"
Job: TypeAlias = "subprocess.Popen[str]"
SOON_S = 20.0
WHOLE_S = 240.0


class Recorder(Quiet):
    def __init__(self) -> None:
        self.device = ""
        self.epochs: list[int] = []

    def on_start(self, **facts: Any) -> None:
        self.device = facts["device"]

    def on_epoch(self, report: EpochReport) -> None:
        self.epochs.append(report.epoch)


@pytest.fixture(scope="module")
def straight(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """An uninterrupted training on two devices."""
    recorder = Recorder()
    run = tmp_path_factory.mktemp("straight") / "run"
    report = train(toy_data, run, CONFIG, listener=recorder)
    assert recorder.device == "2 x cpu in fp32"
    assert recorder.epochs == list(range(1, EPOCHS + 1))
    return report


def start(how: str, data: Path, run: Path, *more: str) -> Job:
    """Start a job, whose processes are all marked: torchrun moves them to other sessions."""
    command = [str(part) for part in (*STARTS[how], data, "-o", run, *OPTIONS.split(), *more)]
    marked = os.environ | {MARK: str(run)}
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=marked,
        # A shell lets what it starts in the background ignore Ctrl-C, and so would the job.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.default_int_handler),
    )


def members(run: Path) -> list[int]:
    """All processes of a run's job that have not ended, also those that lost their parents."""
    numbers = sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [number for number in numbers if f"{MARK}={run}\0" in read(number, "environ")]


def read(process: int, name: str) -> str:
    """What Linux says of a process; nothing if it has ended, or is somebody else's."""
    try:
        return Path("/proc", str(process), name).read_text()
    except OSError:
        return ""


def children(process: int, run: Path) -> list[int]:
    return [
        number
        for number in members(run)
        if read(number, "stat").rpartition(")")[2].split()[1:2] == [str(process)]
        and "resource_tracker" not in read(number, "cmdline")
    ]


def wait_for(file: Path, job: Job) -> None:
    deadline = time.monotonic() + WHOLE_S
    while not file.exists():
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.01)


def ended(job: Job, run: Path, within_s: float) -> str:
    """What was said on standard error, once the job and all of its processes have ended."""
    deadline = time.monotonic() + within_s
    try:
        said = job.communicate(timeout=within_s)[1]
        while left := members(run):
            assert time.monotonic() < deadline, [read(process, "cmdline") for process in left]
            time.sleep(0.1)
    finally:
        for process in members(run):
            os.kill(process, signal.SIGKILL)
        job.communicate()
    return said


def errors_in(said: str) -> list[str]:
    return re.findall(r"^Error: .*", said, re.MULTILINE)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_checkpoint(run / "last.safetensors")
    return checkpoint.weights | checkpoint.resume_tensors


@pytest.mark.parametrize("how", ["devices", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_a_killed_rank_ends_the_job_and_resume_goes_on(
    toy_data: Path, straight: TrainReport, tmp_path: Path, how: str
) -> None:
    run = tmp_path / "run"
    job = start(how, toy_data, run)
    wait_for(run / "last.safetensors", job)
    os.kill(children(job.pid, run)[1], signal.SIGKILL)
    said = ended(job, run, SOON_S)
    assert len(errors_in(said)) == 1, said
    (error,) = errors_in(said)
    remedy = said.split(error)[1].splitlines()[1]
    assert "--resume goes on after it." in remedy
    if how == "devices":
        assert job.returncode == 5
        assert error == "Error: Rank 1 of 2 was ended by SIGKILL, in the middle of the training."
        assert said.endswith(f"{error}\n{remedy}\n")
    else:  # torchrun has an exit code and a report of its own
        assert job.returncode == 1
        # Whichever comes first: the end of the connection, or torchrun's signal.
        assert re.match("Error: (Rank 0 of 2 lost another one|Terminated, as torchrun)", error)
    resumed = start(how, toy_data, run, "--resume")
    said = ended(resumed, run, WHOLE_S)
    assert resumed.returncode == 0, said
    assert "Going on after epoch" in said
    assert said.count(f"epoch {EPOCHS}/{EPOCHS}") == 1
    expected, found = tensors(straight.run), tensors(run)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("how", STARTS)
def test_bad_data_is_reported_once(toy_data: Path, tmp_path: Path, how: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(toy_data, data)
    (data / "train" / "masks" / "scene1.png").unlink()
    run = tmp_path / "run"
    job = start(how, data, run)
    said = ended(job, run, WHOLE_S)
    assert said.count("scene1.png is missing") == len(errors_in(said)) == 1, said
    if how == "devices":
        assert job.returncode == 4
        assert len(said.splitlines()) <= 3
    else:
        assert job.returncode == 1
        assert "exitcode  : 4" in said


def test_ctrl_c_ends_all_ranks_and_says_how_to_go_on(toy_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start("devices", toy_data, run, "--epochs", "200")
    wait_for(run / "last.safetensors", job)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    said = ended(job, run, SOON_S)
    assert job.returncode == 130, said
    assert f"Go on with: fcn-deploy train {toy_data}" in said
    assert said.endswith("Error: Interrupted. What was finished is kept.\n")
    assert "Traceback" not in said


def test_ranks_end_with_a_launcher_that_is_killed(toy_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start("devices", toy_data, run, "--epochs", "200")
    wait_for(run / "last.safetensors", job)
    job.kill()
    assert "Traceback" not in ended(job, run, SOON_S)


def misbehave(kind: str, ranks: Ranks, listener: Listener) -> TrainReport:
    """Work of which rank 1 does its part badly, while rank 0 waits for it."""
    if ranks.rank == 1:
        if kind == "bug":
            raise KeyError("of rank 1")
        if kind == "stuck":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
        if kind == "gone":
            os._exit(0)
    if kind == "stuck":
        raise DataError("Rank 0 gives up.")
    total(torch.ones(1), ranks)
    raise AssertionError("rank 1 did not come")


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("bug", ProcessRaisedException, "KeyError: 'of rank 1'"),
        ("stuck", DataError, "Rank 0 gives up."),
        ("gone", RankLostError, "Rank 0 of 2 lost another one"),
    ],
)
def test_the_error_that_says_most_is_the_one_that_is_raised(
    kind: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error) as caught:
        launch(partial(misbehave, kind), 2, device="cpu")
    assert words in str(caught.value)
    assert not multiprocessing.active_children()
