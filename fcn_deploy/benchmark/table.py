"""A benchmark as text that a person can read: one table, and one of the stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fcn_deploy.benchmark.result import Benchmark, EndToEnd, Row, Timing

Columns = list[tuple[str, list[str]]]


def table_of(benchmark: Benchmark) -> Iterator[str]:
    """Lines of all of it: machine, timings, stages of whole images, notes."""
    yield _machine(benchmark)
    for shape in benchmark.shapes:
        batch, height, width = shape
        yield ""
        yield f"{batch} x {height}x{width}, from pixels to labels:"
        yield from _timings(benchmark.rows, shape)
    whole = [(row.name, row.end_to_end) for row in benchmark.rows if row.end_to_end]
    if whole:
        first = whole[0][1]
        assert first is not None, "filtered above"
        yield ""
        yield f"{first.images} image files to masks, median milliseconds an image by stage:"
        yield from lined_up(_stages([(name, found) for name, found in whole if found]))
    reasons = list(_reasons(benchmark))
    if reasons:
        yield ""
        yield from reasons


def _machine(benchmark: Benchmark) -> str:
    machine = benchmark.machine
    memory = machine["memory_mib"]
    parts = [
        str(machine["jetson"] or machine["cpu"]),
        f"{machine['cores']} cores",
        *([f"{memory / 1024:.0f} GiB"] if memory else []),
        *(str(gpu["name"]) for gpu in machine["gpus"]),
    ]
    return ", ".join(parts)


def _timings(rows: Sequence[Row], shape: tuple[int, int, int]) -> Iterator[str]:
    there = [(row, timing) for row in rows if (timing := row.at(shape))]
    columns: Columns = [
        ("", [row.name for row, _ in there]),
        ("p50 ms", [in_ms(timing.p50_ms) for _, timing in there]),
        ("p90", [in_ms(timing.p90_ms) for _, timing in there]),
        ("p99", [in_ms(timing.p99_ms) for _, timing in there]),
        ("images/s", [_rate(timing.throughput_images_s) for _, timing in there]),
        ("Mpixel/s", [_rate(timing.megapixels_s) for _, timing in there]),
        ("time by eager's", [_ratio(timing) for _, timing in there]),
        ("copy in", [in_ms(timing.copy_in_ms) for _, timing in there]),
        ("out", [in_ms(timing.copy_out_ms) for _, timing in there]),
        ("MiB", [_whole(row.peak_memory_mib) for row, _ in there]),
        ("GPU MiB", [_whole(row.gpu_memory_mib) for row, _ in there]),
        ("W", [_whole(timing.power_w) for _, timing in there]),
        ("mean IoU", [_figure(row.mean_iou) for row, _ in there]),
    ]
    yield from lined_up(_known(columns))


def _known(columns: Columns) -> Columns:
    """Without the columns in which nothing is known."""
    return [(head, cells) for head, cells in columns if not head or set(cells) - {"-"}]


def _stages(whole: list[tuple[str, EndToEnd]]) -> Columns:
    return [
        ("", [name for name, _ in whole]),
        ("decode", [in_ms(found.decode_ms.p50) for _, found in whole]),
        ("network", [in_ms(found.network_ms.p50) for _, found in whole]),
        ("merge", [in_ms(found.merge_ms.p50) for _, found in whole]),
        ("encode", [in_ms(found.encode_ms.p50) for _, found in whole]),
        ("total", [in_ms(found.total_ms.p50) for _, found in whole]),
        ("p90", [in_ms(found.total_ms.p90) for _, found in whole]),
        ("images/s", [_rate(found.images_s) for _, found in whole]),
        ("overlapped", [_rate(found.pipelined_images_s) for _, found in whole]),
        ("total/network", [f"{found.host_overhead:.2f}" for _, found in whole]),
    ]


def _reasons(benchmark: Benchmark) -> Iterator[str]:
    for row in benchmark.rows:
        if row.unavailable is not None:
            yield f"{row.name}: {row.unavailable}"
            continue
        for refused in row.refused:
            shape = f"{refused.batch} x {refused.height}x{refused.width}"
            yield f"{row.name}, {shape}: {refused.reason}"
    yield from benchmark.notes


def lined_up(columns: Columns) -> Iterator[str]:
    """Lines of a table: the first column from the left, figures from the right."""
    widths = [max(map(len, (head, *cells))) for head, cells in columns]
    for first, *rest in zip(*([head, *cells] for head, cells in columns), strict=True):
        figures = [f"{cell:>{width}}" for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([f"{first:<{widths[0]}}", *figures])


def in_ms(value: float | None) -> str:
    """Milliseconds in three or four figures."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _ratio(timing: Timing) -> str:
    if timing.ratio is None:
        return "-"
    low, high = timing.ratio_low or 0.0, timing.ratio_high or 0.0
    return f"{timing.ratio:.2f} ({low:.2f}-{high:.2f})"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}"
