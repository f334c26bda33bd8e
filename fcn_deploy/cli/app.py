"""The application: its commands, and how errors end it."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fcn_deploy import __version__
from fcn_deploy.cli.benchmark import benchmark
from fcn_deploy.cli.build_engine import build_engine
from fcn_deploy.cli.console import NoteHandler, printable
from fcn_deploy.cli.doctor import doctor
from fcn_deploy.cli.evaluate import evaluate
from fcn_deploy.cli.export import export
from fcn_deploy.cli.info import info
from fcn_deploy.cli.report import report
from fcn_deploy.cli.segment import segment
from fcn_deploy.cli.train import train
from fcn_deploy.cli.verify import verify
from fcn_deploy.errors import FcnDeployError

HELP = """From labelled images to a verified FP16 TensorRT engine, and to masks of any size.

\b
    fcn-deploy train data/ -o runs/road
    fcn-deploy evaluate
    fcn-deploy export
    fcn-deploy build-engine --fp16
    fcn-deploy verify
    fcn-deploy segment photos/ --backend trt

A command that needs a model takes the newest run under ./runs if none is named, and says which.

Exit codes: 0 done; 2 usage; 3 finished, but some inputs failed; 4 refused before work (model, data,
configuration); 5 environment (disk, permission, device); 6 a check failed; 130 interrupted.
"""


class _Group(TyperGroup):
    """Shows the errors that a user can mend, in one place; bugs keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FcnDeployError as error:
            show(str(error), ctx.obj)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            show("Interrupted. What was finished is kept.", ctx.obj)
            raise typer.Exit(130) from error
        except MemoryError as error:
            show("The memory of this machine is not enough.\nPass a smaller --tile.", ctx.obj)
            raise typer.Exit(5) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            show(f"{error.strerror or error}: {error.filename or 'a file or device'}", ctx.obj)
            raise typer.Exit(5) from error


def show(text: str, place: Any = None) -> None:
    """Show an error; of several processes, whose ``place`` is given, only the first to ask does."""
    if place is not None and not place.first_to_report():
        return
    typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(printable(text), err=True)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fcn-deploy {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def _root(
    version: Annotated[  # noqa: ARG001 - its callback has answered it
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    logger = logging.getLogger("fcn_deploy")
    if not any(isinstance(handler, NoteHandler) for handler in logger.handlers):
        logger.addHandler(NoteHandler(logging.WARNING))


for command in (
    train,
    evaluate,
    export,
    verify,
    build_engine,
    segment,
    info,
    doctor,
    benchmark,
    report,
):
    app.command(name=command.__name__.replace("_", "-"))(command)


def terminate(_number: int, _frame: object) -> None:
    """Handle SIGTERM."""
    sys.exit(143)  # an exception, so that temporary files are removed on the way out


def main() -> None:
    """Entry point of ``fcn-deploy``."""
    signal.signal(signal.SIGTERM, terminate)
    app()
