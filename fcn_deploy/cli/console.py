"""What the commands share: parsing of sizes, notes, progress, and where the images of a run lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fcn_deploy.artifacts import TRAIN_RECORD, write_atomically
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from rich.progress import Progress


def note(text: str) -> None:
    """Say something to the person; results go to standard output, this does not."""
    typer.echo(text, err=True)


def parse_hw(text: str, option: str) -> tuple[int, int]:
    """Height and width from ``320x480``.

    Raises:
        UsageError: Not of that form.
    """
    height, _, width = text.lower().partition("x")
    if height.isdecimal() and width.isdecimal():
        return int(height), int(width)
    raise UsageError(
        f"{option} takes height x width in pixels, not {text!r}.", f"For example: {option} 320x480"
    )


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write ``--json FILE`` where it was asked for; ``-`` is standard output."""
    if path is None:
        return
    text = json.dumps(content, indent=2, allow_nan=False)
    if str(path) == "-":
        typer.echo(text)
    else:
        write_atomically(path, text.encode() + b"\n")


def recorded_data(model: Path) -> Path | None:
    """The data set that the run of a model file was trained on, if it is still there."""
    record = model.parent / TRAIN_RECORD
    if not record.is_file():
        return None
    data = Path(json.loads(record.read_text(encoding="utf-8"))["data"])
    return data if data.is_dir() else None


@contextmanager
def progress(*, transient: bool = True) -> Iterator[Progress]:
    """A progress display on standard error; on pipes and in logs it stays quiet."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=transient, disable=not console.is_terminal
    ) as bar:
        yield bar


def relative(path: Path) -> str:
    """A path as a person would type it from here."""
    short = os.path.relpath(path)
    return short if len(short) < len(str(path)) else str(path)
