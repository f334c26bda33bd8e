"""What was measured: as numbers for machines, and as tables for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from contenders import LIMIT, MONAI, OURS
from oracle import Verdict
from peak import MIB
from rounds import Times
from streamed import Cost
from windows import Share

PLAIN = "plain"
LARGE = "20000x20000"


@dataclass
class Results:
    """All that one run measured; times in seconds, memory in bytes.

    Attributes:
        environment: Machine and versions.
        rounds: Measurements of each time.
        missing: Contenders that are not installed, and why.
        times: Of each contender, by the side of a square image.
        special: Times at the side :attr:`head`: other kernels, and FCN-8s with its own limit.
        graph: Times of the exported graph alone, ours and plain, by batch x height x width.
        memory: Peak beyond the loaded model and the image, by side and contender.
        windows: What part of the last layer had to be computed, by network.
        labels: Labels held against the definition in float64, by contender or network.
        files: Cost of files, by name, each time measured.
        heights: Names of two files of which one is some times as high; both are read by rows.
    """

    environment: dict[str, Any]
    rounds: int
    missing: dict[str, str] = field(default_factory=dict)
    times: dict[int, Times] = field(default_factory=dict)
    special: Times = field(default_factory=dict)
    graph: dict[str, Times] = field(default_factory=dict)
    memory: dict[int, dict[str, int]] = field(default_factory=dict)
    windows: dict[str, Share] = field(default_factory=dict)
    labels: dict[str, Verdict] = field(default_factory=dict)
    files: dict[str, list[Cost]] = field(default_factory=dict)
    heights: tuple[str, str] | None = None

    @property
    def head(self) -> int:
        """The side that the goals are about, or the largest one measured."""
        return 2304 if 2304 in self.times else max(self.times)


def save(results: Results, folder: Path) -> None:
    """Write ``tiling.json`` and ``tiling.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    ratios = {what: reached for what, _, reached in goals(results)}
    text = json.dumps({**asdict(results), "goals": ratios}, indent=1)
    (folder / "tiling.json").write_text(text + "\n")
    (folder / "tiling.md").write_text(markdown(results))


def load(path: Path) -> Results:
    """Read ``tiling.json`` back."""
    fields = json.loads(path.read_text())
    del fields["goals"]
    for name in ("times", "memory"):
        fields[name] = {int(side): value for side, value in fields[name].items()}
    for name, kind in (("windows", Share), ("labels", Verdict)):
        fields[name] = {key: kind(*values) for key, values in fields[name].items()}
    files = fields["files"].items()
    fields["files"] = {name: [Cost(*values) for values in costs] for name, costs in files}
    return Results(**fields)


def goals(results: Results) -> list[tuple[str, str, str]]:
    """What is wanted: its name, the goal, and what was reached."""
    head, wrong = results.head, sum(verdict.wrong for verdict in results.labels.values())
    times = {name: median(seconds) for name, seconds in results.times[head].items()}
    rows = [(f"{head}x{head}: time / the limit", "<= 0.75", f"{times[OURS] / times[LIMIT]:.2f}")]
    if MONAI in times:
        faster = f"{times[MONAI] / times[OURS]:.1f}x"
        rows.append((f"{head}x{head}: faster than MONAI", ">= 4.5x", faster))
    for shape, pair in results.graph.items():
        faster = f"{median(pair[PLAIN]) / median(pair[OURS]):.2f}x"
        rows.append((f"graph alone, {shape}: faster than the plain export", ">= 1.4x", faster))
    extra = f"{results.memory[head][OURS] / MIB:.0f} MiB"
    rows.append((f"{head}x{head}: extra memory", "<= 100 MiB", extra))
    rows += [
        (f"{name}: extra memory", "<= 400 MiB", f"{extra_of(costs) / MIB:.0f} MiB")
        for name, costs in results.files.items()
        if name.startswith(LARGE)
    ]
    if results.heights:
        short, tall = (results.files[name] for name in results.heights)
        what = " / ".join(reversed(results.heights))
        rows.append((f"{what}: time", "3.6 to 4.4", f"{time_of(tall) / time_of(short):.2f}"))
        ratio = extra_of(tall) / extra_of(short)
        rows.append((f"{what}: extra memory", "0.9 to 1.1", f"{ratio:.2f}"))
    rows.append(("wrong labels where the top-2 margin exceeds 1e-4", "0", f"{wrong}"))
    return rows


def time_of(costs: list[Cost]) -> float:
    """Median, in seconds."""
    return median(cost.seconds for cost in costs)


def extra_of(costs: list[Cost]) -> float:
    """Median, in bytes."""
    return median(cost.extra for cost in costs)


def markdown(results: Results) -> str:
    """All tables."""
    here = results.environment
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    flags = ", ".join(here["flags"])
    intro = f"""# Segmenting by overlapping crops: 512x512, overlap 64, 21 classes

{here["date"]}, commit {here["commit"]}. {here["cpu"]}, {here["cores"]} cores ({flags}).
Python {here["python"]}, {packages}.
Rounds: {results.rounds}. FCN-32s on ResNet-18 unless said otherwise. What is measured, and how:
[../README.md](../README.md).
"""
    tables = (
        ("Goals", ["", "goal", "reached"], [list(goal) for goal in goals(results)]),
        ("Time: median (least) in seconds; relative to the limit", *_times(results)),
        ("Extra memory: peak beyond the loaded session and the image, MiB", *_memory(results)),
        (f"Harder and easier cases, {results.head}x{results.head}", *_special(results)),
        ("The exported graph alone, image to labels: milliseconds", *_graph(results)),
        ("Labels against the definition in float64, 960x960: pixels", *_labels(results)),
        ("From TIFF file to mask file", *_files(results)),
    )
    sections = [f"## {title}\n\n{_table(head, rows)}\n" for title, head, rows in tables if rows]
    missing = [f"Not measured: {name} ({why}).\n" for name, why in results.missing.items()]
    return "\n".join([intro, *sections, *missing])


Table = tuple[list[str], list[list[str]]]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _times(results: Results) -> Table:
    rows = []
    for name in next(iter(results.times.values())):
        row = [name]
        for contenders in results.times.values():
            seconds, limit = contenders[name], median(contenders[LIMIT])
            ratio = median(seconds) / limit
            row.append(f"{median(seconds):.2f} ({min(seconds):.2f}); {ratio:.2f}")
        rows.append(row)
    return ["", *(f"{side}x{side}" for side in results.times)], rows


def _memory(results: Results) -> Table:
    rows = [
        [name, *(f"{memory[name] / MIB:.0f}" for memory in results.memory.values())]
        for name in next(iter(results.memory.values()))
    ]
    return ["", *(f"{side}x{side}" for side in results.memory)], rows


def _special(results: Results) -> Table:
    rows = []
    for name, share in results.windows.items():
        seconds = median(results.special[name])
        limit = median(results.special.get(f"{name}: {LIMIT}", results.special[LIMIT]))
        shares = (f"{share.windows:.0%}", f"{share.logits:.0%}")
        rows.append([name, f"{seconds:.2f}", f"{seconds / limit:.2f}", *shares])
    return ["", "seconds", "/ its limit", "windows computed", "logits computed"], rows


def _graph(results: Results) -> Table:
    rows = []
    for shape, pair in results.graph.items():
        ours, plain = (1e3 * median(pair[name]) for name in (OURS, PLAIN))
        rows.append([shape, f"{ours:.1f}", f"{plain:.1f}", f"{plain / ours:.2f}"])
    return ["", "ours", "plain", "plain / ours"], rows


def _labels(results: Results) -> Table:
    rows = [
        [name, str(v.wrong), str(v.differ), str(v.close), str(v.pixels)]
        for name, v in results.labels.items()
    ]
    return ["", "wrong", "differ at all", "margin below 1e-4", "in all"], rows


def _files(results: Results) -> Table:
    rows = []
    for name, costs in results.files.items():
        crop = "x".join(str(size) for size in costs[0].crop_hw)
        extra = f"{extra_of(costs) / MIB:.0f}"
        rows.append([name, f"{time_of(costs):.1f}", extra, str(costs[0].crops), crop])
    return ["", "seconds", "extra MiB", "crops", "each"], rows
