"""Pictures that people look at: training curves and contact sheets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fcn_deploy.artifacts import atomic_path
from fcn_deploy.errors import MissingExtraError
from fcn_deploy.image import colorize
from fcn_deploy.spec import ModelSpec

BACKGROUND, INK, FAINT = (255, 255, 255), (32, 33, 36), (110, 113, 118)


def training_curves(path: Path, history: list[dict[str, Any]]) -> None:
    """Draw loss, accuracy and mean IoU over the epochs as PNG.

    Args:
        path: Where to write.
        history: One dict an epoch, as in ``train.json``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        EnvironmentFault: The file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error
    epochs = [epoch["epoch"] for epoch in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    marker = "o" if len(epochs) < 20 else ""
    left.plot(epochs, [epoch["loss"] for epoch in history], color="#c0392b", marker=marker)
    left.set(
        title="Training loss", xlabel="epoch", ylabel="cross-entropy per pixel", ylim=(0, None)
    )
    for key, name, color in (
        ("train_accuracy", "pixel accuracy, training crops", "#7f8c8d"),
        ("val_accuracy", "pixel accuracy, validation", "#2980b9"),
        ("val_mean_iou", "mean IoU, validation", "#27ae60"),
    ):
        known = [(e["epoch"], e[key]) for e in history if e[key] is not None]
        if known:
            right.plot(*zip(*known, strict=True), label=name, color=color, marker=marker)
    right.set(title="Accuracy", xlabel="epoch", ylim=(0, 1))
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


@dataclass(frozen=True)
class SheetRow:
    """One image of a contact sheet.

    Attributes:
        name: What to call it.
        image: RGB uint8 (H, W, 3).
        prediction: Labels uint8 (H, W).
        truth: Labels uint8 (H, W), or ``None`` where nobody knows.
    """

    name: str
    image: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    truth: NDArray[np.uint8] | None


def contact_sheet(
    path: Path,
    rows: list[SheetRow],
    spec: ModelSpec,
    *,
    title: str,
    cell_hw: tuple[int, int] = (230, 320),
) -> None:
    """Draw images beside their predictions and their ground truth, with a legend, as PNG.

    Source: the last figure of "Dive into Deep Learning", chapter 14.11.

    Args:
        path: Where to write.
        rows: Images, from top to bottom.
        spec: Names and colours of the classes.
        title: The line on top.
        cell_hw: Height and width that each picture is fitted into, in pixels.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    columns = ["image", "prediction"] + ["ground truth"] * any(
        row.truth is not None for row in rows
    )
    gap, cell_h, cell_w = 14, *cell_hw
    width = gap + len(columns) * (cell_w + gap)
    text, small = ImageFont.load_default(22), ImageFont.load_default(15)
    legend = _legend_lines(spec, small, width - 2 * gap)
    head = 96 + 28 * len(legend)
    sheet = Image.new("RGB", (width, head + len(rows) * (cell_h + 30) + gap), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, 16), title, INK, font=text)
    _draw_legend(draw, legend, gap, small)
    for column, name in enumerate(columns):
        draw.text((gap + column * (cell_w + gap), head - 26), name, FAINT, font=small)
    for number, row in enumerate(rows):
        top = head + number * (cell_h + 30)
        pictures = [row.image, colorize(row.prediction, spec.palette)]
        if row.truth is not None:
            pictures.append(colorize(row.truth, spec.palette))
        for column, picture in enumerate(pictures):
            # Labels are not averaged: a mixture of two classes would look like a third.
            smooth = Image.Resampling.LANCZOS if column == 0 else Image.Resampling.NEAREST
            fitted = _fit(Image.fromarray(picture), (cell_h, cell_w), smooth)
            sheet.paste(fitted, (gap + column * (cell_w + gap), top))
        draw.text((gap, top + cell_h + 4), row.name, FAINT, font=small)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _fit(picture: Image.Image, hw: tuple[int, int], smooth: Image.Resampling) -> Image.Image:
    scale = min(hw[0] / picture.height, hw[1] / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, smooth)


Legend = list[list[tuple[int, str, tuple[int, int, int]]]]


def _legend_lines(spec: ModelSpec, font: Any, width: int) -> Legend:
    """Break the legend into lines of (x, name, colour)."""
    lines: Legend = [[]]
    x = 0
    for name, color in zip(spec.classes, spec.palette, strict=True):
        needed = 26 + int(font.getlength(name)) + 18
        if x and x + needed > width:
            lines.append([])
            x = 0
        lines[-1].append((x, name, color))
        x += needed
    return lines


def _draw_legend(draw: ImageDraw.ImageDraw, lines: Legend, left: int, font: Any) -> None:
    for number, line in enumerate(lines):
        y = 54 + 28 * number
        for x, name, color in line:
            draw.rectangle((left + x, y, left + x + 18, y + 18), color, outline=FAINT)
            draw.text((left + x + 26, y + 1), name, INK, font=font)
