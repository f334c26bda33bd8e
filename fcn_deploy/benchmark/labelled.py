"""Mean IoU of a row, on labelled images."""

from __future__ import annotations

from dataclasses import dataclass

from fcn_deploy.backends import Backend
from fcn_deploy.benchmark.settings import Settings
from fcn_deploy.dataset import Dataset, Pair, check, open_dataset
from fcn_deploy.evaluate import evaluate
from fcn_deploy.segment import Segmenter


@dataclass(frozen=True)
class Labelled:
    """A data set, and those of its images that count."""

    dataset: Dataset
    pairs: list[Pair]


def open_labelled(settings: Settings) -> Labelled:
    """Find and check the labelled images.

    Raises:
        DataError: There are none, or some cannot be used.
    """
    assert settings.data is not None, "asked only where there is a data set"
    dataset = open_dataset(settings.data)
    pairs = [pair for pair, _ in check(dataset, [settings.split])[settings.split]]
    return Labelled(dataset, pairs[: settings.images])


def scores_of(backend: Backend, labelled: Labelled) -> tuple[float | None, float | None]:
    """Mean IoU and pixel accuracy; ``None`` where no pixel counts.

    Raises:
        DataError: The classes differ, or a pair cannot be read.
        FcnDeployError: As the backend raises it.
    """
    found = evaluate(Segmenter(backend), labelled.dataset, labelled.pairs).scores
    return found.mean_iou, found.pixel_accuracy
