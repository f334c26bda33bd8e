"""``fcn-deploy verify``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcn_deploy.artifacts import require_writable
from fcn_deploy.cli.building import cache_folder
from fcn_deploy.cli.console import (
    ProviderOption,
    note,
    parse_hw,
    progress,
    recorded_data,
    relative,
    write_json,
)
from fcn_deploy.cli.verify_page import show
from fcn_deploy.errors import CheckFailedError, UsageError

if TYPE_CHECKING:
    from fcn_deploy.verify import Verification
    from fcn_deploy.verify.inputs import Batch
    from fcn_deploy.verify.opening import Ladder
    from fcn_deploy.verify.whole_images import Images

VERIFY_RECORD = "verify.json"


def verify(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ARTIFACT]...",
            help="ONNX files, plans, or a run folder.  [default: all of the newest run]",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What is believed: a checkpoint, or without PyTorch an ONNX file.  [default: the "
            "checkpoint beside the first artifact]",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images without masks.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Labelled images, for the change of IoU.  [default: what the run was trained on]",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of the data set.")] = "val",
    limit: Annotated[
        int, typer.Option(metavar="N", help="Most whole images, spread over all.", min=1)
    ] = 100,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="HxW,...",
            help="Crops to compare logits on.  [default: six, from 32x32 to 320x480]",
            show_default=False,
        ),
    ] = None,
    batches: Annotated[
        str, typer.Option(metavar="N,...", help="How many of them at once.")
    ] = "1,2,4",
    rounds: Annotated[
        int,
        typer.Option(min=1, help="How often, with other real crops each time: 12 are 504 crops."),
    ] = 1,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Least share of pixels with the reference's label.  [default: 0.999; INT8 0.97]",
            show_default=False,
        ),
    ] = None,
    max_miou_drop: Annotated[
        float | None,
        typer.Option(
            "--max-miou-drop",
            min=0,
            max=1,
            help="Most that the mean IoU may fall by.  [default: 0.002; INT8 0.005]",
            show_default=False,
        ),
    ] = None,
    half: Annotated[
        bool | None,
        typer.Option(
            "--half/--no-half",
            help="Have eager PyTorch in half precision as a rung, to tell rounding from faults.  "
            "[default: if an artifact is FP16]",
            show_default=False,
        ),
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first layer that deviates, where one fails.")
    ] = False,
    provider: ProviderOption = "auto",
    seed: Annotated[int, typer.Option(help="Of the crops.")] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures as JSON; - prints them."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.")
    ] = None,
    no_stamp: Annotated[
        bool, typer.Option("--no-stamp", help="Leave the artifacts and their folder as they are.")
    ] = False,
) -> None:
    """Compare ONNX files and engines with the PyTorch model: may they be shipped instead?

    Each is compared on crops, real and random, of several shapes and batch sizes: logits, and
    labels by how close the race of the two best classes was. Then on whole images, through the same
    tiling as segment: labels, and mean IoU where there are masks. Weights of ONNX files are held
    against the checkpoint's. Exit code 6 if one fails; the likely cause is named.

    The result goes into the artifact (fcn-deploy info shows it) and to verify.json beside it.
    """
    from fcn_deploy.verify.bisect import bisected
    from fcn_deploy.verify.inputs import batches_of
    from fcn_deploy.verify.opening import open_ladder, reference_for

    files, explicit = _artifacts(artifacts or [])
    for path in (json_file, html, None if no_stamp else files[0]):
        if path is not None and str(path) != "-":
            require_writable(path.parent)
    if html is not None:
        # Before the work: it needs packages that this command can do without.
        from fcn_deploy.pages.verification import write_verification_page
    with ExitStack() as stack, progress() as bar:
        believed = reference_for(files, against)
        ladder = open_ladder(
            files,
            believed,
            stack,
            explicit=explicit,
            provider=provider,
            half=half,
            cache=cache_folder(),
        )
        sizes, counts = _shapes(shapes, ladder.reference.spec.output_stride), _numbers(batches)
        pictures = _images(images, data, split, limit, ladder)
        note(f"Against {relative(believed)}, {len(pictures)} images")
        task = bar.add_task(
            "verifying", total=2 * len(sizes) * len(counts) + len(pictures), facts=""
        )
        result = _climb(
            ladder,
            pictures,
            batches_of(pictures.files(), sizes, counts, rounds=rounds, seed=seed),
            (min_agreement, max_miou_drop),
            lambda what: bar.update(task, advance=1, facts=what),
        )
    if bisect:
        result = replace(result, rungs=bisected(result.rungs, files, believed, pictures))
    if str(json_file) != "-":
        show(result)
    if not no_stamp:
        _keep(result, files)
    write_json(json_file, result.as_dict())
    if html is not None:
        write_verification_page(html, result.as_dict())
        note(f"Wrote {html}")
    if not result.passed:
        raise typer.Exit(CheckFailedError.exit_code)


def _artifacts(named: Sequence[Path]) -> tuple[tuple[Path, ...], bool]:
    """The files that are meant, and whether each was named."""
    from fcn_deploy.errors import ModelError
    from fcn_deploy.freshness import require_fresh
    from fcn_deploy.verify.opening import artifacts_of

    if not named or (len(named) == 1 and named[0].is_dir()):
        files = artifacts_of(named[0] if named else None)
        for file in files:
            require_fresh(file)
        return files, False
    for path in named:
        if not path.is_file():
            raise ModelError(f"There is no file {path}.", "Name ONNX files and plans, or one run.")
    return tuple(named), True


def _shapes(text: str | None, step: int) -> tuple[tuple[int, int], ...]:
    from fcn_deploy.verify.inputs import require_shapes, usual_shapes

    if text is None:
        return usual_shapes(step)
    shapes = tuple(parse_hw(part.strip(), "--shapes") for part in text.split(","))
    require_shapes(shapes, (), step)
    return shapes


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UsageError(f"--batches takes numbers from 1, such as 1,2,4, not {text!r}.")
    return tuple(int(part) for part in parts)


def _images(
    images: Path | None, data: Path | None, split: str, limit: int, ladder: Ladder
) -> Images:
    """What to compare on: what was named, else the validation images of the run, else none."""
    from fcn_deploy.dataset import open_dataset
    from fcn_deploy.evaluate import require_same_classes
    from fcn_deploy.items import list_items
    from fcn_deploy.verify.whole_images import Images, spread

    if images is not None and data is not None:
        raise UsageError("--images and --data are both images.", "Name one of them.")
    if images is not None:
        return Images(spread(list_items([images]), limit), None, str(images))
    root = data or recorded_data(ladder.against)
    if root is None:
        note("The data set of this model is not at hand: no whole images, and random crops alone.")
        return Images()
    dataset = open_dataset(root)
    require_same_classes(ladder.reference.spec, dataset)
    return Images(spread(dataset.pairs(split), limit), dataset, str(root), split)


def _climb(
    ladder: Ladder,
    images: Images,
    batches: Iterable[Batch],
    limits: tuple[float | None, float | None],
    on_step: Any,
) -> Verification:
    from fcn_deploy.artifacts import sha256
    from fcn_deploy.benchmark.machine import machine_of, versions
    from fcn_deploy.verify import Verification
    from fcn_deploy.verify import verify as climb

    found = climb(
        ladder.reference,
        ladder.candidates,
        batches,
        images,
        min_agreement=limits[0],
        max_miou_drop=limits[1],
        on_step=on_step,
    )
    reference = {
        "file": ladder.against.name,
        "sha256": sha256(ladder.against),
        "name": f"{ladder.reference.name} {ladder.reference.precision}",
        "provider": ladder.reference.provider,
    }
    named = {"min_agreement": limits[0], "max_miou_drop": limits[1]}
    about = {
        "date": date.today().isoformat(),
        "seconds": round(found.seconds, 1),
        "inference_seconds": round(found.inference_seconds, 1),
        "machine": machine_of(),
        "versions": versions(),
    }
    return Verification(reference, images.as_dict(), named, found.rungs, about)


def _keep(result: Verification, files: Sequence[Path]) -> None:
    """Leave the result in every artifact that ran, and beside the first."""
    from fcn_deploy.verify.stamp import stamp

    by_name = {path.name: path for path in files}
    for rung in result.rungs:
        if rung.file is not None and rung.passed is not None:
            stamp(by_name[rung.file], rung, result)
    record = files[0].with_name(VERIFY_RECORD)
    write_json(record, result.as_dict())
    note(f"Wrote {relative(record)}")
