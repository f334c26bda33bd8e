"""``fcn-deploy evaluate``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcn_deploy.cli.building import cache_folder
from fcn_deploy.cli.console import (
    BackendOption,
    BlendOption,
    HaloOption,
    MemoryOption,
    OverlapOption,
    ProviderOption,
    TileOption,
    note,
    parse_tiling,
    printable,
    progress,
    recorded_data,
    relative,
    write_json,
)
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from fcn_deploy.evaluate import Evaluation

SHEET_ROWS = 8
TOLERANCE_PERCENT = 0.75


def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="Checkpoint, ONNX file, plan, or run folder.  [default: the newest run]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Argument(
            help="Labelled images.  [default: what the run was trained on]", show_default=False
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of the data set.")] = "val",
    backend: BackendOption = "auto",
    provider: ProviderOption = "auto",
    tile: TileOption = "auto",
    overlap: OverlapOption = 64,
    halo: HaloOption = None,
    blend: BlendOption = "mean",
    max_memory: MemoryOption = 512,
    boundary: Annotated[
        bool,
        typer.Option("--boundary", help="Measure the boundary F of each class as well."),
    ] = False,
    boundary_tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="PERCENT",
            help="How far a boundary may be off, in percent of the image diagonal; implies "
            f"--boundary.  [default: {TOLERANCE_PERCENT}]",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures as JSON; - prints them."),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--contact-sheet",
            metavar="FILE",
            help="Draw image, prediction and ground truth of the first 8 images as PNG.",
        ),
    ] = None,
) -> None:
    """Measure IoU and accuracy, of each class and on the whole, on full-size labelled images.

    IoU and accuracy come from one confusion matrix over all images; ignored pixels do not count. A
    class that occurs in neither truth nor prediction does not enter the mean IoU, one that does not
    occur in the truth not the mean accuracy. Share is that of a class in the true pixels, by which
    the frequency-weighted IoU weighs.

    Boundary F is the harmonic mean of precision and recall of the pixels at the boundary of a
    class, averaged over the images that have one, then over classes. Borders that the masks mark as
    ignored, as those of Pascal VOC do, are no boundaries.
    """
    from fcn_deploy.dataset import check, open_dataset
    from fcn_deploy.evaluate import evaluate as measure
    from fcn_deploy.evaluate import require_same_classes
    from fcn_deploy.loading import load, locate

    tiling = parse_tiling(tile, overlap, halo, blend, max_memory)
    tolerance = _tolerance(boundary, boundary_tolerance)
    path = locate(model, backend)
    root = data or recorded_data(path)
    if root is None:
        raise UsageError(
            f"Nothing is known of the data that {path} was trained on.",
            "Name it: fcn-deploy evaluate MODEL DATA",
        )
    dataset = open_dataset(root)
    rows: list[Any] = []
    opened = load(path, backend=backend, provider=provider, cache=cache_folder())
    with opened as segmenter, progress() as bar:
        note(f"{relative(path)} ({segmenter.backend.name}, {segmenter.backend.provider}) on {root}")
        require_same_classes(segmenter.spec, dataset)
        pairs = [pair for pair, _ in check(dataset, [split])[split]]
        task = bar.add_task("evaluating", total=len(pairs), facts="")

        def on_image(pair: Any, image: Any, truth: Any, prediction: Any) -> None:
            bar.advance(task)
            if sheet is not None and len(rows) < SHEET_ROWS:
                from fcn_deploy.report import SheetRow

                rows.append(SheetRow(pair.name, image, prediction, truth))

        result = measure(
            segmenter,
            dataset,
            pairs,
            tiling=tiling,
            boundary_tolerance=tolerance,
            on_image=on_image,
        )
        spec, device = segmenter.spec, segmenter.backend.provider
    if str(json_file) != "-":
        _print(result)
    write_json(
        json_file,
        {"model": str(path), "data": str(root), "split": split, "provider": device}
        | result.as_dict(),
    )
    if sheet is not None:
        from fcn_deploy.report import contact_sheet

        found = result.scores
        reached = (
            f"mean IoU {_figure(found.mean_iou)}, pixel accuracy {_figure(found.pixel_accuracy)}"
        )
        contact_sheet(sheet, rows, spec, title=f"{path.name}, {split}: {reached}")
        note(f"Wrote {sheet}")


def _tolerance(wanted: bool, percent: float | None) -> float | None:
    """The share of the diagonal, or ``None`` where boundaries are not asked for.

    Raises:
        UsageError: The percentage cannot be.
    """
    if percent is None:
        return TOLERANCE_PERCENT / 100 if wanted else None
    if not 0 <= percent <= 100:
        raise UsageError(
            f"--boundary-tolerance takes 0 to 100 percent of the image diagonal, not {percent:g}.",
            f"Usual is {TOLERANCE_PERCENT}: 4.5 pixels of a 360x480 image.",
        )
    return percent / 100


def _print(result: Evaluation) -> None:
    found, boundary = result.scores, result.boundary
    columns = [
        ("class", [printable(name) for name in result.classes]),
        ("IoU", [_figure(value) for value in found.class_iou]),
        ("accuracy", [_figure(value) for value in found.class_accuracy]),
        ("share", ["-" if s is None else f"{s:.2%}" for s in found.class_frequency]),
    ]
    totals = [
        ("mean IoU", found.mean_iou, ""),
        ("frequency-weighted IoU", found.frequency_weighted_iou, ""),
        ("mean accuracy", found.mean_accuracy, ""),
        ("pixel accuracy", found.pixel_accuracy, ""),
    ]
    if boundary is not None:
        columns.insert(3, ("boundary F", [_figure(value) for value in boundary.class_f]))
        within = f"  within {100 * boundary.tolerance:g}% of the image diagonal"
        totals.append(("mean boundary F", boundary.mean_f, within))
    for line in _table(columns):
        typer.echo(line)
    typer.echo()
    width = max(len(name) for name, _, _ in totals)
    for name, value, remark in totals:
        typer.echo(f"{name:<{width}}  {_figure(value)}{remark}")
    typer.echo(f"{result.images} images, {found.pixels:,} pixels")


def _table(columns: list[tuple[str, list[str]]]) -> Iterator[str]:
    """Lines of a table: the first column from the left, figures from the right."""
    widths = [max(map(len, (head, *cells))) for head, cells in columns]
    for first, *rest in zip(*([head, *cells] for head, cells in columns), strict=True):
        figures = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([f"{first:<{widths[0]}}", *figures])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
