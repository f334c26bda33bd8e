"""Training speed, beside the plain loop of the chapter: examples a second, round by round.

    python benchmarks/training.py [--quick] [--device cuda] [-o benchmarks/results]

Both train FCN-32s on ResNet-18 with crops of 320x480. One change after another is made to our
loop, so that the table tells what each brings. *Waiting* is the share of the time in which the
network waited for the next batch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from chapter import Chapter
from machine import environment
from PIL import Image
from torch import Tensor

from fcn_deploy.backends.eager import pick_device
from fcn_deploy.dataset import check, open_dataset
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.distributed import ALONE
from fcn_deploy.training.session import Session

SAMPLES = Path(__file__).parents[1] / "samples"
CROP_HW = (320, 480)
PLAIN = TrainConfig(
    head="fcn32s",
    weights="none",
    loss="cross-entropy",
    class_weights="none",
    precision="fp32",
    compile="off",
    ema=0.0,
)
"""Our loop, channels last, with all of the augmentation and nothing else."""


class Ours:
    """Our loop with some settings."""

    def __init__(self, data: Path, config: TrainConfig, device: torch.device) -> None:
        dataset = open_dataset(data)
        pairs = check(dataset, ["train"])["train"]
        self._session = Session(dataset, pairs, [], config, device, ALONE)
        self._updates = self._session.start()
        self._updates.train_mode()
        self.precision = self._session.precision

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches, epoch after epoch."""
        while True:
            yield from self._session.batches()
            self._session.shuffle.epoch += 1

    def step(self, image: Tensor, labels: Tensor) -> None:
        """Learn from a batch."""
        self._updates.step([(image, labels)], 0.001)


@dataclass
class Entry:
    """One loop and what was measured of it."""

    name: str
    loop: Chapter | Ours
    examples_per_s: list[float] = field(default_factory=list)
    waiting: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._batches = self.loop.batches()

    def turn(self, steps: int, device: torch.device) -> None:
        """Take some steps, and keep their speed."""
        waited = 0.0
        examples = 0
        synchronise(device)
        started = time.perf_counter()
        for _ in range(steps):
            before = time.perf_counter()
            image, labels = next(self._batches)
            waited += time.perf_counter() - before
            self.loop.step(image, labels)
            examples += len(image)
        synchronise(device)
        spent = time.perf_counter() - started
        self.examples_per_s.append(examples / spent)
        self.waiting.append(waited / spent)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU to be done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def enlarged_samples(folder: Path, count: int) -> None:
    """The sample scenes at the size of Pascal VOC images, 500x375."""
    for number, path in enumerate(sorted((SAMPLES / "train" / "images").iterdir()) * 8):
        if number == count:
            return
        mask = SAMPLES / "train" / "masks" / f"{path.stem}.png"
        for kind, source, suffix in (("images", path, "jpg"), ("masks", mask, "png")):
            target = folder / "train" / kind / f"{number}.{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            how = Image.Resampling.BICUBIC if kind == "images" else Image.Resampling.NEAREST
            Image.open(source).resize((500, 375), how).save(target)
    raise SystemExit("There are too few samples.")


def entries(data: Path, batch: int, device: torch.device) -> list[Entry]:
    """The chapter's loop, and ours with one change after another."""
    classes = len(open_dataset(data).classes)
    plain = replace(PLAIN, batch_size=batch, crop_hw=CROP_HW)
    found = [Entry("the chapter's loop", Chapter(data, CROP_HW, batch, classes, device))]
    steps = {
        "ours: channels last, augmentation": plain,
        "with --precision auto": (auto := replace(plain, precision="auto")),
        "with torch.compile": (compiled := replace(auto, compile="on")),
        "with all defaults, FCN-32s": replace(
            compiled, loss=TrainConfig.loss, class_weights="log", ema=TrainConfig.ema
        ),
    }
    for name, config in steps.items():
        loop = Ours(data, config, device)
        suffix = f" ({loop.precision})" if config is auto else ""
        found.append(Entry(name + suffix, loop))
    return found


def table(found: list[Entry]) -> str:
    """Medians, and ratios of medians to the first entry."""
    first = statistics.median(found[0].examples_per_s)
    lines = ["| | examples/s | of the chapter's | waiting for images |", "|---|---|---|---|"]
    for entry in found:
        speed = statistics.median(entry.examples_per_s)
        waiting = statistics.median(entry.waiting)
        lines.append(f"| {entry.name} | {speed:.2f} | {speed / first:.2f}x | {waiting:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of two steps")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=0, help="default: 8, on a GPU 32")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = pick_device(options.device)
    batch = options.batch or (32 if device.type == "cuda" else 8)
    rounds, steps = (2, 2) if options.quick else (5, 20 if device.type == "cuda" else 4)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        (data / "classes.toml").write_text((SAMPLES / "classes.toml").read_text())
        enlarged_samples(data, 8 * batch if batch < 16 else 4 * batch)
        found = entries(data, batch, device)
        for entry in found:
            entry.turn(2, device)  # compiles, starts workers, decodes
            entry.examples_per_s.clear()
            entry.waiting.clear()
        for number in range(rounds):
            for entry in found[number % len(found) :] + found[: number % len(found)]:
                entry.turn(steps, device)
    facts = environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else facts["cpu"]
    facts = environment()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else facts["cpu"]
    lines = (
        "# Training speed\n",
        f"{facts['date']}, commit {facts['commit']}, {name}, {facts['cores']} cores",
        f"({', '.join(facts['flags'])}), torch {facts['packages']['torch']},",
        f"OMP_WAIT_POLICY {facts['omp_wait_policy']}. FCN-32s on ResNet-18, crops of",
        f"{CROP_HW[0]}x{CROP_HW[1]}, batches of {batch},",
        f"median of {rounds} rounds of {steps} steps.",
        f"\n{table(found)}\n",
    )
    text = "\n".join(lines)
    print(text)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"training-{device.type}.md").write_text(text)


if __name__ == "__main__":
    main()
