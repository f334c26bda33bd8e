"""``fcn-deploy segment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fcn_deploy.artifacts import require_writable
from fcn_deploy.cli.console import (
    BackendOption,
    OverlapOption,
    ProviderOption,
    TileOption,
    named,
    note,
    parse_tile,
    progress,
    relative,
    write_json,
)

FAILED_SHOWN = 10


def segment(
    source: Annotated[
        list[str],
        typer.Argument(help="Images, folders (searched recursively), glob patterns."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder.")] = Path("segmented"),
    model: Annotated[
        Path | None,
        typer.Option(
            help="Model file or run folder.  [default: the newest run]", show_default=False
        ),
    ] = None,
    backend: BackendOption = "auto",
    provider: ProviderOption = "auto",
    tile: TileOption = "auto",
    overlap: OverlapOption = 64,
    save: Annotated[str, typer.Option(help="Comma-separated: mask, overlay, confidence.")] = "mask",
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images, judged from their header.")
    ] = 200_000_000,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write what became of each image as JSON."),
    ] = None,
) -> None:
    """Segment whole images of any size into masks.

    Large images go through the network in overlapping crops; the logits of all crops that cover a
    pixel are averaged. Masks are palette PNGs of exactly the image's size, as OUT/mask/NAME.png,
    their values the class ids; overlays and confidence lie beside them. Images that cannot be read
    are listed and do not stop the others (exit 3).
    """
    from fcn_deploy.batch import SAVES, ItemReport, list_items, segment_items
    from fcn_deploy.segment import load, locate

    kinds = named(save, SAVES, "--save")
    size = parse_tile(tile)
    items = list_items(source, out)
    require_writable(out)
    path = locate(model, backend)
    with load(path, backend=backend, provider=provider) as segmenter, progress() as bar:
        running = segmenter.backend
        note(f"{relative(path)} on {running.name} ({running.provider}), {running.precision}")
        task = bar.add_task("segmenting", total=len(items), facts="")

        def on_item(report: ItemReport) -> None:
            bar.update(task, advance=1, facts=Path(report.source).name)

        reports = segment_items(
            segmenter,
            items,
            out,
            save=kinds,
            tile=size,
            overlap=overlap,
            max_pixels=max_pixels,
            on_item=on_item,
        )
    failed = [report for report in reports if report.status == "failed"]
    write_json(
        json_file,
        {
            "model": str(path),
            "backend": running.name,
            "provider": running.provider,
            "precision": running.precision,
            "tile": tile,
            "overlap": overlap,
            "done": len(reports) - len(failed),
            "failed": len(failed),
            "images": [report.as_dict() for report in reports],
        },
    )
    for report in failed[:FAILED_SHOWN]:
        note(f"Failed: {report.error}")
    if len(failed) > FAILED_SHOWN:
        note(f"... and {len(failed) - FAILED_SHOWN} more; --json FILE lists them all.")
    note(f"{len(reports) - len(failed)} of {len(reports)} images segmented into {relative(out)}")
    if failed:
        raise typer.Exit(3)
