"""Each contender is tried in a process of its own first: what crashes or hangs there is left out.

Memory is measured there, too, where nobody else's libraries and caches are, and how long the GPU
works, because the profiler slows down what comes after it.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from gpu_busy import busy_seconds, start_profiler
from gpu_device import find_device, give_back
from gpu_job import Contender, Job, Loaded, reason_of

_RUNS = 3
"""Runs before memory is read: buffers are taken at the first, graphs recorded at the second."""


@dataclass(frozen=True)
class Trial:
    """How it went.

    Attributes:
        reason: Why it does not work; empty where it does.
        memory_bytes: Device memory beyond the bare CUDA context, when it was warm.
        busy_s: Seconds of one run in which the GPU works.
    """

    reason: str = ""
    memory_bytes: int | None = None
    busy_s: float | None = None


Message = tuple[int, Trial]
"""Number of the job, and what is known of it; what comes later is known better."""


def try_out(contender: Contender, jobs: Sequence[Job]) -> Iterator[Message]:
    """Try a contender on jobs of one device, one after the other."""
    device = find_device(jobs[0].device)
    used = device.used_bytes
    before = used() if used else 0
    for number, job in enumerate(jobs):
        try:
            loaded = contender.open(job)
            try:
                _warm(loaded, job)
                device.synchronise()
                memory = used() - before if used else None
            finally:
                loaded.close()
            yield number, Trial(memory_bytes=memory)
            if device.is_gpu and loaded.clock is None:
                del loaded
                yield number, Trial(memory_bytes=memory, busy_s=_busy(contender, job))
        except Exception as error:  # a vendor's, whatever it is: that is what is to be found out
            yield number, Trial(reason_of(error))
        gc.collect()
        give_back()


def _warm(loaded: Loaded, job: Job) -> None:
    pixels = job.load()
    for _ in range(_RUNS):
        loaded.labels(pixels)


def _busy(contender: Contender, job: Job) -> float | None:
    """Loaded anew, for the profiler may not see into CUDA graphs that are older than itself."""
    try:
        start_profiler()
        loaded = contender.open(job)
        try:
            _warm(loaded, job)
            pixels = job.load()
            return busy_seconds(lambda: loaded.labels(pixels), _RUNS)
        finally:
            loaded.close()
    except Exception:  # a profiler that does not work here says nothing against the contender
        return None


def tried(messages: Iterator[Message], count: int) -> list[Trial]:
    """The last word on each of ``count`` jobs."""
    known = dict(messages)
    return [known[number] for number in range(count)]


def try_apart(contender: Contender, jobs: Sequence[Job], limit_s: float) -> list[Trial]:
    """The same in a new process, which may crash, and is ended when it takes too long.

    Args:
        contender: What to try.
        jobs: On what.
        limit_s: Seconds that each job may take, with all that is built for it.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, contender, list(jobs)), daemon=False)
    process.start()
    sender.close()
    known: dict[int, Trial] = {}
    reason = ""
    try:
        while True:
            start = time.monotonic()
            if not receiver.poll(limit_s):
                reason = f"took longer than {time.monotonic() - start:.0f} s"
                break
            number, trial = receiver.recv()
            known[number] = trial
    except EOFError:
        process.join()
        reason = f"its process ended with code {process.exitcode}"
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        receiver.close()
    return [known.get(number, Trial(reason)) for number in range(len(jobs))]


def _send(sender: Connection, contender: Contender, jobs: list[Job]) -> None:
    for message in try_out(contender, jobs):
        sender.send(message)
