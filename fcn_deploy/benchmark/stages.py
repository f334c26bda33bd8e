"""Whole images from file to mask: what each stage takes, and all of them as they really run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from fcn_deploy.backends import Backend
from fcn_deploy.batch import segment_items
from fcn_deploy.benchmark.quantiles import spread_of
from fcn_deploy.benchmark.result import EndToEnd
from fcn_deploy.benchmark.rounds import in_turn, until_quiet
from fcn_deploy.benchmark.timed_backend import Seconds, TimedBackend
from fcn_deploy.errors import FcnDeployError, InputError
from fcn_deploy.image import read_image
from fcn_deploy.items import Item
from fcn_deploy.outputs import Outputs
from fcn_deploy.segment import Segmenter

_FEW_IMAGES, _PASSES = 10, 3


@dataclass
class Stages:
    """Seconds of each stage, one entry an image.

    Attributes:
        decode: File to pixels.
        network: Crops to scores or labels.
        merge: All between these that is ours.
        encode: Labels to file.
        crops: How many crops all images took.
    """

    decode: list[float] = field(default_factory=list)
    network: list[float] = field(default_factory=list)
    merge: list[float] = field(default_factory=list)
    encode: list[float] = field(default_factory=list)
    crops: int = 0

    @property
    def total(self) -> list[float]:
        """Of each image, from file to file."""
        parts = (self.decode, self.network, self.merge, self.encode)
        return [sum(values) for values in zip(*parts, strict=True)]


def segment_timed(
    backend: Backend, item: Item, out: Path, stages: Stages, clock: Seconds = time.perf_counter
) -> None:
    """Segment one image, one stage after the other, and note what each of them takes.

    Raises:
        InputError: The image cannot be read.
        FcnDeployError: As the backend raises it.
    """
    timed = TimedBackend(backend, clock)
    model = Segmenter(timed)
    begin = clock()
    image = read_image(item.source)
    decoded = clock()
    grid = model.plan((image.shape[0], image.shape[1]))
    with closing(model.bands(image, grid)) as found:
        bands = list(found)
    decided = clock()
    outputs = Outputs(
        out, item.name, ("mask",), model.spec, grid.image_hw, whole=image, source=item.source
    )
    outputs.write(iter(bands))
    stages.encode.append(clock() - decided)
    stages.decode.append(decoded - begin)
    stages.network.append(timed.seconds)
    stages.merge.append(max(decided - decoded - timed.seconds, 0.0))
    stages.crops += len(grid)


def end_to_end(
    backends: dict[str, Backend],
    items: Sequence[Item],
    on_image: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, EndToEnd], dict[str, FcnDeployError]]:
    """Whole images through each backend, which take turns image by image.

    Args:
        backends: By name.
        items: The image files.
        on_image: Told how many images of how many are done.

    Returns:
        What came of each backend, and what stopped the others.

    Raises:
        InputError: None of the images can be read.
    """
    sizes = _readable(items)
    with tempfile.TemporaryDirectory(prefix="fcn-deploy-") as place:
        folder = Path(place)
        failed = _meet_each_size(backends, sizes, folder)
        stages = {name: Stages() for name in backends if name not in failed}
        passes = 1 if len(sizes) >= _FEW_IMAGES else _PASSES
        rounds = [item for _ in range(passes) for item in sizes]
        for done, item in enumerate(rounds):
            for name in in_turn(list(stages), done):
                until_quiet()
                segment_timed(backends[name], item, folder, stages[name])
            if on_image is not None:
                on_image(done + 1, len(rounds))
        pipelined = {name: _pipelined(backends[name], list(sizes), folder) for name in stages}
    megapixels = sum(height * width for height, width in sizes.values()) / 1e6
    return {
        name: _summed(stages[name], pipelined[name], len(items), len(sizes), passes, megapixels)
        for name in stages
    }, failed


def _readable(items: Sequence[Item]) -> dict[Item, tuple[int, int]]:
    """Height and width of each image that can be read; all of them are in the disk cache then."""
    sizes: dict[Item, tuple[int, int]] = {}
    failure: InputError | None = None
    for item in items:
        try:
            image = read_image(item.source)
            sizes[item] = image.shape[0], image.shape[1]
        except InputError as error:
            failure = error
    if failure is not None and not sizes:
        raise failure
    return sizes


def _meet_each_size(
    backends: dict[str, Backend], sizes: dict[Item, tuple[int, int]], folder: Path
) -> dict[str, FcnDeployError]:
    """Segment one image of each size without the clock: what is new is prepared then."""
    of_each = {size: item for item, size in sizes.items()}
    failed: dict[str, FcnDeployError] = {}
    for name, backend in backends.items():
        try:
            for item in of_each.values():
                segment_timed(backend, item, folder, Stages())
        except FcnDeployError as error:
            failed[name] = error
    return failed


def _pipelined(backend: Backend, items: list[Item], folder: Path) -> float:
    """Seconds of all images as ``segment`` runs them."""
    until_quiet()
    start = time.perf_counter()
    segment_items(Segmenter(backend), items, folder)
    return time.perf_counter() - start


def _summed(
    stages: Stages, pipelined_s: float, images: int, readable: int, passes: int, megapixels: float
) -> EndToEnd:
    total = spread_of(stages.total)
    network = spread_of(stages.network)
    return EndToEnd(
        images=images,
        failed=images - readable,
        passes=passes,
        megapixels=round(megapixels, 4),
        crops=stages.crops // passes,
        decode_ms=spread_of(stages.decode),
        network_ms=network,
        merge_ms=spread_of(stages.merge),
        encode_ms=spread_of(stages.encode),
        total_ms=total,
        images_s=round(1e3 / max(total.mean, 1e-6), 3),
        pipelined_s=round(pipelined_s, 4),
        pipelined_images_s=round(readable / max(pipelined_s, 1e-9), 3),
        host_overhead=round(total.mean / max(network.mean, 1e-6), 4),
    )
