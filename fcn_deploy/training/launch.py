"""Training on several devices of this machine: one process for each, watched from here.

The ranks meet in a file and talk over the loopback interface. What they have to tell comes through
pipes: progress and warnings of rank 0, errors of all.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.multiprocessing.spawn import ProcessRaisedException, spawn

from fcn_deploy.errors import EnvironmentFault
from fcn_deploy.training.distributed import RankLostError
from fcn_deploy.training.progress import Listener, Quiet, TrainReport
from fcn_deploy.training.rank_process import SIGNALS, Bug, Message, Told, Work, run_rank

_POLL_S = 0.1
_GRACE_S = 3.0
"""How long ranks may take to end by themselves when one has failed, or when they are told to."""


def launch(
    work: Work, devices: int, *, device: str = "auto", listener: Listener | None = None
) -> TrainReport:
    """Do the same work in several processes of this machine, each with a device of its own.

    Programs that call this need the guard ``if __name__ == "__main__":`` that all of Python's
    multiprocessing needs. No process is left when it returns or raises.

    Args:
        work: What each rank does; it can be pickled.
        devices: Number of processes.
        device: ``cuda``, ``cpu``, or ``auto``: GPUs if there are any.
        listener: Told, in the calling thread, what rank 0 tells.

    Returns:
        What it returned in rank 0.

    Raises:
        FcnDeployError: What a rank raised, or EnvironmentFault if one was killed.
        ProcessRaisedException: A rank met a bug; with its traceback.
    """
    pipes = [multiprocessing.get_context("spawn").Pipe(duplex=False) for _ in range(devices)]
    lines, theirs = [line for line, _ in pipes], [line for _, line in pipes]
    processes: list[BaseProcess] = []
    with tempfile.TemporaryDirectory(prefix="fcn-deploy-") as folder:
        arguments = (work, device, str(Path(folder, "ranks")), theirs)
        try:
            with _signals_blocked():
                context = spawn(run_rank, arguments, devices, join=False)  # type: ignore[no-untyped-call]
                processes = context.processes
            for line in theirs:
                line.close()
            return _watched(processes, lines, listener or Quiet())
        finally:
            _end(processes)
            for line in lines:
                line.close()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """No Ctrl-C between two starts, nor in a rank that is still importing; ranks inherit it."""
    resource_tracker.ensure_running()  # it unblocks them, if it has to start
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Heard:
    """What the ranks have told so far, and how they ended."""

    def __init__(self, processes: list[BaseProcess], listener: Listener) -> None:
        self._processes = processes
        self._listener = listener
        self._report: TrainReport | None = None
        # By how much an error says: what a user can mend, that a rank is gone, a bug, its victims.
        self._failures: list[tuple[int, int, Exception]] = []
        self.failed: set[int] = set()

    def take(self, rank: int, message: Message) -> None:
        """Pass a message on, or keep it."""
        if isinstance(message, TrainReport):
            self._report = message
        elif isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        elif isinstance(message, Told):
            getattr(self._listener, message.name)(*message.arguments, **message.named)
        elif isinstance(message, Bug):
            text = f"rank {rank} of {len(self._processes)} met a bug.\n\n{message.trace}"
            self._fail(2, rank, ProcessRaisedException(text, rank, self._processes[rank].pid or 0))
        else:
            self._fail(3 if isinstance(message, RankLostError) else 0, rank, message)

    def end(self, rank: int, code: int) -> None:
        """A rank has ended, and all that it told was taken."""
        if code and rank not in self.failed:
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            memory = "The kernel ends processes so where memory is short. " * (code == -9)
            self._fail(
                1,
                rank,
                EnvironmentFault(
                    f"Rank {rank} of {len(self._processes)} {how}, in the middle of the training.",
                    f"{memory}What was saved is kept: --resume goes on after it.",
                ),
            )

    def _fail(self, order: int, rank: int, error: Exception) -> None:
        self._failures.append((order, rank, error))
        self.failed.add(rank)

    def result(self) -> TrainReport:
        """The report of rank 0, or the error that says most."""
        if self._failures:
            raise min(self._failures, key=lambda failure: failure[:2])[2]
        assert self._report is not None  # rank 0 sent it, and ended well
        return self._report


def _watched(
    processes: list[BaseProcess], lines: list[Connection], listener: Listener
) -> TrainReport:
    """Pass on what the ranks tell until all have ended, or one has failed and had its time."""
    heard = _Heard(processes, listener)
    ranks = {line: rank for rank, line in enumerate(lines)}
    deadline = float("inf")
    while time.monotonic() < deadline:
        # Asked before the pipes are, so that nothing comes from a rank which has ended. Not by
        # its sentinel, nor by the end of its pipe: processes of its data loader hold these, too.
        codes = [process.exitcode for process in processes]
        ready = wait(list(ranks), _POLL_S)
        for line, rank in list(ranks.items()):
            if line in ready:
                try:
                    heard.take(rank, line.recv())
                except EOFError:
                    del ranks[line]
        if not ready:
            for rank, code in enumerate(codes):
                heard.end(rank, code or 0)
            if None not in codes:
                break
        if heard.failed:
            deadline = min(deadline, time.monotonic() + _GRACE_S)
    return heard.result()


def _end(processes: list[BaseProcess]) -> None:
    """End what still runs: asked first, and then not."""
    try:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline and any(p.exitcode is None for p in processes):
            time.sleep(_POLL_S)
    finally:  # also when Ctrl-C is pressed again
        for process in processes:
            process.kill()
            process.join()
