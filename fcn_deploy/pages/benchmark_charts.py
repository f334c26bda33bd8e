"""Charts of what ``fcn-deploy benchmark`` measured."""

from __future__ import annotations

from typing import Any

from fcn_deploy.pages.page import ms
from fcn_deploy.pages.svg import INK, SERIES, Chart, new_figure, styled, to_svg

_STAGES = (
    ("decode", SERIES[5]),
    ("network", SERIES[0]),
    ("merge", SERIES[1]),
    ("encode", "#8b929c"),
)


def latency_chart(name: str, shape: str, results: list[tuple[str, dict[str, Any]]]) -> Chart:
    """Median latency of each model on one shape; its line goes from the lowest to the 99 % mark.

    Args:
        name: Different for each chart of a page.
        shape: For people.
        results: Name of the model, and its ``results`` entry.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    medians = [result["p50_ms"] for _, result in results]
    below = [result["p50_ms"] - result["min_ms"] for _, result in results]
    above = [result["p99_ms"] - result["p50_ms"] for _, result in results]
    with styled(name):
        figure = new_figure(0.8 + 0.42 * len(results))
        axes = figure.subplots()
        rows = range(len(results))
        axes.barh(rows, medians, color=SERIES[0], alpha=0.85, height=0.62)
        lines = {"fmt": "none", "ecolor": INK, "elinewidth": 1.2, "capsize": 3}
        axes.errorbar(medians, rows, xerr=[below, above], **lines)  # type: ignore[arg-type]
        for row, (_, result) in enumerate(results):
            place = (max(result["p99_ms"], result["p50_ms"]), row)
            beside = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(ms(result["p50_ms"]), place, fontsize=8.5, **beside)  # type: ignore[arg-type]
        axes.set_yticks(rows, [model for model, _ in results])
        most = max(result["p99_ms"] for _, result in results)
        axes.set(xlabel="ms for a batch", xlim=(0, most * 1.25), ylim=(len(results) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        svg = to_svg(figure)
    said = ", ".join(f"{model} {ms(result['p50_ms'])}" for model, result in results)
    return Chart(svg, f"Median latency of {shape}: {said}.")


def throughput_chart(rows: list[dict[str, Any]]) -> Chart:
    """Megapixels a second over the batch, a line for each model and shape.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    lines: dict[tuple[str, int, int], list[tuple[int, float]]] = {}
    for row in rows:
        for result in row["results"]:
            key = (row["name"], result["height"], result["width"])
            lines.setdefault(key, []).append((result["batch"], result["megapixels_s"]))
    with styled("throughput"):
        figure = new_figure(3.4)
        axes = figure.subplots()
        for number, ((name, height, width), points) in enumerate(lines.items()):
            color = SERIES[number % len(SERIES)]
            label = f"{name}, {height}x{width}"
            axes.plot(*zip(*sorted(points), strict=True), label=label, color=color, marker="o")
        axes.set_xticks(sorted({batch for points in lines.values() for batch, _ in points}))
        axes.set(xlabel="batch", ylabel="megapixels/s", ylim=(0, None))
        axes.legend(fontsize=8)
        svg = to_svg(figure)
    best = {name: max(speed for _, speed in points) for (name, *_), points in lines.items()}
    said = ", ".join(f"{name} up to {speed:.3g}" for name, speed in best.items())
    return Chart(svg, f"Megapixels a second over the batch: {said}.")


def stages_chart(rows: list[dict[str, Any]]) -> Chart:
    """Where the time of an image goes, from its file to its mask: medians of the stages.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    known = [(row["name"], row["end_to_end"]) for row in rows if row["end_to_end"]]
    with styled("stages"):
        figure = new_figure(1.1 + 0.42 * len(known))
        axes = figure.subplots()
        lefts = [0.0] * len(known)
        for stage, color in _STAGES:
            widths = [done[f"{stage}_ms"]["p50"] for _, done in known]
            axes.barh(range(len(known)), widths, left=lefts, color=color, label=stage, height=0.62)
            lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
        axes.set_yticks(range(len(known)), [name for name, _ in known])
        axes.set(xlabel="ms for an image", ylim=(len(known) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper left", ncols=len(_STAGES), fontsize=8.5)
        svg = to_svg(figure)
    said = ", ".join(f"{name} {ms(done['total_ms']['p50'])}" for name, done in known)
    return Chart(svg, f"Time of an image from its file to its mask: {said}.")
