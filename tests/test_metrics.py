"""Accuracy and IoU against a slow computation with sets, in exact fractions.

Against torchmetrics: ``test_torchmetrics.py``, which needs torch.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.metrics import confusion_matrix, scores
from fcn_deploy.spec import IGNORE

Labels = list[int]


@st.composite
def labelled(draw: st.DrawFn) -> tuple[int, Labels, Labels]:
    """Number of classes, truth with some ignored pixels, prediction."""
    count = draw(st.sampled_from([1, 2, 3, 11, 255]))
    label = st.integers(0, count - 1)
    size = draw(st.integers(0, 60))
    truth = draw(st.lists(label | st.just(IGNORE), min_size=size, max_size=size))
    return count, truth, draw(st.lists(label, min_size=size, max_size=size))


class Slow(NamedTuple):
    """One class: IoU, accuracy, and how many pixels it truly has."""

    iou: Fraction | None
    accuracy: Fraction | None
    pixels: int


def slow_scores(count: int, truth: Labels, prediction: Labels) -> list[Slow]:
    counted = [pixel for pixel, label in enumerate(truth) if label != IGNORE]
    found = []
    for label in range(count):
        true = {pixel for pixel in counted if truth[pixel] == label}
        predicted = {pixel for pixel in counted if prediction[pixel] == label}
        hits, union = len(true & predicted), true | predicted
        iou = Fraction(hits, len(union)) if union else None
        found.append(Slow(iou, Fraction(hits, len(true)) if true else None, len(true)))
    return found


def same(found: float | None, slow: Fraction | None) -> bool:
    if found is None or slow is None:
        return found is None and slow is None
    return abs(found - slow) < 1e-12


def mean(values: list[Fraction | None]) -> Fraction | None:
    present = [value for value in values if value is not None]
    return sum(present, Fraction()) / len(present) if present else None


@given(labelled())
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_sets_of_pixels(case: tuple[int, Labels, Labels]) -> None:
    count, truth, prediction = case
    found = scores(confusion_matrix(np.array(truth, "u1"), np.array(prediction, "u1"), count))
    slow = slow_scores(count, truth, prediction)
    pairs = [(t, p) for t, p in zip(truth, prediction, strict=True) if t != IGNORE]
    assert found.pixels == len(pairs)
    frequencies = [Fraction(s.pixels, len(pairs)) if pairs else None for s in slow]
    assert all(map(same, found.class_iou, [s.iou for s in slow]))
    assert all(map(same, found.class_accuracy, [s.accuracy for s in slow]))
    assert all(map(same, found.class_frequency, frequencies))
    assert len(found.class_iou) == len(found.class_accuracy) == len(found.class_frequency) == count
    assert same(found.mean_iou, mean([s.iou for s in slow]))
    assert same(found.mean_accuracy, mean([s.accuracy for s in slow]))
    weighted = sum((s.pixels * s.iou for s in slow if s.iou is not None), Fraction())
    right = sum(t == p for t, p in pairs)
    assert same(found.frequency_weighted_iou, weighted / len(pairs) if pairs else None)
    assert same(found.pixel_accuracy, Fraction(right, len(pairs)) if pairs else None)


@given(labelled(), st.integers(0, 60))
@settings(max_examples=50, deadline=None)
def test_matrices_of_parts_add_up(case: tuple[int, Labels, Labels], cut: int) -> None:
    count, truth, prediction = case
    t, p = np.array(truth, np.uint8), np.array(prediction, np.uint8)
    whole = confusion_matrix(t, p, count)
    parts = confusion_matrix(t[:cut], p[:cut], count) + confusion_matrix(t[cut:], p[cut:], count)
    np.testing.assert_array_equal(whole, parts)
    assert whole.dtype == np.int64


def test_rows_are_the_truth() -> None:
    truth = np.array([[0, 0], [1, IGNORE]], np.uint8)
    prediction = np.array([[0, 2], [2, IGNORE]], np.uint8)
    matrix = confusion_matrix(truth, prediction, 3)
    assert matrix.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0]]


def test_absent_classes_stay_out_of_the_mean() -> None:
    found = scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]], np.int64))
    assert found.class_iou == (3 / 4, 4 / 5, None)
    assert found.mean_iou == pytest.approx((3 / 4 + 4 / 5) / 2, abs=1e-12)
    assert found.frequency_weighted_iou == pytest.approx((3 / 4 + 4 / 5) / 2, abs=1e-12)
    assert found.class_accuracy == (3 / 4, 1, None)
    assert found.mean_accuracy == 7 / 8
    # A class that is only predicted is wrong everywhere; it is not absent. But nothing of it could
    # be found, and its weight is that of no pixels.
    found = scores(np.array([[3, 1], [0, 0]], np.int64))
    assert found.class_iou == (3 / 4, 0)
    assert found.mean_iou == 3 / 8
    assert found.class_accuracy == (3 / 4, None)
    assert found.class_frequency == (1, 0)
    assert found.mean_accuracy == found.frequency_weighted_iou == 3 / 4


def test_nothing_to_judge_is_null_in_json_not_nan() -> None:
    truth = np.full((4, 5), IGNORE, np.uint8)
    found = scores(confusion_matrix(truth, np.zeros_like(truth), 2))
    text = json.dumps(found.as_dict(("road", "sky")), allow_nan=False)
    assert json.loads(text) == {
        "pixel_accuracy": None,
        "mean_accuracy": None,
        "mean_iou": None,
        "frequency_weighted_iou": None,
        "class_iou": {"road": None, "sky": None},
        "class_accuracy": {"road": None, "sky": None},
        "class_frequency": {"road": None, "sky": None},
        "pixels": 0,
    }


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [([0, 3], [0, 0]), ([0, 1], [0, 3]), ([0, 1], [0, IGNORE]), ([254], [0])],
)
def test_labels_that_are_no_class_are_refused(truth: Labels, prediction: Labels) -> None:
    with pytest.raises(ValueError, match="not below 3"):
        confusion_matrix(np.array(truth, np.uint8), np.array(prediction, np.uint8), 3)


def test_whatever_is_predicted_on_ignored_pixels_does_not_matter() -> None:
    truth = np.array([1, IGNORE], np.uint8)
    assert confusion_matrix(truth, np.array([1, 200], np.uint8), 2).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("shape", [(2, 3), (6,), (3, 2, 1)])
def test_shapes_must_agree(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(np.zeros((3, 2), np.uint8), np.zeros(shape, np.uint8), 2)
