"""Our figures beside those of torchmetrics, absent classes included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from fcn_deploy.metrics import confusion_matrix, scores
from fcn_deploy.spec import IGNORE

Labels = NDArray[np.uint8]
Case = tuple[int, list[tuple[Labels, Labels]]]

FLOAT32 = 2e-6  # torchmetrics divides in float32


@st.composite
def batches(draw: st.DrawFn) -> Case:
    """Number of classes, and some images: truth with ignored pixels, prediction, of one size."""
    count = draw(st.sampled_from([2, 3, 11, 255]))
    # Of many classes most are absent; of few, some are only true or only predicted.
    true, predicted = (
        draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=4)) for _ in range(2)
    )
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ignored = draw(st.sampled_from([0.0, 0.3]))
    images = []
    for _ in range(draw(st.integers(1, 3))):
        hw = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
        truth = random.choice(np.array(true, np.uint8), hw)
        truth[random.random(hw) < ignored] = IGNORE
        images.append((truth, random.choice(np.array([*true, *predicted], np.uint8), hw)))
    images[0][0].flat[0] = true[0]  # something to judge: of nothing torchmetrics says 0, not None
    return count, images


def theirs(metric: Metric, case: Case) -> NDArray[np.float64]:
    """What a metric of torchmetrics says after one image at a time."""
    for truth, prediction in case[1]:
        metric.update(torch.tensor(prediction).long(), torch.tensor(truth).long())
    found: NDArray[np.float64] = metric.compute().double().numpy()
    return found


def close(ours: object, reference: object) -> None:
    np.testing.assert_allclose(
        np.array(ours, np.float64), np.array(reference, np.float64), rtol=0, atol=FLOAT32
    )


@given(batches())
@settings(max_examples=60, deadline=None)
def test_all_figures_are_those_of_torchmetrics(case: Case) -> None:
    count, images = case
    matrix = sum(
        (confusion_matrix(t, p, count) for t, p in images), np.zeros((count, count), np.int64)
    )
    ours = scores(matrix)
    np.testing.assert_array_equal(
        matrix, theirs(MulticlassConfusionMatrix(count, ignore_index=IGNORE), case)
    )
    jaccard = {
        average: theirs(MulticlassJaccardIndex(count, average, ignore_index=IGNORE), case)
        for average in ("none", "macro", "weighted")
    }
    accuracy = {
        average: theirs(MulticlassAccuracy(count, average=average, ignore_index=IGNORE), case)
        for average in ("none", "macro", "micro")
    }
    # Of a class that is not there, they say 0 and leave it out of the mean; we say None.
    close([iou or 0 for iou in ours.class_iou], jaccard["none"])
    close(ours.mean_iou, jaccard["macro"])
    close(ours.frequency_weighted_iou, jaccard["weighted"])
    close([share or 0 for share in ours.class_accuracy], accuracy["none"])
    close(ours.pixel_accuracy, accuracy["micro"])
    # Of a class that is only predicted, they say accuracy 0, as if there were something to find.
    known = [share for share in ours.class_accuracy if share is not None]
    judged = int(((matrix.sum(0) + matrix.sum(1)) > 0).sum())
    close(sum(known) / judged, accuracy["macro"])
    if judged == len(known):
        close(ours.mean_accuracy, accuracy["macro"])


def test_mean_accuracy_where_no_class_is_only_predicted() -> None:
    random = np.random.default_rng(0)
    truth, prediction = random.integers(0, 5, (2, 40, 30), np.uint8)
    truth[:3] = IGNORE
    prediction[random.random((40, 30)) < 0.4] = 2
    ours = scores(confusion_matrix(truth, prediction, 7))
    metric = MulticlassAccuracy(7, average="macro", ignore_index=IGNORE)
    assert ours.mean_accuracy == pytest.approx(
        float(theirs(metric, (7, [(truth, prediction)]))), abs=FLOAT32
    )
    assert ours.mean_accuracy != pytest.approx(ours.pixel_accuracy, abs=1e-3)
