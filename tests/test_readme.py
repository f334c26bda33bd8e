"""What README and the Makefile say is what the programs do."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fcn_deploy.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def commands(text: str) -> list[list[str]]:
    """Every call of fcn-deploy in a text, as words, comments left out."""
    joined = text.replace("\\\n", " ").replace("$(BIN)/", "")
    found = re.findall(r"^(?:.*&& )?\t?(fcn-deploy [^\n`]*)", joined, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


CALLS = commands(README) + commands(MAKEFILE)


def test_the_calls_were_found() -> None:
    names = {call[1] for call in CALLS}
    commands_shown = {"train", "evaluate", "export", "verify", "build-engine", "segment", "info"}
    commands_shown |= {"benchmark", "report", "doctor"}
    assert names == commands_shown


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_every_option_that_is_shown_exists(call: list[str]) -> None:
    group = typer.main.get_command(app)
    known = {o for p in group.commands[call[1]].params for o in (*p.opts, *p.secondary_opts)}  # type: ignore[attr-defined]
    assert {word for word in call if word.startswith("-")} <= known


def test_every_option_named_in_the_text_exists() -> None:
    group = typer.main.get_command(app)
    known = {"--help", "--version", "--nproc-per-node"}  # the last one is torchrun's
    for command in group.commands.values():  # type: ignore[attr-defined]
        known |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z0-9-]+)", README))
    assert named <= known


def test_every_file_that_is_linked_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"`((?:fcn_deploy|samples|docs|tests)/[\w./-]*)`", README):
        assert (ROOT / name).exists(), name


def test_the_python_example_runs(
    toy_run: Path, toy_onnx: Path, toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "road").symlink_to(toy_onnx.parent)
    (tmp_path / "photo.jpg").write_bytes((toy_data / "val" / "images" / "scene0.jpg").read_bytes())
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert getattr(scope["labels"], "shape", None) == (70, 101)


@pytest.mark.parametrize("name", ["segment_photo", "compare_backends", "export_own_network"])
def test_sample_programs_run(
    name: str, toy_checkpoint: Path, toy_onnx: Path, toy_data: Path, tmp_path: Path
) -> None:
    scope: dict[str, object] = {"__name__": name}
    path = ROOT / "samples" / f"{name}.py"
    exec(compile(path.read_text(), str(path), "exec"), scope)
    photos = toy_data / "val" / "images"
    arguments = {
        "segment_photo": (toy_onnx, photos / "scene0.jpg", tmp_path / "overlay.jpg"),
        "compare_backends": (toy_checkpoint, toy_onnx, photos),
        "export_own_network": (tmp_path / "own.onnx",),
    }[name]
    main = scope["main"]
    assert callable(main)
    main(*map(str, arguments))
    assert len(path.read_text().splitlines()) <= 40


def test_the_exit_codes_are_the_same_everywhere() -> None:
    said = CliRunner().invoke(app, ["--help"]).stdout
    for code in (
        "0 done",
        "2 usage",
        "3 finished",
        "4 refused",
        "5 environment",
        "6 a check failed",
    ):
        assert code in said
        assert code in README
