"""The comparison itself: what it lets pass, and what it must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fakes import WithoutScores
from fcn_deploy.backends import ShapeLimits
from fcn_deploy.errors import CheckFailedError
from fcn_deploy.parity import Tolerance, compare, crops_of_images, generated_crops
from fcn_deploy.spec import ModelSpec, voc_palette


class Table(WithoutScores):
    """Returns logits that were written down; fakes the Backend seam."""

    provider, limits = "numpy", ShapeLimits()
    spec = ModelSpec(("a", "b"), voc_palette(2))

    def __init__(self, logits: Any, name: str = "table", precision: str = "fp32") -> None:
        self.name, self.precision = name, precision
        self._logits = np.asarray(logits, np.float32).reshape(1, 2, 1, -1)

    def logits(self, _crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._logits

    def labels(self, _crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(self._logits.argmax(1), np.uint8)


CROP = [np.zeros((1, 32, 32, 3), np.uint8)]
SURE = [[0, 0, 10, 5.0], [10, 10, 0, 5.001]]  # three certain pixels and a close race


def test_equal_backends_pass() -> None:
    report = compare(Table(SURE), Table(SURE), CROP)
    report.require()
    assert report.label_agreement == 1
    assert report.max_logit_error == 0
    assert report.logit_range == 10
    assert (report.crops, report.pixels) == (1, 4)


def test_results_of_another_size_are_named_and_not_broadcast() -> None:
    with pytest.raises(CheckFailedError, match=r"\(1, 2, 1, 1\)(.|\n)*not branch on sizes"):
        compare(Table(SURE), Table([[0], [1]]), CROP)


def test_a_flip_in_a_close_race_is_rounding_and_elsewhere_a_bug() -> None:
    near = np.array(SURE) + np.array([[0, 0, 0, 0.002], [0, 0, 0, 0]])
    report = compare(Table(SURE), Table(near), CROP, Tolerance(1e-3, 1e-3))
    assert report.label_agreement == 0.75
    assert report.flips_outside_margin == 0
    assert report.passed
    far = np.array(SURE)[::-1]
    report = compare(Table(SURE), Table(far), CROP, Tolerance(10, 1e-3))
    assert report.flips_outside_margin == 3
    with pytest.raises(CheckFailedError, match="Parity failed"):
        report.require()


def test_a_logit_error_fails_even_where_all_labels_agree() -> None:
    shifted = np.array(SURE) + 0.01
    report = compare(Table(SURE), Table(shifted), CROP)
    assert report.label_agreement == 1
    assert not report.passed


def test_not_a_number_fails() -> None:
    broken = np.array(SURE)
    broken[0, 0] = np.nan
    assert not compare(Table(SURE), Table(broken), CROP).passed


def test_nothing_compared_is_nothing_proven() -> None:
    report = compare(Table(SURE), Table(SURE), [])
    assert not report.passed
    with pytest.raises(CheckFailedError):
        report.require()


def test_what_is_allowed_follows_the_candidates_precision() -> None:
    shifted = np.array(SURE) + 0.03
    assert not compare(Table(SURE), Table(shifted), CROP).passed
    assert compare(Table(SURE), Table(shifted, precision="fp16"), CROP).passed


def test_crops_of_images_are_legal_and_differ_in_shape(tmp_path: Path) -> None:
    paths = []
    for number, size in enumerate([(600, 700), (20, 10), (480, 360), (1000, 90)]):
        paths.append(tmp_path / f"{number}.png")
        Image.effect_noise(size, 60).save(paths[-1])
    batches = list(crops_of_images(paths))
    assert all(b.shape[1] % 32 == b.shape[2] % 32 == 0 and b.dtype == np.uint8 for b in batches)
    assert len({b.shape for b in batches}) > 2
    assert {len(b) for b in batches} == {1, 2}


def test_generated_crops_have_texture_and_repeat() -> None:
    first, second = list(generated_crops()), list(generated_crops())
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert len({batch.shape for batch in first}) == 4
    assert all(batch.std() > 20 for batch in first)
