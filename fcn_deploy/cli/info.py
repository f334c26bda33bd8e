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
            typer.echo(f"{name.replace('_', ' '):<{width}}  {_readable(value, width + 2)}")


def _readable(value: Any, indent: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(_readable(item, indent) for item in value)
    if isinstance(value, dict):
        pairs = [f"{key}: {_readable(item, indent)}" for key, item in value.items()]
        return ("\n" + " " * indent).join(pairs) or "-"
    return str(value)
