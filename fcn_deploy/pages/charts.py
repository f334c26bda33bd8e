"""Charts of a training and of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.metrics import scores
from fcn_deploy.pages.page import figure as digits
from fcn_deploy.pages.svg import (
    FAINT,
    INK,
    SERIES,
    WIDTH,
    Chart,
    new_figure,
    see_through,
    styled,
    to_svg,
)
from fcn_deploy.spec import Color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES_FIT = 21
"""Number of classes up to which a cell of the matrix has room for its figure."""


def loss_curve(history: list[dict[str, Any]]) -> Chart:
    """Training loss over the epochs, of ``train.json``'s history.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    epochs, losses = [e["epoch"] for e in history], [e["loss"] for e in history]
    with styled("loss"):
        figure = new_figure(2.9)
        axes = figure.subplots()
        axes.plot(epochs, losses, color=SERIES[4], marker=_marker(epochs))
        axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
        _count_epochs(axes)
        svg = to_svg(figure)
    says = f"Training loss, from {losses[0]:.3f} in epoch {epochs[0]} to {losses[-1]:.3f} in epoch"
    return Chart(svg, f"{says} {epochs[-1]}.")


def accuracy_curves(history: list[dict[str, Any]]) -> Chart:
    """Accuracy and mean IoU over the epochs, of ``train.json``'s history.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    said = []
    with styled("accuracy"):
        figure = new_figure(2.9)
        axes = figure.subplots()
        for key, name, color in (
            ("train_accuracy", "pixel accuracy, training crops", "#8b929c"),
            ("val_accuracy", "pixel accuracy, validation", SERIES[0]),
            ("val_mean_iou", "mean IoU, validation", SERIES[2]),
        ):
            known = [(e["epoch"], e[key]) for e in history if e.get(key) is not None]
            if known:
                marker = _marker(known)
                axes.plot(*zip(*known, strict=True), label=name, color=color, marker=marker)
                said.append(f"{name} {known[-1][1]:.3f} in epoch {known[-1][0]}")
        axes.set(xlabel="epoch", ylim=(0, 1))
        axes.legend(loc="lower right")
        _count_epochs(axes)
        svg = to_svg(figure)
    return Chart(svg, f"Curves over the epochs: {'; '.join(said)}.")


def _marker(points: list[Any]) -> str:
    return "o" if len(points) < 20 else ""


def _count_epochs(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def class_bars(
    classes: tuple[str, ...], palette: tuple[Color, ...], ious: tuple[float | None, ...]
) -> Chart:
    """IoU of each class in its colour, the best on top; classes that never occur are left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    known = [
        (iou, name, color)
        for iou, name, color in zip(ious, classes, palette, strict=True)
        if iou is not None
    ]
    known.sort(key=lambda entry: entry[0])
    with styled("classes"):
        figure = new_figure(0.7 + 0.27 * len(known))
        axes = figure.subplots()
        rows, lengths = range(len(known)), [iou for iou, _, _ in known]
        colors = [tuple(channel / 255 for channel in color) for _, _, color in known]
        bars = axes.barh(rows, lengths, color=colors, edgecolor=INK, linewidth=0.5, height=0.72)
        axes.bar_label(bars, [f"{length:.3f}" for length in lengths], padding=4, fontsize=8.5)
        axes.set_yticks(rows, [_short(name) for _, name, _ in known])
        axes.set(xlabel="IoU", xlim=(0, 1.12), ylim=(-0.6, len(known) - 0.4))
        axes.set_xticks(np.linspace(0, 1, 6))
        axes.grid(visible=False, axis="y")
        svg = to_svg(figure)
    said = ", ".join(f"{name} {iou:.3f}" for iou, name, _ in reversed(known))
    return Chart(svg, f"IoU of each class: {said}.")


def confusion_heat_map(classes: tuple[str, ...], confusion: NDArray[np.int64]) -> Chart:
    """The matrix, (C, C) with the truth as rows, each row as shares of its true pixels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shares = row_shares(confusion)
    count = len(classes)
    side = min(max(3.6, 1.4 + 0.31 * count), 12)
    with styled("confusion"):
        figure = new_figure(side, max(side, WIDTH))
        axes = figure.subplots()
        axes.grid(visible=False)
        axes.pcolormesh(
            shares,
            cmap=see_through(SERIES[0]),
            vmin=0,
            vmax=1,
            edgecolors=FAINT,
            linewidth=0.4 if count <= 2 * FIGURES_FIT else 0,
            rasterized=count > 2 * FIGURES_FIT,
        )
        if count <= FIGURES_FIT:
            _write_figures(axes, shares)
        names, centers = [_short(name) for name in classes], np.arange(count) + 0.5
        axes.set_xticks(centers, names, rotation=90)
        axes.set_yticks(centers, names)
        axes.set(xlabel="predicted", ylabel="true", xlim=(0, count), ylim=(count, 0))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        svg = to_svg(figure)
    found = scores(confusion).mean_accuracy
    return Chart(svg, f"Confusion matrix of {count} classes; mean accuracy {digits(found)}.")


def _write_figures(axes: Axes, shares: NDArray[np.float64]) -> None:
    small = 8.0 if len(shares) <= 12 else 6.0
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.01:
            text, color = f"{100 * share:.0f}", "white" if share > 0.55 else INK
            place = (column + 0.5, row + 0.5)
            axes.text(*place, text, ha="center", va="center", fontsize=small, color=color)


def _short(name: str) -> str:
    return name if len(name) <= 22 else f"{name[:21]}…"


def row_shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Each row of (C, C) divided by its sum; rows of classes that are nowhere true are zero."""
    sums = confusion.sum(axis=1, keepdims=True)
    shares: NDArray[np.float64] = confusion / np.maximum(sums, 1)
    return shares
