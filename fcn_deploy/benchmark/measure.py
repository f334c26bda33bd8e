"""All rows side by side, in one interleaved run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from math import prod
from pathlib import Path

from fcn_deploy.benchmark.contenders import find_contenders
from fcn_deploy.benchmark.labelled import open_labelled
from fcn_deploy.benchmark.machine import load_note, machine_of, versions
from fcn_deploy.benchmark.result import Benchmark
from fcn_deploy.benchmark.run import OnProgress, Run
from fcn_deploy.benchmark.settings import Settings
from fcn_deploy.items import list_items


def measure(
    artifacts: Sequence[Path] = (),
    settings: Settings = Settings(),
    *,
    cache: Path | None = None,
    root: Path = Path("/"),
    on_progress: OnProgress | None = None,
) -> Benchmark:
    """Time model files against each other, and against eager PyTorch and ``torch.compile``.

    Args:
        artifacts: Model files and run folders; none for the newest run under ``./runs``.
        settings: What is measured, and how long.
        cache: Folder of the user's own for what is compiled for this machine; ``None``: keep none.
        root: Where ``/proc`` and ``/sys`` lie, which tell of the machine and its power.
        on_progress: Told how it gets on.

    Raises:
        UsageError: There is nothing to measure, or the settings contradict each other.
        ShapeError: A shape that the networks do not take.
        ModelError: A file that was named is not usable.
        DataError: The labelled images are not usable.
        EnvironmentFault: A file that was named cannot run here.
    """
    contenders, notes = find_contenders(artifacts, compiled=settings.compile)
    labelled = None if settings.data is None else open_labelled(settings)
    items = [] if settings.end_to_end is None else list_items([settings.end_to_end])
    items = items[: settings.images]
    machine = machine_of(root)
    with ExitStack() as opened:
        run = Run(settings, on_progress or _silent, notes)
        run.load(contenders, opened, cache)
        shapes = run.shapes()
        for shape in shapes:
            run.time(shape)
        run.draw_power(shapes[0], machine, root)
        run.whole_images(items)
        run.accuracy(labelled)
    run.memory(max(shapes, key=prod))
    run.require_some()
    busy = load_note(machine)
    return Benchmark(
        made=datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
        machine=machine,
        versions=versions(),
        settings=settings.as_dict(shapes, run.reference),
        rows=tuple(run.rows.values()),
        notes=(*notes, *([busy] if busy else [])),
    )


def _silent(_what: str, _done: int, _of: int) -> None:
    pass
