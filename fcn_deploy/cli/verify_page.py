"""A verification as text: one line a rung, then what is wrong and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from fcn_deploy.cli.console import printable

if TYPE_CHECKING:
    from fcn_deploy.verify import Rung, Verification

_HEADS = ("", "", "logits, most", "99.9 %", "crops equal", "images equal", "mean IoU", "change", "")


def show(result: Verification) -> None:
    """Print it."""
    rows = [_HEADS, *(_row(rung) for rung in result.rungs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    for file, name, *rest in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(rest, widths[2:], strict=True)]
        typer.echo(
            printable(f"{file:<{widths[0]}}  {name:<{widths[1]}}  {'  '.join(cells)}").rstrip()
        )
    for rung in result.rungs:
        for line in _remarks(rung):
            typer.echo(printable(line))
    typer.echo()
    images = result.data["images"]
    crops = max((rung.crops.count for rung in result.rungs if rung.crops), default=0)
    verdict = "Passed" if result.passed else "FAILED"
    typer.echo(
        printable(
            f"{verdict}: against {result.reference['file']} (eager PyTorch, float32) on {crops} "
            f"crops and {images} images. Errors are shares of the range of the logits.\n"
            f"{result.about['seconds']:.0f} s, of which the networks took "
            f"{result.about['inference_seconds']:.0f} s."
        )
    )


def _row(rung: Rung) -> tuple[str, ...]:
    crops, images = rung.crops, rung.images
    verdict = {True: "passed", False: "FAILED", None: "not run"}[rung.passed]
    cells = ["-"] * 6
    if crops is not None and crops.pixels:
        if crops.max_error is not None and crops.p999_error is not None:
            cells[0] = f"{crops.relative(crops.max_error):.1e}"
            cells[1] = f"{crops.relative(crops.p999_error):.1e}"
        cells[2] = f"{crops.agreement:.4%}"
    if images is not None:
        cells[3] = f"{images.agreement:.4%}"
        if images.mean_iou is not None and images.mean_iou_change is not None:
            cells[4:] = [f"{images.mean_iou:.4f}", f"{images.mean_iou_change:+.4f}"]
    return (rung.file or "-", rung.name, *cells, verdict)


def _remarks(rung: Rung) -> Iterator[str]:
    if not (rung.problems or rung.notes):
        return
    yield ""
    yield f"{rung.name}{f', {rung.file}' if rung.file else ''}:"
    for problem in rung.problems:
        yield f"  - {problem}"
    if rung.diagnosis:
        yield f"  > {rung.diagnosis}"
    if rung.problems and rung.crops is not None and rung.crops.pixels:
        yield "  Agreement by the margin of the two best classes (share of the logits' range):"
        for part in rung.crops.by_margin:
            if part.agreement is not None:
                upper = "" if part.stop is None else f" to {part.stop:g}"
                yield (
                    f"    {part.start:g}{upper or ' and more'}: "
                    f"{part.agreement:.3%} of {part.pixels:,} pixels"
                )
    if rung.problems and rung.images is not None:
        yield f"  Worst image: {rung.images.worst}, {rung.images.worst_agreement:.3%} equal"
    if rung.problems and rung.worst_pixel is not None:
        pixel = rung.worst_pixel
        yield (
            f"  Worst pixel: row {pixel.row}, column {pixel.column} of {pixel.name}: "
            f"{pixel.reference} became {pixel.candidate}, {pixel.margin:.1e} of the range apart"
        )
    for remark in rung.notes:
        yield f"  {remark}"
