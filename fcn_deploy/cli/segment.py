"""``fcn-deploy segment``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.artifacts import require_writable
from fcn_deploy.cli.building import open_model
from fcn_deploy.cli.console import (
    BackendOption,
    BlendOption,
    Defaults,
    HaloOption,
    MemoryOption,
    OverlapOption,
    ProviderOption,
    RecipeOption,
    TileOption,
    named,
    note,
    one_of,
    parse_tiling,
    printable,
    progress,
    relative,
    write_json,
)
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from fcn_deploy.batch import ItemReport
    from fcn_deploy.spec import ModelSpec
    from fcn_deploy.tiling import CropGrid

FAILED_SHOWN = 10


def segment(
    context: typer.Context,
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
    recipe: RecipeOption = None,
    backend: BackendOption = "auto",
    provider: ProviderOption = "auto",
    rebuild: Annotated[
        bool,
        typer.Option(
            "--rebuild",
            help="Build the engine again where it is missing, stale, or made for another machine.",
        ),
    ] = False,
    trust_engine: Annotated[
        bool,
        typer.Option(
            "--trust-engine",
            help="Load a plan without a passport: native code, which only you know the origin of.",
        ),
    ] = False,
    tile: TileOption = "auto",
    overlap: OverlapOption = 64,
    halo: HaloOption = None,
    blend: BlendOption = "mean",
    max_memory: MemoryOption = 512,
    save: Annotated[
        str,
        typer.Option(
            help="Comma-separated: mask, overlay, confidence, probabilities (one band a class), "
            "polygons (GeoJSON)."
        ),
    ] = "mask",
    mask_format: Annotated[
        str, typer.Option(help="png, tiff, or auto: GeoTIFF for GeoTIFF, else png.")
    ] = "auto",
    max_pixels: Annotated[
        int, typer.Option(help="Refuse larger images, judged from their header.")
    ] = 200_000_000,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write what became of each image as JSON."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            help="Write a page of the first images, whose masks can be drawn aside.",
        ),
    ] = None,
) -> None:
    """Segment whole images of any size into masks.

    Large images go through the network in overlapping crops; the logits of all crops that cover a
    pixel are averaged. Large TIFF and PNG are read, segmented and written by rows, so that memory
    does not grow with their height. Masks are palette PNGs of exactly the image's size, as
    OUT/mask/NAME.png, their values the class ids; a GeoTIFF gives a GeoTIFF. Overlays, confidence,
    probabilities and polygons lie beside them. Images that cannot be read are listed and do not
    stop the others (exit 3).
    """
    from fcn_deploy.batch import segment_items
    from fcn_deploy.items import Item, list_items
    from fcn_deploy.outputs import KINDS, MASK_FORMATS

    chosen_by = Defaults(context, recipe)
    backend, provider = chosen_by.pick("backend", backend), chosen_by.pick("provider", provider)
    tile, overlap = chosen_by.pick("tile", tile), chosen_by.pick("overlap", overlap)
    max_memory = chosen_by.pick("max_memory_mib", max_memory, "max_memory")
    kinds = named(save, KINDS, "--save")
    written = one_of(mask_format, MASK_FORMATS, "--mask-format")
    tiling = parse_tiling(tile, overlap, halo, blend, max_memory)
    if page is not None:
        _require_page(page, kinds)
    items = list_items(source, out)
    require_writable(out)
    path, loaded = open_model(
        model, backend, provider, recipe=recipe, rebuild=rebuild, trust_engine=trust_engine
    )
    with loaded as segmenter, progress() as bar:
        running = segmenter.backend
        note(f"{relative(path)} on {running.name} ({running.provider}), {running.precision}")
        task = bar.add_task("segmenting", total=len(items), facts="")

        said: set[tuple[int, int]] = set()

        def on_rows(item: Item, grid: CropGrid, rows: int) -> None:
            if len(grid) == 1:
                return
            if grid.crop_hw not in said:
                said.add(grid.crop_hw)
                # As it is: names may look like markup or emoji, and lines are not to be broken.
                text = printable(f"{item.source.name}: {chosen(grid)}")
                bar.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
            percent = 100 * rows // grid.image_hw[0]
            bar.update(task, facts=printable(f"{item.source.name} {percent} %"))

        def on_item(report: ItemReport) -> None:
            bar.update(task, advance=1, facts=printable(Path(report.source).name))

        reports = segment_items(
            segmenter,
            items,
            out,
            save=kinds,
            tiling=tiling,
            mask_format=written,
            max_pixels=max_pixels,
            on_rows=on_rows,
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
            "halo": halo,
            "blend": blend,
            "max_memory_mib": max_memory,
            "done": len(reports) - len(failed),
            "failed": len(failed),
            "images": [report.as_dict() for report in reports],
        },
    )
    if page is not None:
        by = f"{path.name} on {running.name} ({running.provider}), {running.precision}"
        _write_page(page, reports, segmenter.spec, by, max_pixels)
    for report in failed[:FAILED_SHOWN]:
        note(f"Failed: {report.error}")
    if len(failed) > FAILED_SHOWN:
        note(f"... and {len(failed) - FAILED_SHOWN} more; --json FILE lists them all.")
    note(f"{len(reports) - len(failed)} of {len(reports)} images segmented into {relative(out)}")
    if failed:
        raise typer.Exit(3)


def _require_page(page: Path, kinds: tuple[str, ...]) -> None:
    """Find out before the work that no page could be written after it.

    Raises:
        UsageError: No masks are saved, of which it is made.
        MissingExtraError: What it is made with is not installed.
        EnvironmentFault: It cannot be written there.
    """
    from fcn_deploy.pages.page import require_packages

    if "mask" not in kinds:
        raise UsageError("--report shows masks, which --save leaves out.", "Add: --save mask")
    require_packages("jinja2")
    require_writable(page.parent)


def _write_page(
    page: Path, reports: list[ItemReport], spec: ModelSpec, model: str, max_pixels: int
) -> None:
    from datetime import datetime, timezone

    from fcn_deploy.pages.gallery import write_gallery_page

    today = datetime.now(timezone.utc).date().isoformat()
    write_gallery_page(page, reports, spec, model=model, made=today, max_pixels=max_pixels)
    note(f"Wrote {relative(page)}")


def chosen(grid: CropGrid) -> str:
    """What a plan is, for people."""
    image, crop = grid.image_hw, grid.crop_hw
    border = f"overlap {grid.overlap}" if grid.halo is None else f"halo {grid.halo}"
    more = grid.computed_pixels / (image[0] * image[1])
    return (
        f"{image[0]}x{image[1]} in {len(grid)} crops of {crop[0]}x{crop[1]}, {border}: "
        f"{more:.2f} times its pixels"
    )
