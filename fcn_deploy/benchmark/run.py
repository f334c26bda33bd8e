"""One run of a benchmark: what is loaded, what is measured of it, and what is known so far."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.backends import Backend
from fcn_deploy.benchmark.child import memory_of, runs_on_gpu
from fcn_deploy.benchmark.contenders import Contender, told_apart
from fcn_deploy.benchmark.copies import copies_of
from fcn_deploy.benchmark.entry import open_entry
from fcn_deploy.benchmark.labelled import Labelled, scores_of
from fcn_deploy.benchmark.power import find_meters, watts_of
from fcn_deploy.benchmark.quantiles import timing_of
from fcn_deploy.benchmark.result import Refused, Row, Timing
from fcn_deploy.benchmark.rounds import Pace, Raced, Samples, race
from fcn_deploy.benchmark.settings import Settings, shapes_for
from fcn_deploy.benchmark.stages import end_to_end
from fcn_deploy.errors import DeviceMemoryError, FcnDeployError, ShapeError
from fcn_deploy.items import Item

OnProgress = Callable[[str, int, int], None]
"""Called with what is under way, how much of it is done, and of how much."""

_POWER_S = 3.0


@dataclass
class Run:
    """What is known so far.

    Attributes:
        settings: Of the user.
        tell: Told how it gets on.
        notes: For the reader; added to.
        rows: By name, in the order to be shown in.
        contenders: Of the same names.
        backends: Of those that could be loaded.
        errors: What stopped rows, the first one first.
    """

    settings: Settings
    tell: OnProgress
    notes: list[str]
    rows: dict[str, Row] = field(default_factory=dict)
    contenders: dict[str, Contender] = field(default_factory=dict)
    backends: dict[str, Backend] = field(default_factory=dict)
    errors: list[FcnDeployError] = field(default_factory=list)

    @property
    def reference(self) -> str | None:
        """The row that ratios are to: eager PyTorch, or the first of several."""
        return next((n for n in self.backends if self.contenders[n].kind == "eager"), None)

    def load(self, contenders: list[Contender], opened: ExitStack, cache: Path | None) -> None:
        """Load all of them; those that cannot be are rows with a reason, unless they were named."""
        entries = []
        for number, contender in enumerate(contenders):
            self.tell("loading", number, len(contenders))
            entries.append(open_entry(contender, self.settings, cache))
            if entries[-1].backend is not None:
                opened.callback(entries[-1].backend.close)
        plain = [entry.contender.name(entry.backend) for entry in entries]
        names = told_apart(plain, [contender.path for contender in contenders])
        for name, entry in zip(names, entries, strict=True):
            self.rows[name] = replace(entry.row, name=name)
            self.contenders[name] = entry.contender
            if entry.backend is not None:
                self.backends[name] = entry.backend
            if entry.error is not None:
                self.errors.append(entry.error)
        self.require_some(measured=False)
        if self.reference is None and any(c.kind == "eager" for c in contenders):
            self.notes.append("No ratios: eager PyTorch, which they are to, does not run here.")

    def require_some(self, *, measured: bool = True) -> None:
        """Raise what stopped the first row, if it is that all rows were stopped."""
        left = [r for r in self.rows.values() if r.results] if measured else self.backends
        if self.errors and not left:
            raise self.errors[0]

    def shapes(self) -> list[tuple[int, int, int]]:
        """Batch, height and width of all that is to be timed.

        Raises:
            ShapeError: Heights or widths are no multiples of the networks' stride.
        """
        step = max(backend.limits.step for backend in self.backends.values())
        sizes = self.settings.shapes or (shapes_for(list(self.contenders.values()), step),)
        for height, width in sizes:
            if height % step or width % step:
                fitting = "x".join(str(-(-side // step) * step) for side in (height, width))
                raise ShapeError(
                    f"{height}x{width} is no multiple of the network's {step} pixels.",
                    f"For example: --shapes {fitting}",
                )
        return [(batch, *size) for size in sizes for batch in self.settings.batches]

    def time(self, shape: tuple[int, int, int]) -> None:
        """Race all rows on one shape."""
        crops = self._crops(shape)
        works = {name: partial(b.labels, crops) for name, b in self.backends.items()}
        what = f"timing {'x'.join(map(str, shape))}"
        rounds = self.settings.rounds
        pace = Pace(rounds, self.settings.seconds)
        raced = race(works, pace, on_round=lambda done: self.tell(what, min(done, rounds), rounds))
        reference = raced.samples.get(self.reference or "")
        for name in works:
            self.rows[name] = self._with(self.rows[name], shape, raced, reference)

    def _crops(self, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
        random = np.random.default_rng(self.settings.seed)
        return random.integers(0, 256, (*shape, 3), np.uint8)

    def _with(
        self, row: Row, shape: tuple[int, int, int], raced: Raced, reference: Samples | None
    ) -> Row:
        if error := raced.failed.get(row.name):
            self.errors.append(error)
            if not isinstance(error, (ShapeError, DeviceMemoryError)) and not row.results:
                del self.backends[row.name]  # it would fail again, and some take long to do so
                return replace(row, unavailable=error.problem)
            return replace(row, refused=(*row.refused, Refused(*shape, error.problem)))
        samples = raced.samples[row.name]
        timing = timing_of(shape, samples, reference, raced.warmup[row.name])
        if row.backend == "trt":
            timing = _with_copies(timing)
        return replace(row, results=(*row.results, timing))

    def draw_power(self, shape: tuple[int, int, int], machine: dict[str, Any], root: Path) -> None:
        """Run each row alone for some seconds, where the device tells what it draws."""
        if not self.settings.power:
            return
        meters = find_meters(root, has_gpu=bool(machine["gpus"]))
        used: dict[str, None] = {}
        for number, (name, backend) in enumerate(self.backends.items()):
            meter = meters[runs_on_gpu(backend.provider)]
            timing = self.rows[name].at(shape)
            if meter is None or timing is None:
                continue
            self.tell("power", number, len(self.backends))
            watts = watts_of(meter, partial(backend.labels, self._crops(shape)), _POWER_S)
            used[meter.name] = None
            first = replace(timing, power_w=watts)
            results = tuple(first if t == timing else t for t in self.rows[name].results)
            self.rows[name] = replace(self.rows[name], power_w=watts, results=results)
        machine["power"] = "; ".join(used) or None

    def whole_images(self, items: list[Item]) -> None:
        """Segment image files, if there are any."""
        if not items:
            return
        found, failed = end_to_end(self.backends, items, partial(self.tell, "whole images"))
        for name, result in found.items():
            self.rows[name] = replace(self.rows[name], end_to_end=result)
        self.notes += [f"{name}, whole images: {e.problem}" for name, e in failed.items()]

    def accuracy(self, labelled: Labelled | None) -> None:
        """Measure mean IoU, if there are labelled images."""
        if labelled is None:
            return
        for number, (name, backend) in enumerate(self.backends.items()):
            self.tell("accuracy", number, len(self.backends))
            try:
                mean_iou, accuracy = scores_of(backend, labelled)
            except FcnDeployError as error:
                self.notes.append(f"{name}, accuracy: {error.problem}")
                continue
            self.rows[name] = replace(self.rows[name], mean_iou=mean_iou, accuracy=accuracy)

    def memory(self, shape: tuple[int, int, int]) -> None:
        """Load and run each row in a process of its own, when nothing else is loaded."""
        if not self.settings.memory:
            return
        for number, name in enumerate(self.backends):
            self.tell("memory", number, len(self.backends))
            found = memory_of(
                self.contenders[name],
                shape,
                self.settings.provider,
                trust_engine=self.settings.trust_engine,
            )
            if isinstance(found, str):
                self.notes.append(f"{name}, memory: {found}")
                continue
            self.rows[name] = replace(
                self.rows[name],
                peak_memory_mib=found["peak_memory_mib"],
                gpu_memory_mib=found["gpu_memory_mib"],
            )


def _with_copies(timing: Timing) -> Timing:
    up, down = copies_of(timing.shape)
    rest = round(max(timing.p50_ms - up - down, 0.0), 4)
    return replace(timing, copy_in_ms=up, network_ms=rest, copy_out_ms=down)
