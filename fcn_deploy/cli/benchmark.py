"""``fcn-deploy benchmark``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcn_deploy.artifacts import newest_run, require_writable
from fcn_deploy.cli.building import cache_folder
from fcn_deploy.cli.console import (
    note,
    parse_hw,
    printable,
    progress,
    recorded_data,
    relative,
    write_json,
)
from fcn_deploy.errors import EnvironmentFault, UsageError

if TYPE_CHECKING:
    from fcn_deploy.benchmark.run import OnProgress

RECORD = "benchmark.json"


def benchmark(
    artifact: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Checkpoints, ONNX files, plans, run folders.  [default: all of the newest run]",
            show_default=False,
        ),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="HxW,...",
            help="Crops to measure on.  [default: the run's images, or else its crops]",
            show_default=False,
        ),
    ] = None,
    batches: Annotated[str, typer.Option(metavar="N,...", help="Crops in one call.")] = "1",
    rounds: Annotated[
        int,
        typer.Option(
            help="Rounds, in each of which every row has a turn; fewer where that takes minutes."
        ),
    ] = 20,
    seconds: Annotated[
        float, typer.Option(help="Time of all turns of a row and shape; at least.")
    ] = 3.0,
    end_to_end: Annotated[
        Path | None,
        typer.Option(
            "--end-to-end",
            metavar="DIR",
            help="Also segment the images of a folder, from file to mask, stage by stage.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also measure mean IoU on these labelled images."),
    ] = None,
    accuracy: Annotated[
        bool, typer.Option("--accuracy", help="The same, on what the run was trained on.")
    ] = False,
    split: Annotated[str, typer.Option(help="Which part of the labelled images.")] = "val",
    images: Annotated[
        int | None, typer.Option(help="No more images than these.", show_default="all")
    ] = None,
    provider: Annotated[
        str, typer.Option(help="Of ONNX Runtime; cpu keeps PyTorch there, too.")
    ] = "auto",
    compile_too: Annotated[
        bool,
        typer.Option("--compile/--no-compile", help="Whether torch.compile takes part: a minute."),
    ] = True,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Whether peak memory is measured.")
    ] = True,
    power: Annotated[
        bool, typer.Option("--power/--no-power", help="Whether power is, where the device tells.")
    ] = True,
    trust_engine: Annotated[
        bool, typer.Option("--trust-engine", help="Load a plan without a passport: native code.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all figures as JSON; - prints them."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw latency against mean IoU, or alone, as PNG."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with all of it.")
    ] = None,
) -> None:
    """Time all backends side by side, beside eager PyTorch and torch.compile.

    Latency is that of pixels to labels, both in host memory, as in deployment. All rows take turns,
    round by round, so that what disturbs the machine meets them all; their time by that of eager
    PyTorch is the median of these rounds, with the 10th and 90th percentile. Peak memory is that of
    a process that loads one model and runs it. Files that cannot run here are listed, unless they
    were named. The figures of a whole run are kept in its folder, as benchmark.json, for report.
    """
    from fcn_deploy.benchmark import Settings, measure
    from fcn_deploy.benchmark.table import table_of

    artifacts = artifact or [newest_run()]
    settings = Settings(
        shapes=tuple(parse_hw(part.strip(), "--shapes") for part in _parts(shapes)),
        batches=_numbers(batches),
        rounds=rounds,
        seconds=seconds,
        compile=compile_too,
        memory=memory,
        power=power,
        provider=provider,
        trust_engine=trust_engine,
        data=_labelled(data, accuracy, artifacts[0]),
        split=split,
        images=images,
        end_to_end=end_to_end,
    )
    _require_places(json_file, plot, html)
    note(f"Benchmark of {', '.join(relative(path) for path in artifacts)}")
    with _phases() as on_progress:
        found = measure(artifacts, settings, cache=cache_folder(), on_progress=on_progress)
    if str(json_file) != "-":
        for line in table_of(found):
            typer.echo(printable(line))
    content = found.as_dict()
    write_json(json_file, content)
    if artifact is None or (len(artifacts) == 1 and artifacts[0].is_dir()):
        _keep(artifacts[0] / RECORD, content)
    if plot is not None:
        from fcn_deploy.benchmark.plot import draw

        draw(plot, found)
        note(f"Wrote {relative(plot)}")
    if html is not None:
        from fcn_deploy.pages.benchmark import write_benchmark_page

        write_benchmark_page(html, content)
        note(f"Wrote {relative(html)}")


def _require_places(json_file: Path | None, plot: Path | None, html: Path | None) -> None:
    """Find out before the work that something could not be written after it.

    Raises:
        EnvironmentFault: A folder cannot be written, or a package is missing.
    """
    for target in (json_file, plot, html):
        if target is not None and str(target) != "-":
            require_writable(target.parent)
    if plot is not None:
        from fcn_deploy.benchmark.plot import require_matplotlib

        require_matplotlib()
    if html is not None:
        from fcn_deploy.pages.page import require_packages

        require_packages("jinja2", "matplotlib")


def _keep(record: Path, content: dict[str, Any]) -> None:
    """Leave the figures of a whole run in its folder, for ``report``, where it can be written."""
    try:
        write_json(record, content)
    except EnvironmentFault as error:
        note(f"{error.problem} The report of this run goes without.")


def _parts(text: str | None) -> list[str]:
    return [] if text is None else text.split(",")


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UsageError(
            f"--batches takes numbers of crops, not {text!r}.", "For example: --batches 1,4"
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


def _labelled(data: Path | None, accuracy: bool, artifact: Path) -> Path | None:
    """The labelled images that are meant, if any.

    Raises:
        UsageError: Those of the run are meant, and nothing is known of them.
    """
    if data is not None or not accuracy:
        return data
    found = recorded_data(artifact / "train.json" if artifact.is_dir() else artifact)
    if found is None:
        raise UsageError(
            f"Nothing is known of the data that {artifact} was trained on.", "Name it: --data DIR"
        )
    return found


@contextmanager
def _phases() -> Iterator[OnProgress]:
    """One bar, of whatever is under way."""
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def on_progress(what: str, done: int, of: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    bar.remove_task(task)
                tasks.clear()
                tasks[what] = bar.add_task(what, total=of, facts="")
            bar.update(tasks[what], completed=done)

        yield on_progress
