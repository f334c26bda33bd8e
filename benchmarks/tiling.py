"""Segmentation by overlapping crops, measured side by side with its peers.

python benchmarks/tiling.py [--quick] [--large] [--sizes 960,2304,4544] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

# Before anything brings OpenMP: on a busy machine, threads that spin while they wait for each
# other take three times as long, those of our peers as well.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import oracle
import plot
import report
import streamed
from contenders import LIMIT, OURS, Contender, extra_memory, limit, open_contenders, ours
from machine import environment
from numpy.typing import NDArray
from peak import in_new_process, require_linux
from plain import Model, Plain, open_session
from report import LARGE, PLAIN, Results
from rounds import in_rounds
from scenes import saved_scene
from windows import share_computed

from fcn_deploy.spec import INPUT

if TYPE_CHECKING:
    from networks import Kernel

SMALL = 960
"""Side of the image that all labels are checked on."""

GRAPH_SHAPES = ((1, 512, 512), (4, 320, 480), (1, 1024, 1024))
GRAPH_REPEATS, MEMORY_REPEATS = 4, 3
WIDTH, HEIGHTS = 2304, (4608, 18432)
"""Two files of which one is four times as high; smaller ones are not read by rows, but whole."""

FCN8S, AS_TRAINED = "FCN-8s", "kernel as after training"
KERNELS: dict[str, Kernel] = {
    "kernel bilinear": "bilinear",
    AS_TRAINED: "learned",
    "kernel of noise: nothing to skip": "rough",
}


def main() -> None:
    """Measure, print, and write ``tiling.md``, ``tiling.json`` and ``tiling.png``."""
    arguments = _arguments()
    require_linux()
    results = Results(environment(), arguments.rounds)
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="fcn-deploy-bench-"))
        work = Path(arguments.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        say("drawing scenes, making networks")
        models = {name: in_new_process(_make, work, "fcn32s", k) for name, k in KERNELS.items()}
        models[FCN8S] = in_new_process(_make, work, "fcn8s", "learned")
        model = models[AS_TRAINED]
        measure_times(results, model, arguments.sizes, work)
        measure_special(results, models, work)
        measure_graph(results, model)
        check_labels(results, models, work)
        measure_memory(results, model, arguments.sizes, work)
        if not arguments.quick:
            measure_files(results, model, work)
        if arguments.large:
            measure_large(results, model, work)
    report.save(results, arguments.out)
    plot.draw(results, arguments.out / "tiling.png")
    print(report.markdown(results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round at 960x960: 2 minutes")
    parser.add_argument("--large", action="store_true", help="a file of 20,000x20,000, too")
    parser.add_argument("--sizes", type=_sides, default=[960, 2304, 4544], help="sides, in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each time")
    parser.add_argument("--work", type=Path, help="keep networks and images here for a next run")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes, arguments.rounds = [SMALL], 1
    return arguments


def _sides(text: str) -> list[int]:
    sides = sorted(int(side) for side in text.split(","))
    if any(side < SMALL or (side - 64) % 448 for side in sides):
        raise argparse.ArgumentTypeError(
            "sides are 64 + 448k and at least 960: there, all place the same crops"
        )
    return sides


def _make(work: Path, head: str, kernel: Kernel) -> Model:
    from networks import make_network  # torch, which must not count as anybody's memory

    return make_network(work, head, kernel=kernel)


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"... {what}", flush=True)


def measure_times(results: Results, model: Model, sides: list[int], work: Path) -> None:
    """Time all contenders at all sizes."""
    contenders, results.missing = open_contenders(model)

    def works(side: int) -> dict[str, Callable[[], object]]:
        image = np.load(saved_scene(work, (side, side)))
        return {
            name: partial(contender.segment, contender.prepare(image))
            for name, contender in contenders.items()
        }

    in_rounds(works(SMALL), 1)  # the first crops of a session take longer
    for side in sides:
        say(f"times at {side}x{side}: {', '.join(contenders)}")
        results.times[side] = in_rounds(works(side), results.rounds)


def measure_special(results: Results, models: dict[str, Model], work: Path) -> None:
    """Time other kernels, and FCN-8s, each beside its own limit; count what could be skipped."""
    image = np.load(saved_scene(work, (results.head, results.head)))
    works: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        works[name] = _warm(ours(model), image)
        results.windows[name] = share_computed(model.ours, image)
    for name, network in ((LIMIT, AS_TRAINED), (f"{FCN8S}: {LIMIT}", FCN8S)):
        works[name] = _warm(limit(models[network], Plain(models[network].plain)), image)
    say(f"other networks at {results.head}x{results.head}")
    results.special = in_rounds(works, results.rounds)


def _warm(contender: Contender, image: NDArray[np.uint8]) -> Callable[[], object]:
    contender.warm()
    contender.segment(image[:SMALL, :SMALL])
    return partial(contender.segment, image)


def measure_graph(results: Results, model: Model) -> None:
    """Time the labels of the exported graph alone, ours and plain."""
    sessions = {
        OURS: open_session(model.ours, "labels"),
        PLAIN: open_session(model.plain, "labels"),
    }
    random = np.random.default_rng(0)
    say("the graph alone")
    for shape in GRAPH_SHAPES:
        feed = {INPUT: random.integers(0, 256, (*shape, 3), np.uint8)}
        works = {name: partial(session.run, None, feed) for name, session in sessions.items()}
        in_rounds(works, 1)
        results.graph["x".join(map(str, shape))] = in_rounds(works, GRAPH_REPEATS * results.rounds)


def check_labels(results: Results, models: dict[str, Model], work: Path) -> None:
    """Hold our labels of all networks, and those of all contenders, against the definition."""
    image = np.load(saved_scene(work, (SMALL, SMALL)))
    for network, model in models.items():
        say(f"labels against the definition in float64: {network}")
        logits = oracle.averaged_logits(model.plain, image)
        contenders: dict[str, Contender] = {OURS: ours(model)}
        if network == AS_TRAINED:
            contenders, _ = open_contenders(model)
        for name, contender in contenders.items():
            labels = contender.segment(contender.prepare(image))
            if labels is not None:
                results.labels[f"{name}, {network}"] = oracle.judge(labels, logits)


def measure_memory(results: Results, model: Model, sides: list[int], work: Path) -> None:
    """Peak of each contender, each time in a process of its own."""
    for side in sides:
        scene = saved_scene(work, (side, side))
        say(f"memory at {side}x{side}")
        peaks = {
            name: [
                in_new_process(extra_memory, model, name, scene)
                for _ in range(min(MEMORY_REPEATS, results.rounds))
            ]
            for name in results.times[side]
        }
        results.memory[side] = {name: int(median(values)) for name, values in peaks.items()}


def measure_files(results: Results, model: Model, work: Path) -> None:
    """Segment files: one that is read whole, and two heights that are read by rows."""
    sizes = {f"{height}x{WIDTH}": (height, WIDTH) for height in (WIDTH, *HEIGHTS)}
    files = {name: streamed.saved_tiff(work, size) for name, size in sizes.items()}
    results.heights = (f"{HEIGHTS[0]}x{WIDTH}", f"{HEIGHTS[1]}x{WIDTH}")
    say(f"files: {', '.join(files)}")
    results.files = {name: [] for name in files}
    for _ in range(results.rounds):
        for name, file in files.items():
            cost = in_new_process(streamed.cost_of, model.ours, file, "tile")
            results.files[name].append(cost)


def measure_large(results: Results, model: Model, work: Path) -> None:
    """Segment a file that no peer has the memory for, once."""
    height, width = (int(side) for side in LARGE.split("x"))
    file = streamed.saved_tiff(work, (height, width))
    for tiling in streamed.TILINGS:
        name = f"{LARGE}, --tile auto" if tiling == "auto" else LARGE
        say(name)
        results.files[name] = [in_new_process(streamed.cost_of, model.ours, file, tiling)]


if __name__ == "__main__":
    main()
