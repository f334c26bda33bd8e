"""The page of ``segment --report``: images with their masks, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fcn_deploy.batch import ItemReport
from fcn_deploy.errors import FcnDeployError, InputError
from fcn_deploy.image import MAX_PIXELS, read_mask
from fcn_deploy.outputs import open_source
from fcn_deploy.pages.page import write_page
from fcn_deploy.pages.scenes import Scene, scene
from fcn_deploy.spec import ModelSpec

SCENES = 24
MOST_PIXELS = 100_000_000
"""Masks of larger images are left out of a gallery: each is read whole."""


def write_gallery_page(
    path: Path,
    reports: Sequence[ItemReport],
    spec: ModelSpec,
    *,
    model: str,
    made: str,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Write a page of the first :data:`SCENES` images of a batch, from the masks it has written.

    Args:
        path: The HTML file.
        reports: What became of each image; their outputs hold masks.
        spec: Names and colours of the classes.
        model: What segmented them, for people.
        made: The day, for people.
        max_pixels: What the batch was allowed to read.

    Raises:
        MissingExtraError: jinja2 is not installed.
        EnvironmentFault: The file cannot be written.
    """
    done = [report for report in reports if report.status == "done"]
    scenes, left_out = [], []
    for report in done[:SCENES]:
        try:
            scenes.append(_scene_of(report, spec, max_pixels))
        except FcnDeployError as error:
            left_out.append((Path(report.source).name, error.problem))
    facts = {
        "title": "Segmented images",
        "made": made,
        "model": model,
        "classes": tuple(zip(spec.classes, spec.palette, strict=True)),
        "scenes": scenes,
        "done": len(done),
        "more": max(0, len(done) - SCENES),
        "left_out": left_out,
        "failed": [
            (Path(report.source).name, report.error)
            for report in reports
            if report.status == "failed"
        ],
    }
    write_page(path, "gallery.html", facts)


def _scene_of(report: ItemReport, spec: ModelSpec, max_pixels: int) -> Scene:
    if report.height * report.width > MOST_PIXELS:
        raise InputError(f"{report.height}x{report.width} is too large for a page.")
    labels = read_mask(Path((report.outputs or {})["mask"])).astype("uint8", copy=False)
    with open_source(Path(report.source), max_pixels=max_pixels) as source:
        return scene(Path(report.source).name, source, labels, spec)
