"""``fcn-deploy doctor`` as a person sees it, and as a program reads it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from fcn_deploy.cli.app import app
from fcn_deploy.cli.doctor_page import show
from fcn_deploy.doctor import Ability, Finding, Report

LONG = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "fcn-deploy[gpu]" # one line'
SEGMENTS = Ability("segment --backend ort", True, "on the CPU")
TRAINS = Ability("train", False, "needs torch", 'pip install "fcn-deploy[train]"')


def page(report: Report, *, encoding: str = "utf-8", terminal: bool = False) -> str:
    """What a console of 80 columns shows."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    show(report, Console(file=stream, width=80, force_terminal=terminal, highlight=False))
    stream.seek(0)
    return stream.read()


def report_of(*findings: Finding) -> Report:
    return Report("1.0", findings, (SEGMENTS, TRAINS))


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "from fcn_deploy.cli.app import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "doctor", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


def test_the_page_and_the_file_of_this_machine(tmp_path: Path) -> None:
    ended = run("--json", "facts.json", cwd=tmp_path)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert ended.returncode == (0 if facts["healthy"] else 5), ended.stderr
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    for title in ("Machine", "NVIDIA", "Libraries", "What you can do here"):
        assert title in lines
    for finding in facts["findings"]:
        assert finding["status"] in ("ok", "warning", "problem", "absent")
        assert any(finding["name"] in line for line in lines)
    commands = {finding["remedy"] for finding in facts["findings"] + facts["abilities"]}
    assert all(len(line) <= 80 or line.strip() in commands for line in lines)
    assert "\x1b" not in ended.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "facts.json"]  # nothing else was left here


def test_json_on_standard_output_is_nothing_but_json(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Finding("Libraries", "ONNX Runtime", "problem", "they overwrite each other", {}, LONG)
    for report, code in ((report_of(), 0), (report_of(broken), 5), (Report("1", (), (TRAINS,)), 5)):
        monkeypatch.setattr("fcn_deploy.doctor.examine", lambda report=report, **_: report)
        ended = CliRunner().invoke(app, ["doctor", "--json", "-"])
        assert json.loads(ended.stdout) == json.loads(json.dumps(report.as_dict()))
        assert ended.exit_code == code


def test_a_remedy_is_one_line_however_long() -> None:
    broken = Finding("Libraries", "ONNX Runtime", "problem", "they overwrite each other", {}, LONG)
    lines = page(report_of(broken)).splitlines()
    assert len(LONG) > 75
    assert f"     {LONG}" in lines
    assert lines[lines.index(f"     {LONG}") - 1].strip() == "ONNX Runtime"
    assert lines[-1] == "This machine can segment with --backend ort; broken: ONNX Runtime."


def test_one_remedy_for_two_things_is_shown_once() -> None:
    pair = [
        Finding("Libraries", name, "problem", "", {}, "sudo reboot") for name in ("GPU", "CUDA")
    ]
    shown = page(report_of(*pair))
    assert shown.count("sudo reboot") == 1
    assert "GPU, CUDA" in shown


def test_what_is_optional_is_offered_apart_from_what_is_broken() -> None:
    shown = page(report_of(Finding("Machine", "Python", "ok", "3.13")))
    assert "To mend" not in shown
    assert shown.index("To do more") < shown.index('pip install "fcn-deploy[train]"')


def test_control_characters_are_spelt_out() -> None:
    evil = Finding("NVIDIA", "GPU", "ok", "RTX \x1b[31m\x07 [bold]3060[/bold]")
    shown = page(report_of(evil))
    assert "\\x1b[31m\\x07 [bold]3060[/bold]" in shown


def test_colours_are_for_terminals() -> None:
    report = report_of(Finding("Machine", "Python", "ok", "3.13"))
    assert "\x1b[" in page(report, terminal=True)
    assert "\x1b[" not in page(report)


def test_a_terminal_without_unicode_gets_other_marks() -> None:
    statuses = ("ok", "warning", "problem", "absent")
    report = report_of(*(Finding("Machine", name, name, "") for name in statuses))  # type: ignore[arg-type]
    assert page(report, encoding="ascii").isascii()


@pytest.mark.parametrize("word", ["--json", "Exit code 0", "5 if none can"])
def test_help_says_what_the_exit_codes_mean(word: str) -> None:
    said = CliRunner().invoke(app, ["doctor", "--help"]).stdout
    assert word in " ".join(said.split())


def test_help_waits_for_nothing() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from fcn_deploy.cli.app import app; "
        "CliRunner().invoke(app, ['doctor', '--help']); print('fcn_deploy.doctor' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
