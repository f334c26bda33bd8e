"""``fcn-deploy report``."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.artifacts import newest_run
from fcn_deploy.cli.building import cache_folder
from fcn_deploy.cli.console import note, placed, progress, recorded_data, relative
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from fcn_deploy.pages.scenes import Judged

NAME = "report.html"


def report(
    run: Annotated[
        Path | None,
        typer.Argument(help="Run folder.  [default: the newest]", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Labelled images.  [default: what the run was trained on]", show_default=False
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of the data set.")] = "val",
    images: Annotated[int, typer.Option(min=0, help="How many images to show.")] = 12,
    evaluate: Annotated[
        bool,
        typer.Option(help="Judge the model on all images of the split; without, none is shown."),
    ] = True,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="ARTIFACT",
            help="Which of the run's models to judge.  [default: model.onnx, or best.safetensors]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", help=f"Where to write.  [default: RUN/{NAME}]", show_default=False
        ),
    ] = None,
) -> None:
    """Write a page about a run: one HTML file that needs nothing else, to open or to send.

    It has a model card, training curves, IoU of each class, the confusion matrix, a gallery whose
    masks can be drawn aside, and what verify and benchmark left in the run folder.
    """
    from fcn_deploy.describe import describe
    from fcn_deploy.loading import locate
    from fcn_deploy.pages.page import require_packages
    from fcn_deploy.pages.run_page import read_records, write_run_page

    require_packages("jinja2", "matplotlib")
    folder = newest_run() if run is None else run
    if not folder.is_dir():
        raise UsageError(f"{folder} is no run folder.", "Name the folder that train has written.")
    target = placed(out, folder / NAME)
    path = locate(model or folder)
    facts, records = describe(path), read_records(folder)
    judged, unjudged = None, ("The model was not judged, as asked. It is by", "fcn-deploy report")
    if evaluate:
        root = data or recorded_data(path)
        unjudged = ("The data of this run is not here. Name it:", "fcn-deploy report --data DATA")
        judged = None if root is None else _judged(path, root, split, images)
    if judged is None:
        note(f"No figures and no gallery. {' '.join(unjudged)}")
    today = datetime.now(timezone.utc).date().isoformat()
    write_run_page(target, records, facts, judged, unjudged=unjudged, made=today)
    note(f"Wrote {relative(target)}")


def _judged(path: Path, root: Path, split: str, images: int) -> Judged:
    from fcn_deploy.dataset import check, open_dataset
    from fcn_deploy.evaluate import require_same_classes
    from fcn_deploy.loading import load
    from fcn_deploy.pages.scenes import judge

    dataset = open_dataset(root)
    with load(path, cache=cache_folder()) as segmenter, progress() as bar:
        note(f"{relative(path)} ({segmenter.backend.name}, {segmenter.backend.provider}) on {root}")
        require_same_classes(segmenter.spec, dataset)
        pairs = [pair for pair, _ in check(dataset, [split])[split]]
        task = bar.add_task("evaluating", total=len(pairs), facts="")
        return judge(
            segmenter,
            dataset,
            split,
            pairs,
            wanted=images,
            on_image=lambda: bar.advance(task),
        )
