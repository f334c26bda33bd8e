"""``fcn-deploy evaluate``."""

from __future__ import annotations

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
    progress,
    recorded_data,
    relative,
    write_json,
)
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from fcn_deploy.evaluate import Evaluation

SHEET_ROWS = 8


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
    """Measure pixel accuracy, mean IoU and IoU per class on full-size labelled images.

    Everything comes from one confusion matrix; ignored pixels do not count. A class that occurs in
    neither truth nor prediction does not enter the mean.
    """
    from fcn_deploy.dataset import check, open_dataset
    from fcn_deploy.evaluate import evaluate as measure
    from fcn_deploy.evaluate import require_same_classes
    from fcn_deploy.loading import load, locate

    tiling = parse_tiling(tile, overlap, halo, blend, max_memory)
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


def _print(result: Evaluation) -> None:
    found = result.scores
    width = max(len(name) for name in (*result.classes, "pixel accuracy"))
    for name, iou in zip(result.classes, found.class_iou, strict=True):
        typer.echo(f"{name:<{width}}  {_figure(iou)}")
    typer.echo(f"{'mean IoU':<{width}}  {_figure(found.mean_iou)}")
    typer.echo(f"{'pixel accuracy':<{width}}  {_figure(found.pixel_accuracy)}")
    typer.echo(f"{result.images} images, {found.pixels:,} pixels")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
