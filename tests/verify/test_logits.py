"""Figures that are added up batch by batch are those of all values at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_deploy.parity import margins_of
from fcn_deploy.verify.logits import MARGINS, LogitFigures

Floats = NDArray[np.float32]


def collected(seed: int, batches: int, noise: float) -> tuple[LogitFigures, Floats, Floats, Floats]:
    random = np.random.default_rng(seed)
    figures, wanted, got = LogitFigures(), [], []
    for _ in range(batches):
        a = (10 * random.standard_normal((2, 3, 8, 8))).astype(np.float32)
        b = a + (noise * random.standard_normal(a.shape)).astype(np.float32)
        figures.add(a, b, b.argmax(1).astype(np.uint8), margins_of(a), "real")
        wanted.append(a)
        got.append(b)
    a, b = np.concatenate(wanted), np.concatenate(got)
    return figures, a, b, margins_of(a)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from([1e-6, 1e-3, 0.1, 3.0]))
def test_figures_of_batches_are_those_of_all_values(seed: int, batches: int, noise: float) -> None:
    collector, wanted, got, margins = collected(seed, batches, noise)
    found = collector.figures(1e-2)
    errors, same = np.abs(wanted - got), wanted.argmax(1) == got.argmax(1)
    assert found.max_error == errors.max()
    assert found.rms_error == pytest.approx(np.sqrt(np.mean(np.square(errors, dtype=float))))
    exact = np.sort(errors.ravel())[int(np.ceil(0.999 * errors.size)) - 1]
    assert found.p999_error == pytest.approx(exact, rel=0.011)
    assert found.logit_range == pytest.approx(wanted.max() - wanted.min())
    assert found.agreement == pytest.approx(same.mean())
    assert (found.count, found.pixels) == (2 * batches, same.size)
    flips = int((margins[~same] > 1e-2 * found.logit_range).sum())
    near = int((np.abs(margins / found.logit_range - 1e-2) < 2e-4).sum())  # the width of a bin
    assert abs(found.flips_outside_margin - flips) <= near
    assert sum(part.pixels for part in found.by_margin) == same.size


def test_flips_are_told_apart_by_how_close_the_race_was() -> None:
    wanted = np.zeros((1, 2, 1, 4), np.float32)
    wanted[0, 0, 0] = [10, 5, 0.05, 0.0005]  # leads of class 0; the range is 10
    figures = LogitFigures()
    labels = np.array([[[0, 0, 1, 1]]], np.uint8)
    figures.add(wanted, None, labels, margins_of(wanted), "real")
    found = figures.figures(1e-3)
    by_start = {part.start: part for part in found.by_margin}
    assert [by_start[start].pixels for start in MARGINS] == [1, 0, 1, 0, 2]
    assert by_start[1e-3].agreement == 0
    assert by_start[0.1].agreement == 1
    assert by_start[1e-4].agreement is None
    assert found.flips_outside_margin == 1
    assert found.max_error is None  # there were labels alone


def test_a_value_that_is_not_a_number_fails_every_limit() -> None:
    wanted = np.ones((1, 2, 1, 1), np.float32)
    figures = LogitFigures()
    figures.add(wanted, wanted * np.nan, np.zeros((1, 1, 1), np.uint8), margins_of(wanted), "real")
    error = figures.figures(0.1).max_error
    assert error is not None
    assert not error <= 1e9
