"""A benchmark as one picture: latency against accuracy, or latency alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.artifacts import atomic_path
from fcn_deploy.benchmark.result import Benchmark, Row, Timing
from fcn_deploy.benchmark.table import in_ms
from fcn_deploy.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {"eager": "#7f8c8d", "compiled": "#34495e", "ort": "#2980b9", "trt": "#27ae60"}
_MARKERS = "osD^vP*X"
_PANELS = 4
"""More shapes than these would be too small to read; the table has them all."""

Found = list[tuple[Row, Timing]]


def draw(path: Path, benchmark: Benchmark) -> None:
    """Draw as PNG: mean IoU over milliseconds where it was measured, else bars of milliseconds.

    Each row shows its median, and a line to its 99th percentile.

    Args:
        path: Where to write.
        benchmark: With at least one row that was measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
        EnvironmentFault: The file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    shapes = benchmark.shapes[:_PANELS]
    judged = any(row.mean_iou is not None and row.results for row in benchmark.rows)
    most = max(len(row_timings(benchmark, shape)) for shape in shapes)
    height = 3.9 if judged else 1.3 + 0.45 * most
    figure = Figure(figsize=(10 if judged else 9, height * len(shapes)), layout="constrained")
    for axes, shape in zip(figure.subplots(len(shapes), squeeze=False)[:, 0], shapes, strict=True):
        found = row_timings(benchmark, shape)
        axes.set_title(f"{shape[0]} x {shape[1]}x{shape[2]}", loc="left", fontsize=11)
        if judged:
            _points(axes, [(row, timing) for row, timing in found if row.mean_iou is not None])
        else:
            _bars(axes, found)
        axes.spines[["top", "right"]].set_visible(False)
    machine = benchmark.machine
    figure.suptitle(
        f"{machine['jetson'] or machine['cpu']}, {machine['cores']} cores"
        + "".join(f", {gpu['name']}" for gpu in machine["gpus"]),
        fontsize=9,
        color="#6e7176",
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def require_matplotlib() -> None:
    """Find out before the work that nothing could be drawn after it.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401 - whether it can be
    except ImportError as error:
        raise MissingExtraError("matplotlib", "train") from error


def row_timings(benchmark: Benchmark, shape: tuple[int, int, int]) -> Found:
    """The rows that were measured on a shape."""
    return [(row, timing) for row in benchmark.rows if (timing := row.at(shape))]


def _bars(axes: Axes, found: Found) -> None:
    places = range(len(found))
    medians = [timing.p50_ms for _, timing in found]
    axes.barh(places, medians, 0.62, color=[_COLORS[row.backend] for row, _ in found])
    for place, (_, timing) in zip(places, found, strict=True):
        axes.plot([timing.p50_ms, timing.p99_ms], [place, place], color="#202124", lw=1.2)
        axes.plot([timing.p99_ms], [place], "|", color="#202124", ms=7)
        ratio = "" if timing.ratio is None else f", {timing.ratio:.2f} x"
        axes.annotate(
            f"{in_ms(timing.p50_ms)} ms{ratio}",
            (max(timing.p99_ms, timing.p50_ms), place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_yticks(places, [row.name for row, _ in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(timing.p99_ms for _, timing in found))
    axes.set_xlabel("milliseconds from pixels to labels: median, and to the 99th percentile")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)


def _points(axes: Axes, found: Found) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    for number, (row, timing) in enumerate(found):
        assert row.mean_iou is not None, "only those are drawn"
        color, height = _COLORS[row.backend], row.mean_iou
        axes.plot([timing.p50_ms, timing.p99_ms], [height] * 2, color=color, lw=1.2, alpha=0.6)
        axes.plot([timing.p99_ms], [height], "|", color=color, ms=7)
        # A legend, not names beside the points: most rows are as accurate as each other.
        axes.plot(
            [timing.p50_ms],
            [height],
            _MARKERS[number % len(_MARKERS)],
            color=color,
            mec="white",
            ms=10,
            zorder=3,
            label=f"{row.name}\n{in_ms(timing.p50_ms)} ms, {height:.4f}",
        )
    slowest = max(timing.p99_ms for _, timing in found)
    fastest = min(timing.p50_ms for _, timing in found)
    axes.set_xscale("log")
    axes.set_xlim(fastest / 1.3, slowest * 1.3)
    near = slowest < 10 * fastest
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7) if near else (1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    values = [row.mean_iou for row, _ in found if row.mean_iou is not None]
    # Differences of rounding are to look like what they are: nothing.
    margin = max(max(values) - min(values), 0.02)
    axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set_xlabel("milliseconds from pixels to labels: median, and to the 99th percentile")
    axes.set_ylabel("mean IoU")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelspacing=0.9)
    axes.grid(alpha=0.25)
