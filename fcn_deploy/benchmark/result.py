"""What a benchmark found: values, and how they become JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1
"""Of the JSON; raised when a field changes its meaning, not when one is added."""


@dataclass(frozen=True)
class Timing:
    """One row on one shape of input, from uint8 crops to uint8 labels in host memory.

    Attributes:
        batch: Crops in one call.
        height: Of a crop, in pixels.
        width: The same.
        rounds: Rounds, in each of which all rows had a turn.
        runs: Calls that were timed, of all turns.
        warmup: Calls before that, which do not count.
        min_ms: The fastest call.
        p50_ms: Median of all calls.
        p90_ms: 90th percentile.
        p99_ms: 99th percentile.
        max_ms: The slowest call.
        mean_ms: Mean of all calls.
        throughput_images_s: Crops a second, at the median.
        megapixels_s: The same in millions of pixels.
        ratio: Time of this row by that of the reference in the same round: the median over rounds;
            ``None`` where there is no reference.
        ratio_low: The 10th percentile of these.
        ratio_high: The 90th percentile.
        copy_in_ms: Part of it that brings crops to the device; ``None`` where it cannot be told.
        network_ms: Part of it that is neither copy; ``None`` where that cannot be told.
        copy_out_ms: Part of it that brings labels back.
        power_w: Mean power while this row ran without pause.
    """

    batch: int
    height: int
    width: int
    rounds: int
    runs: int
    warmup: int
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    throughput_images_s: float
    megapixels_s: float
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    copy_in_ms: float | None = None
    network_ms: float | None = None
    copy_out_ms: float | None = None
    power_w: float | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Batch, height and width."""
        return self.batch, self.height, self.width


@dataclass(frozen=True)
class Refused:
    """A shape that a row does not take, or failed on, and why."""

    batch: int
    height: int
    width: int
    reason: str


@dataclass(frozen=True)
class Spread:
    """Milliseconds of an image, over all images."""

    p50: float
    p90: float
    mean: float


@dataclass(frozen=True)
class EndToEnd:
    """Whole image files to mask files, by one row.

    Attributes:
        images: How many image files.
        failed: How many of these could not be read.
        passes: How often each was segmented, stage by stage.
        megapixels: Of all images together.
        crops: The same.
        decode_ms: From file to pixels.
        network_ms: Crops to scores or labels, copies to and from a device included.
        merge_ms: Cutting into crops, merging, and deciding every pixel.
        encode_ms: From labels to mask file.
        total_ms: All of it, one after the other.
        images_s: By the mean of ``total_ms``.
        pipelined_s: Wall time of all images as ``segment`` runs them, where stages overlap.
        pipelined_images_s: By that.
        host_overhead: Mean of the total by mean of the network; 1 were a free host.
    """

    images: int
    failed: int
    passes: int
    megapixels: float
    crops: int
    decode_ms: Spread
    network_ms: Spread
    merge_ms: Spread
    encode_ms: Spread
    total_ms: Spread
    images_s: float
    pipelined_s: float
    pipelined_images_s: float
    host_overhead: float


@dataclass(frozen=True)
class Row:
    """One model file on one backend.

    Attributes:
        name: Unique, for people.
        file: Where it lies.
        backend: ``eager``, ``compiled``, ``ort`` or ``trt``.
        provider: Where it computes, in the vendor's spelling; ``None`` if it could not be loaded.
        precision: What it computes in; the same.
        size_bytes: Of the file.
        mean_iou: On labelled images, if there were any.
        accuracy: Of pixels, the same.
        peak_memory_mib: Most memory that a process resides in which loads it and runs the largest
            shape, libraries included.
        gpu_memory_mib: What that process holds on the device after its runs.
        power_w: Mean power of its first shape.
        loading_s: How long it took to load.
        unavailable: Why it was not measured at all; ``None`` if it was.
        results: One for each shape.
        refused: Shapes that it was not measured on.
        end_to_end: With whole images, if there were any.
    """

    name: str
    file: str
    backend: str
    provider: str | None = None
    precision: str | None = None
    size_bytes: int | None = None
    mean_iou: float | None = None
    accuracy: float | None = None
    peak_memory_mib: float | None = None
    gpu_memory_mib: float | None = None
    power_w: float | None = None
    loading_s: float | None = None
    unavailable: str | None = None
    results: tuple[Timing, ...] = ()
    refused: tuple[Refused, ...] = ()
    end_to_end: EndToEnd | None = None

    def at(self, shape: tuple[int, int, int]) -> Timing | None:
        """Its timing on a shape, if it has one."""
        return next((timing for timing in self.results if timing.shape == shape), None)


@dataclass(frozen=True)
class Benchmark:
    """All rows side by side, with what is needed to judge them.

    Attributes:
        made: When, in UTC, ISO 8601.
        machine: Processor, cores, memory, platform, GPUs, load; JSON types only.
        versions: Of the libraries that take part.
        settings: What was measured, and how long.
        rows: In the order to be shown in.
        notes: What a reader must know, one line each.
    """

    made: str
    machine: dict[str, Any]
    versions: dict[str, str]
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Batch, height and width of everything that some row was measured on."""
        return tuple(dict.fromkeys(timing.shape for row in self.rows for timing in row.results))

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {"format": FORMAT, **asdict(self)}
