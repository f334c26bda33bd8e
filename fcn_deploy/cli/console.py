"""What the commands share: parsing of sizes, notes, progress, and where the images of a run lie."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from fcn_deploy.artifacts import TRAIN_RECORD, require_writable, write_atomically
from fcn_deploy.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from fcn_deploy.tiling_options import Tile, Tiling


Name = TypeVar("Name", bound=str)
Option = TypeVar("Option")

BackendOption = Annotated[str, typer.Option(help="auto, eager, ort or trt.")]
ProviderOption = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, tensorrt, rtx, or auto: the first of cuda, rtx and cpu that really "
        "computes."
    ),
]
TileOption = Annotated[
    str,
    typer.Option(
        metavar="HxW",
        help="Crop size; whole for no tiling; auto for the whole image, or else the crops of least "
        "computed area, within --max-memory.",
    ),
]
OverlapOption = Annotated[int, typer.Option(help="Pixels that neighbouring crops share.")]
HaloOption = Annotated[
    str | None,
    typer.Option(
        metavar="PIXELS|exact",
        help="Throw this border of each crop away instead of averaging; exact is as wide as the "
        "network sees: the result of the whole image at once.",
        show_default=False,
    ),
]
BlendOption = Annotated[
    str, typer.Option(help="Weights in the average of crops: mean, gaussian or hann.")
]
RecipeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Options for a device, such as export/recipes/orin-nano.toml."
    ),
]
MemoryOption = Annotated[
    int, typer.Option("--max-memory", metavar="MIB", help="What --tile auto may use.")
]


def note(text: str) -> None:
    """Say something to the person; results go to standard output, this does not."""
    typer.echo(printable(text), err=True)


class NoteHandler(logging.Handler):
    """Shows warnings of the library as notes: what it did otherwise than asked, and why."""

    def emit(self, record: logging.LogRecord) -> None:
        """Show one."""
        note(f"{record.levelname.capitalize()}: {record.getMessage()}")


def printable(text: str) -> str:
    """The same, with control characters spelt out: names of files can hold some."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


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


class Defaults:
    """Options of a command that the user has not named: by a recipe, or the command's own.

    Args:
        context: Of the command, which knows what was named.
        recipe: File of a deployment target, or ``None``.

    Raises:
        ModelError: The recipe cannot be read.
    """

    def __init__(self, context: typer.Context, recipe: Path | None) -> None:
        self._context = context
        self._known: dict[str, Any] = {}
        if recipe is not None:
            from fcn_deploy.recipe_file import read_recipe

            content = read_recipe(recipe)
            note(f"For {content.device}, by {relative(recipe)}")
            known = asdict(content.segment)
            self._known = {name: value for name, value in known.items() if value is not None}

    def pick(self, name: str, value: Option, option: str | None = None) -> Option:
        """The value of an option.

        Args:
            name: What the recipe calls it.
            value: What the command got.
            option: Name of the command's parameter, where it differs.
        """
        source = self._context.get_parameter_source(option or name)
        given = source is not None and source.name != "DEFAULT"
        chosen: Option = value if given else self._known.get(name, value)
        return chosen


def parse_tile(text: str) -> Tile:
    """``auto``, ``whole`` or a size, as :class:`~fcn_deploy.segment.Segmenter` takes it.

    Raises:
        UsageError: None of these.
    """
    if text == "auto":
        return "auto"
    return None if text == "whole" else parse_hw(text, "--tile")


def parse_tiling(tile: str, overlap: int, halo: str | None, blend: str, memory: int) -> Tiling:
    """The options of tiling, put together.

    Raises:
        UsageError: One of them cannot be.
    """
    from fcn_deploy.merging import BLENDS
    from fcn_deploy.tiling_options import Tiling

    weights = one_of(blend, BLENDS, "--blend")
    border: int | Literal["exact"] | None = None
    if halo is not None and halo != "exact":
        if not halo.isdecimal():
            raise UsageError(f"--halo takes a number of pixels, or exact, not {halo!r}.")
        border = int(halo)
    elif halo == "exact":
        border = "exact"
    if border is not None and blend != "mean":
        raise UsageError("--blend weighs crops in an average, of which --halo makes none.")
    return Tiling(parse_tile(tile), overlap, border, weights, memory)


def named(text: str, known: Iterable[str], option: str) -> tuple[str, ...]:
    """The names in ``a,b``, each once.

    Raises:
        UsageError: None at all, an unknown one, or one that is named twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names or not set(names) <= set(known) or len(set(names)) < len(names):
        raise UsageError(
            f"{option} takes some of {', '.join(known)}, each once, not {text!r}.",
            f"For example: {option} {','.join(known)}",
        )
    return names


def one_of(text: str, known: Iterable[Name], option: str) -> Name:
    """The one of ``known`` that ``text`` names.

    Raises:
        UsageError: None of them.
    """
    for name in known:
        if name == text:
            return name
    raise UsageError(f"{option} takes one of {', '.join(known)}, not {text!r}.")


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write ``--json FILE`` where it was asked for; ``-`` is standard output."""
    if path is None:
        return
    text = json.dumps(content, indent=2, allow_nan=False)
    if str(path) == "-":
        typer.echo(text)
    else:
        write_atomically(path, text.encode() + b"\n")


def placed(out: Path | None, default: Path) -> Path:
    """Where ``-o`` wants a file: as named, under its usual name in a folder, or by default.

    Raises:
        EnvironmentFault: Nothing can be written there.
    """
    target = default if out is None else out / default.name if out.is_dir() else out
    require_writable(target.parent)
    return target


def recorded_data(model: Path) -> Path | None:
    """The data set that the run of a model file was trained on, if it is still there."""
    record = model.parent / TRAIN_RECORD
    if not record.is_file():
        return None
    try:
        data = Path(json.loads(record.read_text(encoding="utf-8"))["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record} is damaged, so that the data of this run is not known.", "Delete it."
        ) from error
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
        TextColumn("{task.fields[facts]}", markup=False),
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
