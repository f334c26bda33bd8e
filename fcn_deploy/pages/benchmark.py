"""What ``fcn-deploy benchmark`` measured, for people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.pages.benchmark_charts import latency_chart, stages_chart, throughput_chart
from fcn_deploy.pages.machine import machine_rows
from fcn_deploy.pages.page import ms, write_page
from fcn_deploy.pages.svg import Chart

CHARTS_OF_SHAPES = 4
"""Shapes and batches that get a chart of their own; the table has all of them."""

Rows = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Titled:
    """A chart, and the line above it."""

    title: str
    chart: Chart


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the row."""

    title: str
    heads: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True)
class Benchmark:
    """Measurements as a page shows them.

    Attributes:
        charts: Latency, throughput, stages: what there is of them.
        tables: The same in figures, and more.
        absent: What could not be measured, and why: name and reason.
        notes: Remarks.
        setting: On what and how it was measured.
        made: When, as the measurement says.
        headline: The lowest median latency, in milliseconds, and what it is that of.
    """

    charts: tuple[Titled, ...]
    tables: tuple[Table, ...]
    absent: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    setting: tuple[tuple[str, str], ...]
    made: str
    headline: tuple[float, str] | None


def write_benchmark_page(path: Path, benchmark: dict[str, Any]) -> None:
    """Write the page of a measurement.

    Args:
        path: The HTML file.
        benchmark: What ``benchmark.json`` holds.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        EnvironmentFault: The file cannot be written.
    """
    shown = benchmark_of(benchmark)
    facts = {"title": "Benchmark", "made": shown.made, "benchmark": shown}
    write_page(path, "benchmark.html", facts)


def benchmark_of(content: dict[str, Any]) -> Benchmark:
    """Measurements as a page shows them, from ``benchmark.json``.

    Raises:
        KeyError: Something is missing in it; TypeError, ValueError or AttributeError: or is not
            what it should be.
        MissingExtraError: matplotlib is not installed.
    """
    rows = content["rows"]
    absent = [(row["name"], row["unavailable"]) for row in rows if row["unavailable"]]
    absent += [
        (f"{row['name']}, {shape_name(case)}", case["reason"])
        for row in rows
        for case in row["refused"]
    ]
    tables = [_speed(rows), _models(rows), _end_to_end(rows)]
    return Benchmark(
        tuple(_charts(rows)),
        tuple(table for table in tables if table.rows),
        tuple(absent),
        tuple(content["notes"]),
        _setting(content),
        content["made"][:10],
        _headline(rows),
    )


def shape_name(case: dict[str, Any]) -> str:
    """A batch and its height and width, for people."""
    batch = "" if case["batch"] == 1 else f", batch {case['batch']}"
    return f"{case['height']}x{case['width']}{batch}"


def _cases(rows: list[dict[str, Any]]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Results with their row's name, by shape and batch."""
    cases: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in rows:
        for result in row["results"]:
            cases.setdefault(shape_name(result), []).append((row["name"], result))
    return cases


def _charts(rows: list[dict[str, Any]]) -> list[Titled]:
    cases = _cases(rows)
    charts = [
        Titled(f"Latency, {name}", latency_chart(f"latency-{number}", name, results))
        for number, (name, results) in enumerate(list(cases.items())[:CHARTS_OF_SHAPES])
    ]
    if len({result["batch"] for row in rows for result in row["results"]}) > 1:
        charts.append(Titled("Throughput by batch", throughput_chart(rows)))
    if any(row["end_to_end"] for row in rows):
        charts.append(Titled("From file to mask", stages_chart(rows)))
    return charts


def _speed(rows: list[dict[str, Any]]) -> Table:
    heads = ("model", "shape", "median", "90 %", "99 %", "images/s", "MP/s", "of reference")
    lines = []
    for shape, results in _cases(rows).items():
        for name, result in results:
            times = (ms(result[key]) for key in ("p50_ms", "p90_ms", "p99_ms"))
            speeds = (_number(result[key]) for key in ("throughput_images_s", "megapixels_s"))
            lines.append((name, shape, *times, *speeds, _ratio(result)))
    return Table("Speed of the network", heads, tuple(lines))


def _ratio(result: dict[str, Any]) -> str:
    if result["ratio"] is None:
        return "-"
    low, high = result["ratio_low"], result["ratio_high"]
    return f"{result['ratio']:.2f} ({low:.2f} to {high:.2f})"


def _models(rows: list[dict[str, Any]]) -> Table:
    heads: tuple[str, ...] = ("model", "runs on", "precision", "file", "mean IoU", "accuracy")
    heads += ("loading", "memory")
    known = [row for row in rows if not row["unavailable"]]
    heads += ("GPU memory",) * any(row["gpu_memory_mib"] for row in known)
    heads += ("power",) * any(row["power_w"] for row in known)
    lines = []
    for row in known:
        line = [
            row["name"],
            row["provider"] or "-",
            row["precision"] or "-",
            "-" if row["size_bytes"] is None else f"{row['size_bytes'] / 2**20:.1f} MiB",
            *("-" if row[key] is None else f"{row[key]:.4f}" for key in ("mean_iou", "accuracy")),
            "-" if row["loading_s"] is None else f"{row['loading_s']:.2f} s",
            _mib(row["peak_memory_mib"]),
        ]
        if "GPU memory" in heads:
            line.append(_mib(row["gpu_memory_mib"]))
        if "power" in heads:
            line.append("-" if row["power_w"] is None else f"{row['power_w']:.1f} W")
        lines.append(tuple(line))
    return Table("Models", heads, tuple(lines))


def _end_to_end(rows: list[dict[str, Any]]) -> Table:
    heads = ("model", "decode", "network", "merge", "encode", "total", "images/s", "overlapped")
    lines = []
    for row in rows:
        if done := row["end_to_end"]:
            stages = ("decode_ms", "network_ms", "merge_ms", "encode_ms", "total_ms")
            speeds = (_number(done[key]) for key in ("images_s", "pipelined_images_s"))
            lines.append((row["name"], *(ms(done[key]["p50"]) for key in stages), *speeds))
    return Table("From file to mask: medians of an image", heads, tuple(lines))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} MiB"


def _setting(content: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    settings = content["settings"]
    rows = [
        *machine_rows(content["machine"], content["versions"]),
        ("rounds", f"{settings['rounds']} or more, after {settings['warmup']} to warm up"),
        ("reference", settings["reference"]),
    ]
    if settings["data"]:
        labelled = f"{settings['images']} images of {settings['data']}, {settings['split']}"
        rows.append(("accuracy on", labelled))
    return tuple((name, str(value)) for name, value in rows if value)


def _headline(rows: list[dict[str, Any]]) -> tuple[float, str] | None:
    first = next(iter(_cases(rows).items()), None)
    if first is None:
        return None
    shape, results = first
    name, best = min(results, key=lambda entry: float(entry[1]["p50_ms"]))
    return float(best["p50_ms"]), f"{name}, {shape}"
