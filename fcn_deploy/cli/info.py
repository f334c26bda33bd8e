"""``fcn-deploy info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    file: Annotated[
        Path, typer.Argument(help="Checkpoint, ONNX file or plan.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a model file is: network, classes, shapes, precision and verification."""
    from fcn_deploy.describe import describe

    facts = describe(file)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        if name != "palette":
            below = "\n" + " " * (width + 2)
            typer.echo(f"{name.replace('_', ' '):<{width}}  {_readable(value, below)}")


def _readable(value: Any, between: str = ", ") -> str:
    """A value as text; the entries of a dict are parted by ``between``, those inside by commas."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(_readable(item) for item in value)
    if isinstance(value, dict):
        pairs = [f"{key.replace('_', ' ')}: {_readable(item)}" for key, item in value.items()]
        return between.join(pairs) or "-"
    return str(value)
