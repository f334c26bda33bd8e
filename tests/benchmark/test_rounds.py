"""Who has a turn when, how long it goes on, and what the numbers are made of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
import pytest

from fcn_deploy.benchmark.quantiles import ratio_of, spread_of, timing_of
from fcn_deploy.benchmark.rounds import Pace, race, warm_up
from fcn_deploy.errors import DeviceError

MS = 1_000_000


class Bench:
    """A clock that only work moves on, and a list of who worked."""

    def __init__(self) -> None:
        self.now = 0
        self.order: list[str] = []

    def clock(self) -> int:
        return self.now

    def work(self, name: str, *milliseconds: float, fails_at: int = -1) -> Callable[[], None]:
        """Work that takes so long, the last time for good."""
        times = list(milliseconds)

        def work() -> None:
            if self.order.count(name) == fails_at:
                raise DeviceError(f"{name} is broken.")
            self.order.append(name)
            self.now += int((times.pop(0) if len(times) > 1 else times[0]) * MS)

        return work


def nothing() -> None:
    pass


def test_all_have_a_turn_in_every_round_and_another_one_begins() -> None:
    bench = Bench()
    works = {name: bench.work(name, 1000) for name in "ABC"}
    raced = race(works, Pace(rounds=4, seconds=3), clock=bench.clock, rest=nothing)
    assert "".join(bench.order) == "AAABBBCCC" + "ABC" + "BCA" + "CAB" + "ABC"
    assert raced.warmup == dict.fromkeys("ABC", 3)
    assert raced.samples == {name: [[1000 * MS]] * 4 for name in "ABC"}


def test_fast_rows_run_more_often_in_a_turn_so_that_all_take_their_seconds() -> None:
    bench = Bench()
    works = {"slow": bench.work("slow", 300), "fast": bench.work("fast", 10)}
    raced = race(works, Pace(rounds=10, seconds=1), clock=bench.clock, rest=nothing)
    assert {name: len(turns) for name, turns in raced.samples.items()} == {"slow": 10, "fast": 10}
    assert {len(turn) for turn in raced.samples["slow"]} == {1}
    assert {len(turn) for turn in raced.samples["fast"]} == {10}
    turns = [(name, len(list(group))) for name, group in groupby(bench.order[6:])]
    assert turns[:3] == [("slow", 1), ("fast", 20), ("slow", 2)]  # each round begins with another


def test_a_race_ends_after_rounds_and_seconds_whichever_is_later() -> None:
    def rounds(milliseconds: float, pace: Pace) -> int:
        bench = Bench()
        raced = race({"A": bench.work("A", milliseconds)}, pace, clock=bench.clock, rest=nothing)
        return len(raced.samples["A"])

    assert rounds(500, Pace(rounds=8, seconds=1)) == 8
    assert rounds(5, Pace(rounds=10, seconds=10)) == 20  # 100 runs a turn are the most
    assert rounds(1000, Pace(rounds=20, seconds=1)) == 20
    assert rounds(6000, Pace(rounds=20, seconds=1)) == 10  # a minute is the most
    assert rounds(6000, Pace(rounds=50, seconds=30)) == 20  # unless more was asked for
    assert rounds(60_000, Pace(rounds=20, seconds=1)) == 5
    assert rounds(1, Pace(rounds=1, seconds=0)) == 1


def test_who_fails_does_not_end_the_race_of_the_others() -> None:
    bench = Bench()
    works = {
        "A": bench.work("A", 100),
        "at once": bench.work("at once", 100, fails_at=0),
        "later": bench.work("later", 100, fails_at=5),
    }
    raced = race(works, Pace(rounds=6, seconds=0), clock=bench.clock, rest=nothing)
    assert {name: str(error) for name, error in raced.failed.items()} == {
        "at once": "at once is broken.",
        "later": "later is broken.",
    }
    assert list(raced.samples) == ["A"]
    assert len(raced.samples["A"]) == 6


def test_each_turn_waits_until_the_one_before_is_quiet() -> None:
    bench = Bench()
    works = {name: bench.work(name, 1000) for name in "AB"}
    rests: list[int] = []
    race(works, Pace(2, 0), clock=bench.clock, rest=lambda: rests.append(len(bench.order)))
    assert rests == [0, 3, 6, 7, 8, 9]  # before both warm-ups, and before each of four turns


@pytest.mark.parametrize(
    ("milliseconds", "runs"),
    [
        ((10,), 3),
        ((90, 50, 20, 10, 10), 5),  # still getting faster
        ((10, 10, 30, 10, 10.5), 5),  # disturbed
        ((10, 20) * 20, 12),  # never steady: as often as is allowed
    ],
)
def test_warming_up_goes_on_until_it_is_steady(milliseconds: list[float], runs: int) -> None:
    bench = Bench()
    done, fastest = warm_up(bench.work("A", *milliseconds), Pace(most_warmup=12), bench.clock)
    assert (done, fastest) == (runs, 10 * MS)


def test_percentiles_are_those_of_all_runs() -> None:
    times = [milliseconds * MS for milliseconds in range(1, 101)]
    np.random.default_rng(0).shuffle(times)
    timing = timing_of((2, 500, 1000), [times[:30], times[30:]], None, 3)
    assert (timing.p50_ms, timing.p90_ms, timing.p99_ms) == (50.5, 90.1, 99.01)
    assert (timing.min_ms, timing.max_ms, timing.mean_ms) == (1, 100, 50.5)
    assert (timing.rounds, timing.runs, timing.warmup) == (2, 100, 3)
    assert timing.throughput_images_s == pytest.approx(2 / 0.0505, abs=1e-3)
    assert timing.megapixels_s == pytest.approx(1 / 0.0505, abs=1e-3)
    assert timing.ratio is timing.ratio_low is timing.ratio_high is None


def test_the_ratio_is_taken_round_by_round() -> None:
    # The machine is five times as slow in half of the rounds: medians of all would say nothing.
    reference = [[100 * MS], [500 * MS], [100 * MS], [500 * MS], [500 * MS]]
    mine = [[turn[0] // 2, turn[0] // 2, 3 * turn[0]] for turn in reference]
    assert ratio_of(mine, reference) == (0.5, 0.5, 0.5)
    mine[0] = [200 * MS]
    assert ratio_of(mine, reference) == pytest.approx((0.5, 0.5, 1.4))
    assert timing_of((1, 32, 32), mine, reference, 3).ratio_high == pytest.approx(1.4)
    assert timing_of((1, 32, 32), reference, reference, 3).ratio == 1


def test_the_spread_of_a_stage_is_in_milliseconds() -> None:
    spread = spread_of([0.1, 0.2, 0.3, 0.4])
    assert (spread.p50, spread.p90, spread.mean) == (250, 370, 250)
