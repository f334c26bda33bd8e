"""Warnings of other libraries, ignored for a while, in several threads at once."""

from __future__ import annotations

import threading
import warnings
from types import TracebackType


class Quiet:
    """Ignores warnings as long as any thread is inside; a context manager for all of them.

    Filters are one list for the whole process, which ``warnings.catch_warnings`` puts back as it
    found it: of two threads that overlap, the first to leave would end the silence of the other,
    and the last would make its own last forever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = warnings.catch_warnings()
                self._before.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._before.__exit__(kind, error, trace)


quiet = Quiet()
"""The one for this process, as there is one list of filters."""
