"""The inside of a process that :mod:`fcn_deploy.training.launch` started: one rank at work."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.training.distributed import Ranks, joined, rank_device_name
from fcn_deploy.training.progress import EpochReport, Listener, Quiet, TrainReport

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Blocked by the launcher until :func:`run_rank` is ready for them."""

Work = Callable[[Ranks, Listener], TrainReport]
"""What each rank does, once it has met the others; it can be pickled."""


@dataclass(frozen=True)
class Told:
    """A call of the listener, by rank 0."""

    name: str
    arguments: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Bug:
    """An error that no user can mend, with its traceback."""

    trace: str


Message = Told | logging.LogRecord | Exception | Bug | TrainReport
"""What comes from a rank."""


class Narrator:
    """A listener whose calls are made in the launcher; it may be called from any thread."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send anything to the launcher."""
        with self._lock:
            self._line.send(message)

    def on_start(self, **facts: Any) -> None:
        """Pass it on."""
        self.send(Told("on_start", (), facts))

    def on_step(self, step: int, steps: int, **facts: Any) -> None:
        """Pass it on."""
        self.send(Told("on_step", (step, steps), facts))

    def on_validation(self, image: int, images: int) -> None:
        """Pass it on."""
        self.send(Told("on_validation", (image, images), {}))

    def on_epoch(self, report: EpochReport) -> None:
        """Pass it on."""
        self.send(Told("on_epoch", (report,), {}))


class _Warnings(QueueHandler):
    """Passes on what the library warns of."""

    def __init__(self, narrator: Narrator) -> None:
        super().__init__(queue.SimpleQueue())  # which stays empty
        self._narrator = narrator

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send one record, which can be pickled by now."""
        self._narrator.send(record)


def run_rank(rank: int, work: Work, device: str, store: str, lines: list[Connection]) -> None:
    """Be one rank from beginning to end; the last thing told is the result, or the error.

    Args:
        rank: Which.
        work: What to do.
        device: As in TrainConfig.
        store: File in which the ranks meet.
        lines: To the launcher, one for each rank.
    """
    _take_signals()
    # Processes that read images are forked, as they are without ranks, and not started in the way
    # that this one was: so they share what they have decoded.
    multiprocessing.set_start_method("fork", force=True)
    for other, line in enumerate(lines):
        if other != rank:
            line.close()
    # Gloo and NCCL read these themselves. Ranks of one machine need no other interface, and what
    # they say to each other, anyone could say who can reach them.
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    narrator = Narrator(lines[rank])
    ranks = Ranks(rank, len(lines), rank, len(lines))
    logging.getLogger("fcn_deploy").addHandler(
        _Warnings(narrator) if ranks.first else logging.NullHandler()
    )
    try:
        own = torch.device(rank_device_name(device, ranks))
        with joined(ranks, dist.FileStore(store, ranks.world), own):  # type: ignore[attr-defined]
            report = work(ranks, narrator if ranks.first else Quiet())
        if ranks.first:
            narrator.send(report)
    except (FcnDeployError, OSError, MemoryError) as error:
        narrator.send(error)
        sys.exit(error.exit_code if isinstance(error, FcnDeployError) else 5)
    except Exception:
        narrator.send(Bug(traceback.format_exc()))
        sys.exit(1)


def _take_signals() -> None:
    """End on SIGTERM, with everything tidied up; Ctrl-C is the launcher's business."""
    own, launcher = os.getpid(), os.getppid()

    def interrupted(number: int, _frame: object) -> None:
        if os.getpid() != own:  # a process of the data loader, which expects it
            raise KeyboardInterrupt
        # A terminal sends Ctrl-C to all of its processes, and PyTorch a SIGINT to those whose
        # launcher is gone.
        if number == signal.SIGTERM or os.getppid() != launcher:
            sys.exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, interrupted)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
