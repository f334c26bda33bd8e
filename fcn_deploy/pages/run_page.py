"""The page of a run: how it was trained, what it achieves, and what was proven and measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.artifacts import TRAIN_RECORD
from fcn_deploy.errors import DataError
from fcn_deploy.pages.benchmark import Benchmark, benchmark_of
from fcn_deploy.pages.charts import (
    accuracy_curves,
    class_bars,
    confusion_heat_map,
    loss_curve,
    row_shares,
)
from fcn_deploy.pages.model_card import model_card
from fcn_deploy.pages.page import figure, ms, percent, write_page
from fcn_deploy.pages.scenes import Judged
from fcn_deploy.pages.svg import Chart
from fcn_deploy.pages.verification import Verification, verification_of

VERIFY_RECORD = "verify.json"
BENCHMARK_RECORD = "benchmark.json"
CONFUSIONS_SHOWN = 5


@dataclass(frozen=True)
class Headline:
    """A figure on top of a page: how much, of what, a remark, and whether it passed or failed."""

    value: str
    name: str
    remark: str
    mark: str = ""


@dataclass(frozen=True)
class Figures:
    """What an evaluation says, drawn.

    Attributes:
        bars: IoU of each class.
        heat_map: The confusion matrix.
        rows: Class, colour, IoU, accuracy and share of each class.
        confusions: True class, predicted class and share of the true pixels, the largest first.
    """

    bars: Chart
    heat_map: Chart
    rows: tuple[tuple[str, tuple[int, int, int], float | None, float | None, float | None], ...]
    confusions: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Records:
    """What the commands before left in a run folder; ``None`` or empty for what they did not.

    Attributes:
        run: The folder.
        history: One dict an epoch.
        verification: The parity ladder.
        benchmark: The measurements.
    """

    run: Path
    history: list[dict[str, Any]]
    verification: Verification | None
    benchmark: Benchmark | None


def read_records(run: Path) -> Records:
    """Read ``train.json``, ``verify.json`` and ``benchmark.json`` of a run folder.

    Raises:
        DataError: One of these files is damaged.
        MissingExtraError: matplotlib is not installed.
    """
    return Records(run, _history(run), _verification(run), _benchmark(run))


def write_run_page(
    path: Path,
    records: Records,
    facts: dict[str, Any],
    judged: Judged | None,
    *,
    unjudged: tuple[str, str],
    made: str,
) -> None:
    """Write the page of a run folder.

    Args:
        path: The HTML file.
        records: What the run folder holds.
        facts: Of the model, by :func:`~fcn_deploy.describe.describe`.
        judged: How it does on labelled images, or ``None``.
        unjudged: Why not, if that is so, and the command that mends it.
        made: The day, for people.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        EnvironmentFault: The page cannot be written.
    """
    history, checked, measured = records.history, records.verification, records.benchmark
    write_page(
        path,
        "report.html",
        {
            "title": records.run.resolve().name,
            "made": made,
            "headlines": _headlines(facts, judged, checked, measured),
            "curves": [loss_curve(history), accuracy_curves(history)] if history else [],
            "card": model_card(records.run, facts, judged),
            "judged": judged,
            "unjudged": unjudged,
            "figures": None if judged is None else _figures(judged, facts),
            "verification": checked,
            "benchmark": measured,
        },
    )


def read_record(path: Path) -> dict[str, Any] | None:
    """JSON that another command left; ``None`` where there is none.

    Raises:
        DataError: It cannot be read.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("no table")
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}.", "Delete it.") from error
    return content


def _history(run: Path) -> list[dict[str, Any]]:
    record = read_record(run / TRAIN_RECORD) or {}
    history = record.get("history", [])
    needed = {"epoch", "loss", "train_accuracy"}
    if not isinstance(history, list) or not all(needed <= set(epoch) for epoch in history):
        raise DataError(f"{run / TRAIN_RECORD} is damaged: no history.", "Delete it.")
    return history


def _verification(run: Path) -> Verification | None:
    record = read_record(run / VERIFY_RECORD)
    try:
        return None if record is None else verification_of(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _foreign(run / VERIFY_RECORD, "verify") from error


def _benchmark(run: Path) -> Benchmark | None:
    record = read_record(run / BENCHMARK_RECORD)
    try:
        return None if record is None else benchmark_of(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _foreign(run / BENCHMARK_RECORD, "benchmark") from error


def _foreign(path: Path, command: str) -> DataError:
    return DataError(
        f"{path} is not what fcn-deploy {command} of this release writes.",
        f"Make it again: fcn-deploy {command}",
    )


def _headlines(
    facts: dict[str, Any],
    judged: Judged | None,
    checked: Verification | None,
    measured: Benchmark | None,
) -> list[Headline]:
    found = []
    if judged is not None:
        scores = judged.evaluation.scores
        on = f"{judged.evaluation.images} images, {judged.data}/{judged.split}"
        found.append(Headline(figure(scores.mean_iou), "mean IoU", on))
        found.append(Headline(percent(scores.pixel_accuracy), "pixel accuracy", on))
    if checked is not None:
        mark = "passed" if checked.passed else "failed"
        found.append(Headline(checked.outcome, "verified", checked.remark, mark))
    else:
        found += _proven_before(facts)
    if measured is not None and measured.headline is not None:
        latency, remark = measured.headline
        found.append(Headline(ms(latency), "median latency", remark))
    return found


def _proven_before(facts: dict[str, Any]) -> list[Headline]:
    """What the model file itself says of being verified or, before that, of its export."""
    stamp, parity = facts.get("verified"), facts.get("parity")
    try:
        if stamp:
            mark = "passed" if stamp["passed"] else "failed"
            remark = f"against {stamp['against']} on {stamp['images']} images"
            return [Headline(mark, "verified", remark, mark)]
        if parity:
            remark = f"{parity['candidate']} against {parity['reference']}, {parity['crops']} crops"
            return [Headline(percent(parity["label_agreement"], 3), "labels equal", remark)]
    except (KeyError, TypeError):  # anybody can write metadata
        return []
    return []


def _figures(judged: Judged, facts: dict[str, Any]) -> Figures:
    evaluation, found = judged.evaluation, judged.evaluation.scores
    palette = tuple((red, green, blue) for red, green, blue in facts["palette"])
    columns = (found.class_iou, found.class_accuracy, found.class_frequency)
    return Figures(
        class_bars(evaluation.classes, palette, found.class_iou),
        confusion_heat_map(evaluation.classes, evaluation.confusion),
        tuple(zip(evaluation.classes, palette, *columns, strict=True)),
        _largest_confusions(evaluation.classes, evaluation.confusion),
    )


def _largest_confusions(
    classes: tuple[str, ...], confusion: NDArray[np.int64]
) -> tuple[tuple[str, str, float], ...]:
    shares = row_shares(confusion)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:CONFUSIONS_SHOWN]
    cells = [divmod(int(place), len(classes)) for place in order]
    return tuple(
        (classes[row], classes[column], float(shares[row, column]))
        for row, column in cells
        if shares[row, column] > 0
    )
