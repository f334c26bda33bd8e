"""Boundary F against its definition: every boundary pixel with every other one."""

from __future__ import annotations

import json
from math import hypot, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_deploy.boundary import DEFAULT_TOLERANCE, boundary_f, boundary_scores
from fcn_deploy.spec import IGNORE

Labels = NDArray[np.uint8]
Pixel = tuple[int, int]


def boundary_of(labels: Labels, label: int) -> list[Pixel]:
    """Pixels of a class beside one of another class; pixel by pixel."""
    height, width = labels.shape
    found = []
    for y, x in np.argwhere(labels == label).tolist():
        beside = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [labels[v, u] for v, u in beside if 0 <= v < height and 0 <= u < width]
        if any(other not in (label, IGNORE) for other in inside):
            found.append((y, x))
    return found


def share_near(pixels: list[Pixel], others: list[Pixel], limit2: int) -> float:
    """Of which share of the pixels one of the others is within the root of ``limit2``."""
    if not pixels or not others:
        return 0
    squares = ((np.array(pixels)[:, None] - np.array(others)) ** 2).sum(2)
    return float((squares.min(1) <= limit2).mean())


def slow_f(truth: Labels, prediction: Labels, count: int, limit2: int) -> list[float]:
    masked = np.where(truth == IGNORE, IGNORE, prediction).astype(np.uint8)
    result = []
    for label in range(count):
        true, predicted = boundary_of(truth, label), boundary_of(masked, label)
        precision, recall = share_near(predicted, true, limit2), share_near(true, predicted, limit2)
        if not true and not predicted:
            result.append(float("nan"))
        else:
            either = precision + recall
            result.append(2 * precision * recall / either if either else 0)
    return result


def tolerance_of(limit2: int, hw: Pixel) -> float:
    """The share of the diagonal that is exactly the root of a whole number of pixels."""
    return sqrt(limit2) / hypot(*hw)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[int, Labels, Labels, int]:
    """Classes, truth with ignored pixels, prediction, squared tolerance in pixels."""
    count = draw(st.sampled_from([1, 2, 3, 5, 255]))
    hw = draw(st.tuples(st.integers(1, 14), st.integers(1, 14)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.integers(1, 5))

    def labels(classes: list[int]) -> Labels:
        cells = random.choice(np.array(classes, np.uint8), (hw[0] // coarse + 1,) * 2 + (1,))
        grid = random.choice(cells.ravel(), (hw[0] // coarse + 1, hw[1] // coarse + 1))
        return grid.repeat(coarse, 0).repeat(coarse, 1)[: hw[0], : hw[1]].copy()

    some = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4))
    more = draw(st.lists(st.integers(0, count - 1), max_size=1))
    truth, prediction = labels(some), labels([*some, *more])
    if draw(st.booleans()):
        keep = random.random(hw) < 0.7
        prediction = np.where(keep, np.where(truth == IGNORE, some[0], truth), prediction)
    truth[random.random(hw) < draw(st.sampled_from([0, 0.1, 0.5]))] = IGNORE
    return count, truth, prediction.astype(np.uint8), draw(st.integers(0, 60) | st.just(400))


@given(labelled())
@settings(max_examples=400, deadline=None)
def test_it_is_the_definition(case: tuple[int, Labels, Labels, int]) -> None:
    count, truth, prediction, limit2 = case
    found = boundary_f(truth, prediction, count, tolerance_of(limit2, truth.shape))
    assert found.shape == (count,)
    np.testing.assert_allclose(
        found, slow_f(truth, prediction, count, limit2), rtol=0, atol=1e-12, equal_nan=True
    )


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_definition_on_a_scene_with_the_usual_tolerance(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:240, :320]
    truth, prediction = np.zeros((2, 240, 320), np.uint8)
    for label in (1, 2, 3, 4):
        top, left, radius = random.integers((20, 20, 15), (220, 300, 60)).tolist()
        for labels, off in ((truth, 0), (prediction, 2 * label - 1)):
            disc = (rows - top) ** 2 + (columns - left - off) ** 2 < radius**2
            labels[disc] = label
    truth[:30, 100:160] = truth[rows == columns] = IGNORE
    found = boundary_f(truth, prediction, 6)
    # The diagonal is 400 pixels, so that 0.75 % of it are exactly 3.
    np.testing.assert_allclose(
        found, slow_f(truth, prediction, 6, 9), rtol=0, atol=1e-12, equal_nan=True
    )
    assert np.isnan(found[5])
    assert 0 < np.nanmin(found) < 0.9  # discs are off by 1, 3, 5 and 7 pixels


def test_a_step_counts_up_to_the_tolerance() -> None:
    truth, prediction = np.zeros((2, 240, 320), np.uint8)
    truth[:, 100:] = 1
    for off, expected in ((0, 1.0), (3, 1.0), (-3, 1.0), (4, 0.0), (-4, 0.0)):
        prediction[:] = 0
        prediction[:, 100 + off :] = 1
        assert boundary_f(truth, prediction, 2).tolist() == [expected] * 2
        assert boundary_f(truth.T, prediction.T, 2).tolist() == [expected] * 2
    # Half of the boundary is found, and all that is found is right: F is 2/3, but for the corner.
    prediction[:] = 0
    prediction[120:, 100:] = 1
    found = boundary_f(truth, prediction, 2, 0)
    assert found[1] == pytest.approx(2 * 120 / (240 + 120 + 219), abs=1e-12)


def test_a_limit_in_whole_pixels_is_not_lost_to_rounding() -> None:
    for width in range(12, 90):
        truth, prediction = np.zeros((2, 5, width), np.uint8)
        truth[:, 2:], prediction[:, 5:] = 1, 1
        share = 3 / hypot(*truth.shape)
        assert boundary_f(truth, prediction, 2, share).tolist() == [1, 1]
        assert boundary_f(truth, prediction, 2, share * 0.999).tolist() == [0, 0]


def test_the_rim_of_the_image_and_ignored_pixels_are_no_boundary() -> None:
    truth = np.zeros((9, 12), np.uint8)
    assert np.isnan(boundary_f(truth, truth, 2)).all()
    # A border of ignored pixels between two classes, as Pascal VOC draws it, hides their boundary.
    truth[:, 6:] = 1
    truth[:, 5:7] = IGNORE
    prediction = np.where(np.arange(12) < 6, 0, 1).astype(np.uint8).repeat(9).reshape(12, 9).T
    assert np.isnan(boundary_f(truth, prediction, 2)).all()
    # What is predicted there does not matter, in either direction.
    random = np.random.default_rng(0)
    noise = np.where(truth == IGNORE, random.integers(0, 2, truth.shape), prediction)
    assert np.isnan(boundary_f(truth, noise.astype(np.uint8), 2)).all()
    # But a boundary that is predicted elsewhere is wrong.
    prediction[:, 10:] = 0
    assert boundary_f(truth, prediction, 2).tolist() == [0, 0]


def test_only_boundaries_of_the_same_class_match() -> None:
    truth, prediction = np.zeros((2, 20, 20), np.uint8)
    truth[5:15, 5:15] = 1
    prediction[5:15, 5:15] = 2
    found = boundary_f(truth, prediction, 4, 1.0)
    np.testing.assert_array_equal(found, [1, 0, 0, np.nan])


def test_means_are_over_images_and_then_over_classes() -> None:
    none = np.nan
    found = boundary_scores([np.array([1.0, 0.5, none]), np.array([0.0, none, none])], 3, 0.01)
    assert (found.tolerance, found.class_f, found.mean_f) == (0.01, (0.5, 0.5, None), 0.5)
    found = boundary_scores([np.array([1.0, 0.5]), np.array([0.8, none])], 2, 0.01)
    assert list(found.class_f) == pytest.approx([0.9, 0.5])
    assert found.mean_f == pytest.approx(0.7)


@pytest.mark.parametrize("images", [0, 2])
def test_no_boundary_at_all_is_null_in_json(images: int) -> None:
    found = boundary_scores([np.full(2, np.nan)] * images, 2, DEFAULT_TOLERANCE)
    assert json.loads(json.dumps(found.as_dict(("road", "sky")), allow_nan=False)) == {
        "tolerance": 0.0075,
        "mean_f": None,
        "class_f": {"road": None, "sky": None},
    }


def test_labels_that_cannot_be_are_refused() -> None:
    two = np.array([[0, 1], [2, IGNORE]], np.uint8)
    with pytest.raises(ValueError, match="not below 2"):
        boundary_f(two, np.zeros_like(two), 2)
    with pytest.raises(ValueError, match="not below 2"):
        boundary_f(np.zeros_like(two), two, 2)
    with pytest.raises(ValueError, match="not both"):
        boundary_f(two, two[:1], 3)
    with pytest.raises(ValueError, match="not both"):
        boundary_f(two[0], two[0], 3)
    boundary_f(two, np.full_like(two, 2), 3)
