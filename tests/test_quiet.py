"""Silence that overlaps in several threads ends for all of them, and not before."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from fcn_deploy.quiet import Quiet, quiet


def test_inside_it_is_quiet_and_outside_it_is_not() -> None:
    with quiet:
        warnings.warn("nobody hears this", stacklevel=1)
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)


def test_an_error_passes_and_ends_the_silence() -> None:
    with pytest.raises(KeyError), quiet:
        raise KeyError
    with pytest.raises(UserWarning):
        warnings.warn("heard", stacklevel=1)


def test_the_first_thread_to_leave_does_not_end_the_silence_of_another() -> None:
    silence, inside, left = Quiet(), threading.Event(), threading.Event()
    before = list(warnings.filters)

    def first() -> None:
        with silence:
            inside.set()
            entered.wait(10)
        left.set()

    entered = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with silence:
        entered.set()
        assert left.wait(10)
        warnings.warn("nobody hears this", stacklevel=1)
    thread.join()
    assert list(warnings.filters) == before


def test_many_threads_leave_the_filters_as_they_were() -> None:
    before = list(warnings.filters)

    def warn(_: int) -> None:
        for _ in range(50):
            with quiet:
                warnings.warn("nobody hears this", stacklevel=1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(warn, range(16)))
    assert list(warnings.filters) == before
