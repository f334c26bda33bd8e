"""Image to labels on a GPU, side by side: TensorRT, ONNX Runtime, PyTorch, MONAI.

python benchmarks/gpu.py [--quick] [--network fcn8s:resnet50] [--work DIR] [--prepared DIR]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

# Before anything brings OpenMP: threads that spin while they wait steal cores from all others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gpu_report
from gpu_contenders import BASELINES, CROPS, IMAGES
from gpu_device import Device, environment_of, find_device, give_back, state_of_gpu
from gpu_job import Contender, Files, Job
from gpu_measure import Truths, measure
from gpu_parity import open_reference, reference_name, truth_of
from gpu_prepare import batch_job, files_of, image_job
from gpu_results import Results, Table
from gpu_rounds import Pace
from gpu_trial import Trial, tried, try_apart, try_out

from fcn_deploy.errors import DeviceError, MissingExtraError


@dataclass(frozen=True)
class Plan:
    """What is measured on a kind of device.

    Attributes:
        crops: Batches (N, H, W).
        images: Sides of square images, in pixels.
        tile: Side of the crops that images are cut into.
        overlap: Pixels that these share.
        pace: How much is measured.
    """

    crops: tuple[tuple[int, ...], ...]
    images: tuple[int, ...]
    tile: int
    overlap: int
    pace: Pace


PLANS = {
    # At 64 + 448k pixels all contenders place the same crops.
    "cuda": Plan(
        ((1, 512, 512), (4, 512, 512), (1, 1024, 2048)), (2304, 4544), 512, 64, Pace(warm_s=2.0)
    ),
    "quick": Plan(((1, 512, 512),), (2304,), 512, 64, Pace(5, warm_s=2.0)),
    "cpu": Plan(((2, 64, 96),), (160,), 96, 32, Pace(rounds=3, burst_s=0.05, most=5)),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write ``gpu-<device>.md``, ``.json`` and ``.png``."""
    arguments = _arguments(argv)
    with ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="fcn-deploy-bench-"))
        work = (arguments.prepare_only or arguments.work or Path(temporary)).resolve()
        if arguments.prepare_only:
            work.mkdir(parents=True, exist_ok=True)
            for network in arguments.network:
                say(f"prepared {_files(network, work, None).onnx}")
            return
        try:
            device = find_device(arguments.device)
        except (DeviceError, MissingExtraError) as error:
            say(f"The GPU benchmark is skipped: {error.problem}")
            return
        work.mkdir(parents=True, exist_ok=True)
        environment = environment_of(device, arguments.date)
        results = Results(environment, device.name, device.is_gpu, arguments.plan.pace.rounds)
        if device.is_gpu:
            results.states["before"] = state_of_gpu()
        for network in arguments.network:
            files = _files(network, work, arguments.prepared)
            for table in _tables(network, files, work, device, arguments):
                results.tables.append(table)
                if device.is_gpu:
                    results.states[f"after {table.network}, {table.job}"] = state_of_gpu()
                # Each time, so that a run that is cut short leaves what it has measured.
                path = gpu_report.save(results, arguments.out)
                say(f"wrote {path}")
    print(gpu_report.markdown(results))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one batch, one image, fewer rounds")
    parser.add_argument("--network", action="append", type=_network, help="fcn32s:resnet18, ...")
    parser.add_argument("--crops", type=_shapes, help="1x512x512,4x512x512; empty for none")
    parser.add_argument("--images", type=_sides, help="sides, 2304,4544; empty for none")
    parser.add_argument("--rounds", type=int, help="bursts of each contender")
    parser.add_argument("--limit", type=float, default=300, help="seconds to load and build one")
    parser.add_argument("--work", type=Path, help="keep networks and engines here for a next run")
    parser.add_argument("--prepare-only", type=Path, metavar="DIR", help="make networks, no more")
    parser.add_argument("--prepared", type=Path, metavar="DIR", help="networks made by that")
    parser.add_argument("--date", default=date.today().isoformat(), help="what the results say")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try it out")
    parser.add_argument("-o", "--out", type=Path, help="where results go")
    arguments = parser.parse_args(argv)
    arguments.network = arguments.network or ["fcn32s:resnet18"]
    arguments.plan = plan = _plan(arguments)
    if arguments.out is None:
        if arguments.device == "cpu":
            parser.error("--device cpu needs -o: its results must not lie among those of GPUs")
        arguments.out = Path(__file__).parent / "results"
    if any((side - plan.overlap) % (plan.tile - plan.overlap) for side in plan.images):
        step = plan.tile - plan.overlap
        parser.error(f"sides are {plan.overlap} + {step}k: there, all place the same crops")
    return arguments


def _plan(arguments: argparse.Namespace) -> Plan:
    quick = arguments.quick and arguments.device == "cuda"
    usual = PLANS["quick" if quick else arguments.device]
    crops = usual.crops if arguments.crops is None else arguments.crops
    images = usual.images if arguments.images is None else arguments.images
    pace = usual.pace
    if arguments.rounds:
        pace = replace(pace, rounds=arguments.rounds)
    return Plan(crops, images, usual.tile, usual.overlap, pace)


def _network(text: str) -> str:
    if not re.fullmatch(r"fcn(32|16|8)s:resnet(18|34|50)", text):
        raise argparse.ArgumentTypeError("a network is a head and a backbone: fcn8s:resnet50")
    return text


def _shapes(text: str) -> tuple[tuple[int, ...], ...]:
    shapes = tuple(tuple(map(int, shape.split("x"))) for shape in text.split(",") if shape)
    if any(len(s) != 3 or min(s) < 1 or s[1] % 32 or s[2] % 32 for s in shapes):
        raise argparse.ArgumentTypeError("crops are such as 4x512x512, sides multiples of 32")
    return shapes


def _sides(text: str) -> tuple[int, ...]:
    return tuple(int(side) for side in text.split(",") if side)


def say(what: str) -> None:
    """Tell how far it is."""
    print(f"... {what}", flush=True)


def _files(network: str, work: Path, prepared: Path | None) -> Files:
    try:
        return files_of(network, work, prepared)
    except (ImportError, MissingExtraError) as error:
        sys.exit(
            f"{network} cannot be made here: {error}\n"
            "Make it elsewhere, with --prepare-only DIR, and pass --prepared DIR."
        )


def _tables(
    network: str, files: Files, work: Path, device: Device, arguments: argparse.Namespace
) -> Iterator[Table]:
    """One table for each job, as soon as it is measured."""
    plan, kind = arguments.plan, arguments.device
    size = {"tile": plan.tile, "overlap": plan.overlap}
    jobs = {
        "crops": [batch_job(files, shape, kind, work) for shape in plan.crops],
        "images": [image_job(files, side, kind, work, **size) for side in plan.images],
    }
    for what, contenders in (("crops", CROPS[kind]), ("images", IMAGES[kind])):
        trials = _trials(contenders, jobs[what], device, arguments.limit)
        for number, job in enumerate(jobs[what]):
            own = {name: of_jobs[number] for name, of_jobs in trials.items()}
            say(f"{network}, {job.name}: what is right")
            truths = _truths(contenders, job, own)
            say(f"{network}, {job.name}: {sum(not t.reason for t in own.values())} contenders")
            rows = measure(contenders, job, own, truths, device, plan.pace)
            give_back()
            baseline = BASELINES[kind][what]
            count, reference = job.pixel_count, truths.reference
            yield Table(network, what, job.name, count, baseline, reference, rows)


def _trials(
    contenders: Sequence[Contender], jobs: Sequence[Job], device: Device, limit_s: float
) -> dict[str, list[Trial]]:
    trials = {}
    for contender in contenders if jobs else ():
        say(f"trying {contender.name}")
        if device.is_gpu:
            trials[contender.name] = try_apart(contender, jobs, limit_s)
        else:  # nothing to crash, and no memory to measure
            trials[contender.name] = tried(try_out(contender, jobs), len(jobs))
        for reason in sorted({trial.reason for trial in trials[contender.name]} - {""}):
            say(f"  {reason}")
    return trials


def _truths(contenders: Sequence[Contender], job: Job, trials: dict[str, Trial]) -> Truths:
    whole = any(c.in_one_piece and not trials[c.name].reason for c in contenders)
    with open_reference(job.files, job.device) as reference:
        return Truths(
            truth_of(reference, job),
            truth_of(reference, job, in_one_piece=True) if whole else None,
            reference_name(reference),
        )


if __name__ == "__main__":
    main()
