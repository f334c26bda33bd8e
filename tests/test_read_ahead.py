"""Work in advance: in order, no further than wanted, faults in their place, no thread left."""

from __future__ import annotations

import faulthandler
import gc
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.read_ahead import ahead, mapped


@pytest.fixture(autouse=True)
def no_deadlock_and_no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert set(threading.enumerate()) <= before


@given(st.lists(st.integers()), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_items_come_in_order(items: list[int], depth: int) -> None:
    assert list(ahead(items, depth)) == items
    assert list(ahead((item for item in items), depth)) == items


def test_a_thread_makes_what_is_in_advance_and_no_more() -> None:
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            assert threading.current_thread() is not threading.main_thread()
            made.append(number)
            yield number

    for depth in (1, 3):
        made.clear()
        for number in ahead(numbers(), depth):
            until = time.monotonic() + 5
            wanted = min(number + depth + 2, 20)  # used, waiting, and in the making
            while len(made) < wanted and time.monotonic() < until:
                time.sleep(0.001)
            if number < 3:
                time.sleep(0.02)
            assert len(made) == wanted


def test_nothing_is_made_before_somebody_asks() -> None:
    def numbers() -> Iterator[int]:
        raise AssertionError("too early")
        yield 0

    items = ahead(numbers())
    assert threading.active_count() == len(threading.enumerate())
    items.close()


def collect(items: Iterator[int], got: list[int]) -> None:
    """As ``got.extend(items)``, which would keep nothing of what came before a fault."""
    for item in items:
        got.append(item)  # noqa: PERF402


class Odd(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), Odd()])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_faults_are_raised_in_their_place(error: BaseException, at: int) -> None:
    def numbers() -> Iterator[int]:
        for number in range(6):
            if number == at:
                raise error
            yield number

    got: list[int] = []
    with pytest.raises(type(error)) as caught:
        collect(ahead(numbers(), 2), got)
    assert got == list(range(at))
    assert caught.value is error
    error.__traceback__ = None


@pytest.mark.parametrize("taken", [1, 2, 5])
@pytest.mark.parametrize("depth", [1, 4])
def test_who_stops_early_leaves_nothing_behind(taken: int, depth: int) -> None:
    closed_in: list[threading.Thread] = []

    def numbers() -> Iterator[int]:
        try:
            for number in range(1000):
                time.sleep(0.001)
                yield number
        finally:
            closed_in.append(threading.current_thread())

    items = ahead(numbers(), depth)
    for _ in range(taken):
        next(items)
    items.close()
    (thread,) = closed_in
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_a_fault_of_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        for number in ahead(iter(range(1000)), 2):
            if number == 3:
                raise RuntimeError("the consumer's")

    with pytest.raises(RuntimeError, match="the consumer's"):
        consume()
    gc.collect()  # nobody closes a generator in a for loop but its last reference


def test_one_may_read_ahead_of_another() -> None:
    def made() -> Iterator[int]:
        for number in range(50):
            if number == 30:
                raise OSError("deep down")
            yield number

    got: list[int] = []
    with pytest.raises(OSError, match="deep down"):
        collect(ahead((2 * n for n in ahead(made(), 3)), 2), got)
    assert got == [2 * n for n in range(30)]
    items = ahead((2 * n for n in ahead(iter(range(1000)))), 2)
    assert next(items) == 0
    items.close()
    gc.collect()


@given(st.lists(st.integers()), st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_mapped_results_come_in_order(items: list[int], workers: int) -> None:
    assert list(mapped(lambda item: 2 * item, iter(items), workers)) == [2 * i for i in items]


def test_items_are_taken_here_and_no_further_than_there_are_workers() -> None:
    taken: list[int] = []
    computed_in: set[str] = set()

    def numbers() -> Iterator[int]:
        for number in range(10):
            assert threading.current_thread() is threading.main_thread()
            taken.append(number)
            yield number

    def compute(number: int) -> int:
        computed_in.add(threading.current_thread().name)
        return number

    for number in mapped(compute, numbers(), 2):
        assert len(taken) == min(number + 3, 10)
    assert threading.main_thread().name not in computed_in


def test_what_a_mapped_function_raises_comes_in_its_place() -> None:
    def half(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    streamed = mapped(half, range(9), 2)
    assert [next(streamed) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(streamed)


def test_closing_a_mapping_waits_for_what_is_under_way() -> None:
    ended: list[int] = []

    def slow(number: int) -> int:
        time.sleep(0.05)
        ended.append(number)
        return number

    streamed = mapped(slow, range(100), 2)
    next(streamed)
    streamed.close()
    assert 1 <= len(ended) <= 4
