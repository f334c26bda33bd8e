"""Time and extra memory against the size of the image, drawn from ``tiling.json``.

python benchmarks/plot.py [benchmarks/results/tiling.json]
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from contenders import LIMIT, OURS
from peak import MIB
from report import LARGE, Results, extra_of, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {
    OURS: "#0072B2",
    LIMIT: "#000000",
    "NumPy": "#777777",
    "MONAI": "#D55E00",
    "MONAI buffered": "#E69F00",
    "patchly": "#009E73",
    "pytorch-toolbelt": "#CC79A7",
}
"""Source: Okabe and Ito, "Color Universal Design", 2008: told apart in any colour vision."""

_MARKERS = dict(zip(_COLORS, "oxsD^vP", strict=True))


_NAMES = {LIMIT: "network alone"}
_LINE = 14.0
"""Height of a line of text, in points."""

Values = dict[int, dict[str, float]]
"""By side of the image and by contender."""


def draw(results: Results, path: Path) -> None:
    """Draw both panels."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    times: Values = {
        side: {name: median(seconds) for name, seconds in contenders.items()}
        for side, contenders in results.times.items()
    }
    memory: Values = {
        side: {name: extra / MIB for name, extra in contenders.items()}
        for side, contenders in results.memory.items()
    }
    if costs := results.files.get(LARGE):
        memory[int(LARGE.split("x")[0])] = {OURS: extra_of(costs) / MIB}
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, panels = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
        _panel(panels[0], times, "Time, seconds")
        _panel(panels[1], memory, "Extra memory, MiB")
        here = results.environment
        note = f"Side of a square image, pixels  ·  {here['cpu']}, {here['cores']} cores"
        figure.supxlabel(f"{note}  ·  20,000: from file to file" if costs else note, fontsize=10)
        figure.draw_without_rendering()
        for axes, values in zip(panels, (times, memory), strict=True):
            _label(axes, values)
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _panel(axes: Axes, values: Values, title: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.set_title(title, loc="left", fontsize=12)
    for name in next(iter(values.values())):
        sides = [side for side in sorted(values) if name in values[side]]
        axes.plot(
            sides,
            [values[side][name] for side in sides],
            color=_COLORS[name],
            marker=_MARKERS[name],
            markersize=5,
            linewidth=3 if name == OURS else 1.6,
            linestyle="--" if name == LIMIT else "-",
            zorder=3 if name == OURS else 2,
        )
    axes.margins(x=0.06, y=0.08)
    low, high = axes.get_ylim()
    ticks = [digit * 10.0**power for power in range(-2, 7) for digit in (1, 2, 5)]
    axes.set_yticks([tick for tick in ticks if low <= tick <= high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xticks(sorted(values), [f"{side:,}" for side in sorted(values)])
    axes.minorticks_off()
    axes.grid(axis="y", color="#e2e2e2", linewidth=0.8)


def _label(axes: Axes, values: Values) -> None:
    """Write each name at the end of its line, moved up or down where two would overlap."""
    from matplotlib.patheffects import withStroke

    names = next(iter(values.values()))
    last = {name: max(side for side in values if name in values[side]) for name in names}
    ends = {name: (last[name], values[last[name]][name]) for name in names}
    dots = 72 / axes.figure.dpi
    heights = {name: float(axes.transData.transform(end)[1]) * dots for name, end in ends.items()}
    for side in set(last.values()):
        stack = sorted((n for n in names if last[n] == side), key=lambda name: heights[name])
        for name, spot in zip(stack, _spread([heights[n] for n in stack]), strict=True):
            # Where our line goes on beyond the others, it passes where this name would be.
            above = name == LIMIT and last[OURS] > side
            axes.annotate(
                _NAMES.get(name, name),
                ends[name],
                xytext=(0, _LINE * 0.8) if above else (10, spot - heights[name]),
                textcoords="offset points",
                ha="right" if above else "left",
                va="center",
                color=_COLORS[name],
                fontweight="bold" if name == OURS else "normal",
                annotation_clip=False,
                path_effects=[withStroke(linewidth=4, foreground="white")],
            )


def _spread(spots: list[float]) -> list[float]:
    """Push ascending heights apart until no two are nearer than a line."""
    spots = list(spots)
    for _ in range(200):
        for low in range(len(spots) - 1):
            overlap = max(_LINE - (spots[low + 1] - spots[low]), 0.0)
            spots[low] -= overlap / 2
            spots[low + 1] += overlap / 2
    return spots


if __name__ == "__main__":
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/tiling.json")
    draw(load(source), source.with_suffix(".png"))
