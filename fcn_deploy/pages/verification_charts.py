"""Charts of the parity ladder."""

from __future__ import annotations

from typing import Any

from fcn_deploy.pages.svg import SERIES, Chart, new_figure, styled, to_svg

FLOOR = 1e-9
"""Of the logits' range: what is smaller, and what is nothing, is drawn here."""


def errors_chart(rungs: list[dict[str, Any]]) -> Chart:
    """Root mean square, 99.9th percentile and maximum of the errors of logits, of each rung.

    Args:
        rungs: Of ``verify.json``, those that have crops.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    kinds = (
        ("rms_error", "root mean square", SERIES[2]),
        ("p999_error", "99.9 % of them below", SERIES[1]),
        ("max_error", "largest", SERIES[4]),
    )
    found = [
        [max(rung["crops"][key] / (rung["crops"]["logit_range"] or 1), FLOOR) for rung in rungs]
        for key, _, _ in kinds
    ]
    rows = range(len(rungs))
    with styled("errors"):
        figure = new_figure(1.3 + 0.42 * len(rungs))
        axes = figure.subplots()
        axes.hlines(rows, found[0], found[-1], color="#8b929c", linewidth=1.5)
        for (_, label, color), values in zip(kinds, found, strict=True):
            axes.scatter(values, rows, color=color, label=label, s=42, zorder=3)
        axes.set_xscale("log")
        # matplotlib's own labels are formulas, which need its fonts.
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(LogLocator(numticks=5))
        axes.set_yticks(rows, [rung["name"] for rung in rungs])
        axes.set(xlabel="share of the logits' range", ylim=(len(rungs) - 0.4, -0.6))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper left", ncols=len(kinds), fontsize=8.5)
        svg = to_svg(figure)
    largest = zip(rungs, found[-1], strict=True)
    said = ", ".join(f"{rung['name']} {value:.1e}" for rung, value in largest)
    return Chart(svg, f"Largest error of a logit as a share of their range: {said}.")


def margins_chart(rungs: list[dict[str, Any]]) -> Chart:
    """Share of equal labels by how sure the reference was, a line for each rung.

    Args:
        rungs: Of ``verify.json``, those that have crops.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with styled("margins"):
        figure = new_figure(3.3)
        axes = figure.subplots()
        labels: list[str] = []
        for number, rung in enumerate(rungs):
            bins = [b for b in rung["crops"]["by_margin"] if b["pixels"]]
            names = [_margin(b) for b in bins]
            labels += [name for name in names if name not in labels]
            color = SERIES[number % len(SERIES)]
            places = [labels.index(name) for name in names]
            shares = [100 * b["agreement"] for b in bins]
            axes.plot(places, shares, marker="o", color=color, label=rung["name"])
        axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right", fontsize=8.5)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set(xlabel="margin of the two best classes", ylabel="labels equal, %")
        axes.legend(loc="lower right", fontsize=8.5)
        svg = to_svg(figure)
    return Chart(svg, "Share of equal labels by the margin of the two best classes.")


def _margin(entry: dict[str, Any]) -> str:
    if entry["to"] is None:
        return f"from {entry['from']:g}"
    return f"{entry['from']:g} to {entry['to']:g}"
