"""What was measured, as tables for people: ``gpu-<device>.md``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from gpu_results import Results, Row, Table, load_json, save_json
from gpu_rounds import ratio_of, summary_of
from peak import MIB

_NOT_A_GPU = """**This is not a GPU result.** The benchmark tried itself out on a CPU: few
contenders, tiny sizes. No figure here says anything of a GPU."""

_NONE = "-"

_KINDS = {
    "crops": "batch of crops, from the host's memory to labels in the host's memory",
    "images": "one image by overlapping crops, from memory to labels in memory",
}
_RATES = {"crops": "images/s", "images": "megapixels/s"}


def save(results: Results, folder: Path) -> Path:
    """Write JSON, tables and picture; returns the path of the tables."""
    from gpu_plot import draw

    path = save_json(results, folder).with_suffix(".md")
    path.write_text(markdown(results))
    if any(row.samples for table in results.tables for row in table.rows.values()):
        draw(results, path.with_suffix(".png"))
    return path


def markdown(results: Results) -> str:
    """All tables, and what they were measured on."""
    title = f"# Speed on {results.device}" if results.is_gpu else "# The GPU benchmark, without one"
    parts = [title, *([] if results.is_gpu else [_NOT_A_GPU]), _machine(results)]
    if any(row.samples for table in results.tables for row in table.rows.values()):
        parts.append(f"![Latency of all contenders]({results.stem}.png)")
    for table in results.tables:
        network = table.network.replace(":", " on ")
        parts.append(f"## {table.job}, {network}: {_KINDS[table.kind]}")
        parts.append(_rows(table))
        parts.append(
            f"Speed is in multiples of that of {table.baseline}: median, least and most of the "
            f"rounds. Labels are compared with {table.reference}."
        )
    return "\n\n".join(parts) + "\n"


def _machine(results: Results) -> str:
    here = results.environment
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    device = [results.device, here.get("capability", "")]
    state = next(reversed(results.states.values()), {})
    device += [f"driver {state['driver_version']}"] if state.get("driver_version") else []
    device += [f"CUDA {here['cuda']}"] if here.get("cuda") else []
    commit = f", commit {here['commit']}" if here["commit"] else ""
    lines = [
        f"{here['date']}{commit}. {', '.join(filter(None, device))}.",
        f"{here['cpu']}, {here['cores']} cores. Python {here['python']}, {packages}.",
        f"Rounds: {results.rounds}. What is measured, and how: "
        "[../README.md](../README.md#on-a-gpu).",
    ]
    lines += [f"{when.capitalize()}: {_state(said)}." for when, said in results.states.items()]
    return "\n".join(lines)


def _state(said: Mapping[str, str]) -> str:
    """Clocks and temperature; nvidia-smi writes ``[N/A]`` for what a GPU does not tell."""
    known = {name: value for name, value in said.items() if "N/A" not in value}
    clock, most = known.get("clocks.sm", ""), known.get("clocks.max.sm", "")
    words = [
        f"SM at {clock}{f' of {most}' if most else ''} MHz" if clock else "",
        f"{known['temperature.gpu']} °C" if "temperature.gpu" in known else "",
        f"{known['power.draw']} W" if "power.draw" in known else "",
    ]
    return ", ".join(word for word in words if word) or "nvidia-smi says nothing"


def _rows(table: Table) -> str:
    baseline = table.rows.get(table.baseline)
    figures = ["ms", "95th percentile", _RATES[table.kind], "speed"]
    figures += ["GPU idle", "GPU memory, MiB", "labels that differ"]
    rows = [["", *figures], ["---", *["---:"] * len(figures)]]
    for name, row in table.rows.items():
        shown = f"**{name}**" if row.ours and not row.alone else name
        values = _measured(table, row, baseline) if row.samples else [_NONE] * len(figures)
        rows.append([shown, *values])
    if any(row.reason for row in table.rows.values()):
        notes = [row.reason.replace("|", "/") for row in table.rows.values()]
        for cells, note in zip(rows, ("not measured, because", "---", *notes), strict=True):
            cells.append(note)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _measured(table: Table, row: Row, baseline: Row | None) -> list[str]:
    summary = summary_of(row.samples)
    if table.kind == "images":
        rate = table.pixels / 1e6 / summary.median
    else:
        rate = int(table.job.split("x")[0]) / summary.median
    idle = idle_share(row)
    memory = _NONE if row.memory_bytes is None or row.alone else f"{row.memory_bytes / MIB:.0f}"
    differ = _NONE if row.verdict is None else _share(row.verdict.differ, row.verdict.pixels)
    return [
        milliseconds(summary.median),
        milliseconds(summary.p95),
        f"{rate:,.{_places(rate)}f}",
        _NONE if row.alone else _times(row, baseline),
        _NONE if idle is None else f"{idle:.0%}",
        memory,
        differ,
    ]


def idle_share(row: Row) -> float | None:
    """Share of the time in which the GPU has nothing to do; ``None`` where it is not known."""
    if row.busy_s is None or row.alone or not row.samples:
        return None
    return max(1 - row.busy_s / summary_of(row.samples).median, 0.0)


def _times(row: Row, baseline: Row | None) -> str:
    if baseline is None or not baseline.samples:
        return _NONE
    ratio = ratio_of(row.samples, baseline.samples)
    return f"{ratio.median:.2f} ({ratio.least:.2f} to {ratio.most:.2f})"


def milliseconds(seconds: float) -> str:
    """Three digits that count."""
    value = 1e3 * seconds
    return f"{value:,.{_places(value)}f}"


def _places(value: float) -> int:
    return 2 if value < 10 else 1 if value < 100 else 0


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.4%}" if part else "none"


if __name__ == "__main__":
    source = Path(sys.argv[1])
    print(save(load_json(source), source.parent))
