"""The page that ``fcn-deploy doctor`` shows."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fcn_deploy.cli.console import printable
from fcn_deploy.doctor import Report

MARKS = {"ok": "✓", "warning": "!", "problem": "✗", "absent": "·"}
PLAIN_MARKS = {"ok": "+", "warning": "!", "problem": "x", "absent": "-"}
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red", "absent": "bright_black"}
NAMES_WIDE = 17
"""Columns of names, so that the sections stand in line."""


def show(report: Report, console: Console) -> None:
    """Print the page, in as many columns as the console has."""
    marks = MARKS if console.encoding.startswith("utf") else PLAIN_MARKS
    console.print(Text(f"fcn-deploy {report.version}", "bold"))
    areas = dict.fromkeys(finding.area for finding in report.findings)
    for area in areas:
        table = _section(console, area)
        for finding in report.findings:
            if finding.area == area:
                mark = Text(marks[finding.status], COLOURS[finding.status])
                table.add_row(mark, Text(finding.name), Text(printable(finding.says)))
        console.print(table)
    table = _section(console, "What you can do here")
    for ability in report.abilities:
        status = "ok" if ability.possible else "absent"
        mark = Text(marks[status], COLOURS[status])
        table.add_row(mark, Text(ability.command), Text(printable(ability.says)))
    console.print(table)
    _show_remedies(report, console)


def _section(console: Console, title: str) -> Table:
    console.print()
    console.print(Text(title, "bold"))
    table = Table.grid(padding=(0, 1))
    table.add_column(width=2, justify="right")
    table.add_column(min_width=NAMES_WIDE)
    table.add_column(ratio=1)
    return table


def _show_remedies(report: Report, console: Console) -> None:
    broken = [*report.problems, *report.warnings]
    _remedies(console, "To mend", [(finding.remedy, finding.name) for finding in broken])
    mended = {finding.remedy for finding in broken}
    more = [(ability.remedy, ability.command) for ability in report.abilities]
    _remedies(console, "To do more", [pair for pair in more if pair[0] not in mended])
    console.print()
    console.print(Text(_verdict(report), "bold green" if report.healthy else "bold red"))


def _remedies(console: Console, title: str, pairs: list[tuple[str, str]]) -> None:
    """Each remedy once, below what it is for, in one line however long: it is to be copied."""
    what_for: dict[str, list[str]] = {}
    for remedy, name in pairs:
        if remedy:
            what_for.setdefault(remedy, []).append(name)
    if what_for:
        console.print()
        console.print(Text(title, "bold"))
    for remedy, names in what_for.items():
        console.print(Text(f"   {printable(', '.join(names))}"))
        console.print(Text(f"     {printable(remedy)}", "cyan"), soft_wrap=True)


def _verdict(report: Report) -> str:
    ways = [
        ability.command.removeprefix("segment ")
        for ability in report.abilities
        if ability.possible and ability.command.startswith("segment --backend")
    ]
    segments = f"This machine can segment with {', '.join(ways)}" if ways else ""
    broken = ", ".join(finding.name for finding in report.problems)
    if report.healthy:
        return f"{segments}."
    if segments:
        return f"{segments}; broken: {broken}."
    return f"This machine cannot segment; broken: {broken}."
