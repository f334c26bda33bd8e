"""Accuracy and IoU against a slow computation with sets, in exact fractions."""

from __future__ import annotations

import json
from fractions import Fraction

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


def slow_iou(count: int, truth: Labels, prediction: Labels) -> list[Fraction | None]:
    counted = [pixel for pixel, label in enumerate(truth) if label != IGNORE]
    ious: list[Fraction | None] = []
    for label in range(count):
        true = {pixel for pixel in counted if truth[pixel] == label}
        predicted = {pixel for pixel in counted if prediction[pixel] == label}
        union = true | predicted
        ious.append(Fraction(len(true & predicted), len(union)) if union else None)
    return ious


@given(labelled())
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_sets_of_pixels(case: tuple[int, Labels, Labels]) -> None:
    count, truth, prediction = case
    found = scores(confusion_matrix(np.array(truth, "u1"), np.array(prediction, "u1"), count))
    ious = slow_iou(count, truth, prediction)
    for iou, slow in zip(found.class_iou, ious, strict=True):
        assert (iou is None) == (slow is None)
        assert iou is None or slow is None or abs(iou - slow) < 1e-12
    present = [iou for iou in ious if iou is not None]
    pairs = [(t, p) for t, p in zip(truth, prediction, strict=True) if t != IGNORE]
    assert found.pixels == len(pairs)
    if not pairs:
        assert found.mean_iou is None
        assert found.pixel_accuracy is None
        return
    accuracy = Fraction(sum(t == p for t, p in pairs), len(pairs))
    assert found.mean_iou == pytest.approx(float(sum(present) / len(present)), rel=0, abs=1e-12)
    assert found.pixel_accuracy == pytest.approx(float(accuracy), rel=0, abs=1e-12)


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
    # A class that is only predicted is wrong everywhere; it is not absent.
    found = scores(np.array([[3, 1], [0, 0]], np.int64))
    assert found.class_iou == (3 / 4, 0)
    assert found.mean_iou == 3 / 8


def test_nothing_to_judge_is_null_in_json_not_nan() -> None:
    truth = np.full((4, 5), IGNORE, np.uint8)
    found = scores(confusion_matrix(truth, np.zeros_like(truth), 2))
    text = json.dumps(found.as_dict(("road", "sky")), allow_nan=False)
    assert json.loads(text) == {
        "pixel_accuracy": None,
        "mean_iou": None,
        "class_iou": {"road": None, "sky": None},
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
