"""Memory of this process: what a piece of work adds to it at its peak. Linux only."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TypeVar

MIB = 2**20

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
"""Source: proc(5), /proc/pid/clear_refs: the peak resident set becomes the current one."""


class Peak:
    """The most memory that is resident inside a ``with`` block, beyond what was there before it.

    The kernel counts exactly; where it does not let its mark be reset, a thread looks every
    millisecond. Heap that is free is given back first: loading a model leaves a hundred megabytes
    of it, in which much of what follows would hide.

    Attributes:
        before: Resident bytes at the start of the block.
        extra: Most resident bytes during the block, less ``before``; known at its end.
    """

    def __init__(self) -> None:
        self.before = self.extra = 0
        self._highest = 0
        self._done = threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> Peak:
        gc.collect()
        _trim_heap()
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:
            self._watch = threading.Thread(target=self._look, daemon=True)
            self._watch.start()
        self.before = self._highest = _status("VmRSS")
        return self

    def _look(self) -> None:
        while not self._done.wait(0.001):
            self._highest = max(self._highest, _status("VmRSS"))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watch is None:
            self._highest = max(self._highest, _status("VmHWM"))
        else:
            self._done.set()
            self._watch.join()
        self.extra = self._highest - self.before


def _trim_heap() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library alone
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no {field}")


def require_linux() -> None:
    """Say at the start that memory cannot be measured here."""
    if not _STATUS.exists():
        sys.exit("These benchmarks read memory from /proc, which only Linux has.")


def in_new_process(work: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of a module in a new process, where nothing else has used memory yet."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()
