"""Peak memory by pixel of a crop, beside what `--tile auto` reckons with.

    python benchmarks/memory.py [--quick] [-o benchmarks/results]

Each figure comes from a process of its own. *First* is the peak of the first crop, of 64x64 pixels,
less what was resident once the model was loaded: opening a session, not computing. *By pixel* is
the peak of some more crops, less what was resident after that, by pixel of all crops at work.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from peak import MIB, Peak, in_new_process, require_linux

if TYPE_CHECKING:
    from fcn_deploy.backends import Backend

_REPEATS = 3
"""Crops per worker: the first one allocates, later ones show whether that grows."""


class Figure(NamedTuple):
    """Memory of one way to compute crops."""

    first_mib: float
    bytes_per_pixel: float
    reckoned: float


def _alone(backend: Backend, side: int) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    for _ in range(_REPEATS):
        backend.scores(crop)


def _labels(backend: Backend, side: int) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    for _ in range(_REPEATS):
        backend.labels(crop)


def _stream(backend: Backend, side: int) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    for _ in backend.stream_scores(crops[0] for _ in range(_REPEATS * backend.footprint.workers)):
        pass


WAYS: dict[str, tuple[str, Callable[[Backend, int], None]]] = {
    "ORT, one crop on all cores": ("ort", _alone),
    "ORT, a crop for each core": ("ort", _stream),
    "eager, one crop": ("eager", _labels),
}


def measure(model: Path, way: str, side: int) -> Figure:
    """One figure; to be called in a process of its own."""
    import fcn_deploy

    segmenter = fcn_deploy.load(model)
    backend, work = segmenter.backend, WAYS[way][1]
    footprint = backend.footprint
    with Peak() as first:
        work(backend, 64)
    with Peak() as peak:
        work(backend, side)
    pixels = side**2 * (footprint.workers if work is _stream else 1)
    return Figure(first.extra / MIB, peak.extra / pixels, footprint.bytes_per_pixel)


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="ResNet-18 and 512x512 only")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    require_linux()
    backbones = ("resnet18",) if arguments.quick else ("resnet18", "resnet50")
    sides = (512,) if arguments.quick else (512, 1024)
    lines = [
        "| network | how | crop | first, MiB | bytes by pixel | reckoned | measured / reckoned |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory(prefix="fcn-deploy-bench-") as folder:
        for head, backbone in product(("fcn32s", "fcn8s"), backbones):
            ours, checkpoint = in_new_process(_make, Path(folder), head, backbone)
            for (way, (backend, _)), side in product(WAYS.items(), sides):
                model = ours if backend == "ort" else checkpoint
                figure = in_new_process(measure, model, way, side)
                lines.append(
                    f"| {head} {backbone} | {way} | {side} | {figure.first_mib:.0f} "
                    f"| {figure.bytes_per_pixel:.0f} | {figure.reckoned:.0f} "
                    f"| {figure.bytes_per_pixel / figure.reckoned:.2f} |"
                )
                print(lines[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    head = f"{' '.join(__doc__.split(chr(10) + chr(10))[-1].split())}\n\n"
    (arguments.out / "memory.md").write_text(head + "\n".join(lines) + "\n")


def _make(folder: Path, head: str, backbone: str) -> tuple[Path, Path]:
    from networks import make_network

    files = make_network(folder, head, backbone, fitted=False)
    return files.ours, files.checkpoint


if __name__ == "__main__":
    main()
