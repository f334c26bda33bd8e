"""Times that can be compared on a machine that is never quite quiet: turns, in rounds."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from fcn_deploy.errors import FcnDeployError

Work = Callable[[], object]
Clock = Callable[[], int]
"""Nanoseconds, from any start."""

Samples = list[list[int]]
"""Nanoseconds of each run, by round."""

_STABLE = 1.1
"""Runs that differ by less than that factor are warm."""

_RUNS_A_TURN = 100
_LONGEST_S, _LONGEST = 60.0, 4
"""No row takes longer than these seconds, or so many times its own, once it had a few rounds."""

_LEAST_ROUNDS = 5
_QUIET_S, _QUIET_AT_MOST_S = 0.005, 0.1


@dataclass(frozen=True)
class Pace:
    """How much is measured.

    Attributes:
        rounds: Turns of each row, at least; fewer only where a row is very slow.
        seconds: Time of each row over all rounds, at least.
        warmup: Runs of each row before the first round, at least.
        most_warmup: The same, at most, however unsteady they are.
    """

    rounds: int = 20
    seconds: float = 3.0
    warmup: int = 3
    most_warmup: int = 20

    def runs_a_turn(self, nanoseconds: int) -> int:
        """Runs of one turn, so that all turns take the row's seconds."""
        turn_ns = self.seconds / self.rounds * 1e9
        return min(max(round(turn_ns / max(nanoseconds, 1)), 1), _RUNS_A_TURN)

    def enough(self, spent_ns: Mapping[str, int], rounds: int) -> bool:
        """Whether to stop after that many rounds, in which each row took so long."""
        longest, shortest = max(spent_ns.values()), min(spent_ns.values())
        most_s = max(_LONGEST_S, _LONGEST * self.seconds)
        if rounds >= _LEAST_ROUNDS and longest >= most_s * 1e9:
            return True
        return rounds >= self.rounds and shortest >= self.seconds * 1e9


@dataclass(frozen=True)
class Raced:
    """What came of a race.

    Attributes:
        samples: Of those that came through.
        warmup: Runs that each of them had before.
        failed: What stopped the others.
    """

    samples: dict[str, Samples] = field(default_factory=dict)
    warmup: dict[str, int] = field(default_factory=dict)
    failed: dict[str, FcnDeployError] = field(default_factory=dict)


def race(
    works: Mapping[str, Work],
    pace: Pace,
    *,
    clock: Clock = time.perf_counter_ns,
    rest: Callable[[], None] | None = None,
    on_round: Callable[[int], None] | None = None,
) -> Raced:
    """Give each piece of work a turn a round, so that what disturbs the machine meets them all.

    Each round begins with another one, so that nobody always follows the same neighbour.

    Args:
        works: What to time, by name; a call returns when its result is there.
        pace: How much to measure.
        clock: Tells the time.
        rest: Called before each turn; ``None`` for :func:`until_quiet`.
        on_round: Told how many rounds are done.
    """
    raced = Raced()
    rest = until_quiet if rest is None else rest
    runs: dict[str, int] = {}
    with _little_garbage():
        for name, work in works.items():
            rest()
            try:
                raced.warmup[name], last = warm_up(work, pace, clock)
            except FcnDeployError as error:
                raced.failed[name] = error
                continue
            runs[name] = pace.runs_a_turn(last)
            raced.samples[name] = []
        spent = dict.fromkeys(raced.samples, 0)
        done = 0
        while spent and not (done and pace.enough(spent, done)):
            for name in in_turn(list(spent), done):
                rest()
                try:
                    turn = [_timed(works[name], clock) for _ in range(runs[name])]
                except FcnDeployError as error:  # who fails must not end the race of the others
                    raced.failed[name] = error
                    del spent[name], raced.samples[name]
                    continue
                raced.samples[name].append(turn)
                spent[name] += sum(turn)
            done += 1
            if on_round is not None:
                on_round(done)
    return raced


def warm_up(work: Work, pace: Pace, clock: Clock = time.perf_counter_ns) -> tuple[int, int]:
    """Run until two runs in a row are about as fast as the fastest so far.

    Returns:
        Runs, and nanoseconds of the fastest one.
    """
    times: list[int] = []
    while len(times) < pace.most_warmup:
        times.append(_timed(work, clock))
        if len(times) >= max(pace.warmup, 2) and max(times[-2:]) <= _STABLE * min(times):
            break
    return len(times), min(times)


def until_quiet() -> None:
    """Wait until the threads of the row before have gone to sleep.

    Those of ONNX Runtime and OpenMP go on spinning for some milliseconds after a run, in which they
    would take the cores away from whoever comes next.
    """
    end = time.monotonic() + _QUIET_AT_MOST_S
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(_QUIET_S)
        if time.process_time() - before < _QUIET_S / 10:
            return


def _timed(work: Work, clock: Clock) -> int:
    start = clock()
    result = work()
    elapsed = clock() - start
    del result  # giving it back is no part of the work
    return elapsed


def in_turn(names: list[str], number: int) -> list[str]:
    """The same names, beginning with another one in each round."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Let the collector look at new objects alone: PyTorch's old ones take it a third of a second.

    It would run in the middle of somebody's turn.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
