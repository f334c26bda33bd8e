"""Latency of all contenders as bars, drawn from ``gpu-<device>.json`` by gpu_report.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gpu_report import idle_share, milliseconds
from gpu_results import Results, Row, Table
from gpu_rounds import summary_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _PEERS, _ALONE = "#0072B2", "#D55E00", "#777777"
"""Source: Okabe and Ito, "Color Universal Design", 2008: told apart in any colour vision."""

_ROW, _FRAME = 0.3, 0.75
"""Inches of a bar, and of what is around the bars of a panel."""


def draw(results: Results, path: Path) -> None:
    """Draw a panel for each job that somebody has done."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    tables = [table for table in results.tables if any(r.samples for r in table.rows.values())]
    heights = [_ROW * len(_measured(table)) + _FRAME for table in tables]
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = plt.subplots(
            len(tables),
            1,
            figsize=(9.5, sum(heights) + 0.9),
            height_ratios=heights,
            layout="constrained",
            squeeze=False,
        )
        for axes, table in zip(panels[:, 0], tables, strict=True):
            _panel(axes, table)
        _head(figure, results, tables)
        figure.savefig(path, dpi=140)
        plt.close(figure)


def _measured(table: Table) -> list[tuple[str, Row]]:
    """Contenders with a time, the fastest first."""
    rows = [(name, row) for name, row in table.rows.items() if row.samples]
    return sorted(rows, key=lambda item: summary_of(item[1].samples).median)


def _head(figure: object, results: Results, tables: list[Table]) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    assert isinstance(figure, Figure)
    rows = [row for table in tables for row in table.rows.values() if row.samples]
    key = [Patch(color=_OURS, label="fcn-deploy"), Patch(color=_PEERS, label="others")]
    if any(row.alone for row in rows):
        key.append(Patch(color=_ALONE, label="engine alone, without copies"))
    if any(idle_share(row) is not None for row in rows):
        key.append(Patch(color="#000000", alpha=0.35, label="pale: the GPU is idle"))
    key.append(Patch(color="none", label="line: up to the 95th percentile"))
    title = f"Milliseconds on {results.device}: shorter is faster"
    if not results.is_gpu:
        title = "NOT A GPU RESULT: the benchmark tries itself out on a CPU"
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", fontweight="bold")
    figure.legend(handles=key, loc="outside lower left", ncols=len(key), frameon=False, fontsize=9)


def _panel(axes: Axes, table: Table) -> None:
    rows = _measured(table)
    medians = [1e3 * summary_of(row.samples).median for _, row in rows]
    highs = [1e3 * summary_of(row.samples).p95 for _, row in rows]
    reach = max(highs)
    for place, ((_, row), middle, high) in enumerate(zip(rows, medians, highs, strict=True)):
        color = _ALONE if row.alone else _OURS if row.ours else _PEERS
        idle = idle_share(row) or 0.0
        axes.barh(place, middle, height=0.68, color=color, alpha=0.35 if idle else 1, linewidth=0)
        axes.barh(place, middle * (1 - idle), height=0.68, color=color, linewidth=0)
        axes.plot([middle, high], [place, place], color="#000000", linewidth=1.2)
        axes.text(high + reach * 0.01, place, milliseconds(middle / 1e3), va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    for label, (_, row) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.ours and not row.alone else "normal")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, reach * 1.09)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e2e2e2", linewidth=0.8)
    axes.set_axisbelow(True)
    what = "image by crops" if table.kind == "images" else "batch"
    axes.set_title(f"{table.job} {what}, {table.network.replace(':', ' on ')}", loc="left")
