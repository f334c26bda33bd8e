"""``fcn-deploy doctor``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from fcn_deploy.cli.console import relative, write_json


def doctor(
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write what was found as JSON; - prints it."),
    ] = None,
) -> None:
    """Show what works on this machine, and the commands that mend what does not.

    Nothing is believed: every library is loaded in a process of its own, every execution provider
    of ONNX Runtime runs a model of one node, and TensorRT-RTX builds an engine. Nothing is changed.

    Exit code 0 if some backend can segment here, whatever else is not installed; 5 if none can, or
    if something that is installed is broken: a provider that is listed but does not work, packages
    that overwrite each other, a library that crashes.
    """
    from rich.console import Console

    from fcn_deploy.cli.doctor_page import show
    from fcn_deploy.doctor import examine

    with Console(stderr=True).status("Trying out what is installed"):
        report = examine(pip=_pip())
    if str(json_file) != "-":
        show(report, Console(highlight=False))
    write_json(json_file, report.as_dict())
    if not report.healthy:
        raise typer.Exit(5)


def _pip() -> str:
    """How a person calls pip of this Python from here."""
    beside = Path(sys.executable).with_name("pip")
    called = shutil.which("pip")
    if called is not None and Path(called) == beside:
        return "pip"
    return relative(beside) if beside.exists() else f"{sys.executable} -m pip"
