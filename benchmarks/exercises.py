"""The exercises of "Dive into Deep Learning", chapter 14.11, answered by training.

    python benchmarks/exercises.py [DATA] [--weights imagenet] [--epochs 30] [--seeds 2]

Every run differs from the first in one setting. Without DATA, the drawn scenes of samples/ are the
data. Each finished run is kept in --work, so that an interrupted series goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from machine import environment

from fcn_deploy.training.config import PRESETS, TrainConfig
from fcn_deploy.training.train import train

SAMPLES = Path(__file__).parents[1] / "samples"
BASE = "FCN-32s, all of it trained, bilinear, AdamW 0.001"


_CHAPTER = {
    name: value
    for name, value in PRESETS["chapter"].items()
    if name not in ("head", "epochs", "batch_size", "pad")
}
"""Of another optimizer, loss, and no augmentation; of the same length."""


@dataclass(frozen=True)
class Question:
    """One exercise: what is asked, and the answers that are tried; the base is one of them."""

    name: str
    base: str
    others: dict[str, dict[str, Any]]


QUESTIONS = (
    Question("Upsampling starts as", "bilinear", {"Xavier": {"upsampling_init": "xavier"}}),
    Question("Head", "FCN-32s", {"FCN-16s": {"head": "fcn16s"}, "FCN-8s": {"head": "fcn8s"}}),
    Question("Body", "trained", {"frozen": {"freeze_backbone": True}}),
    Question("Upsampling", "learned", {"frozen": {"freeze_upsampling": True}}),
    Question(
        "Learning rate of AdamW",
        "0.001",
        {"0.0001": {"lr": 1e-4}, "0.0003": {"lr": 3e-4}, "0.003": {"lr": 3e-3}},
    ),
    Question(
        "Settings",
        "these",
        {"the chapter's": _CHAPTER},
    ),
)

Curve = list[float]
"""Mean IoU after each validated epoch."""


def curves(data: Path, base: TrainConfig, seeds: int, work: Path) -> dict[str, list[Curve]]:
    """Curves of every run by name, one a seed."""
    runs: dict[str, dict[str, Any]] = {BASE: {}}
    for question in QUESTIONS:
        runs |= {f"{question.name}: {name}": change for name, change in question.others.items()}
    found: dict[str, list[Curve]] = {}
    for seed in range(seeds):
        for name, change in runs.items():
            folder = work / f"{name} {seed}".replace("/", "-")
            if not (folder / "train.json").exists():
                train(data, folder, replace(base, seed=seed, **change))
            history = json.loads((folder / "train.json").read_text())["history"]
            curve = [
                epoch["val_mean_iou"] for epoch in history if epoch["val_mean_iou"] is not None
            ]
            found.setdefault(name, []).append(curve)
            print(f"{name}, seed {seed}: {max(curve):.4f}", flush=True)
    return found


def table(found: dict[str, list[Curve]]) -> str:
    """Final mean IoU of each answer, its median over seeds and all of them."""
    lines = ["| | | mean IoU | of each seed |", "|---|---|---|---|"]
    for question in QUESTIONS:
        answers = {question.base: found[BASE]}
        answers |= {name: found[f"{question.name}: {name}"] for name in question.others}
        for number, (name, runs) in enumerate(answers.items()):
            last = [curve[-1] for curve in runs]
            asked = "" if number else question.name
            each = ", ".join(f"{value:.3f}" for value in last)
            lines.append(f"| {asked} | {name} | {statistics.median(last):.3f} | {each} |")
    return "\n".join(lines)


def draw(found: dict[str, list[Curve]], every: int, path: Path) -> None:
    """One panel a question: mean IoU by epoch, the median of the seeds."""
    figure, panels = plt.subplots(2, 3, figsize=(12, 7), sharey=True, layout="constrained")
    for panel, question in zip(panels.flat, QUESTIONS, strict=True):
        answers = {question.base: found[BASE]}
        answers |= {name: found[f"{question.name}: {name}"] for name in question.others}
        for name, runs in answers.items():
            median = [statistics.median(values) for values in zip(*runs, strict=True)]
            epochs = [every * (number + 1) for number in range(len(median))]
            panel.plot(epochs, median, marker="o", markersize=3, label=name)
        panel.set(title=question.name, xlabel="epoch")
        panel.grid(alpha=0.3)
        panel.legend(frameon=False)
    for panel in panels[:, 0]:
        panel.set_ylabel("validation mean IoU")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, print, and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=SAMPLES)
    parser.add_argument("--weights", default="none", help="start of the body, as in train")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--every", type=int, default=5, help="epochs between validations")
    parser.add_argument("--crop", default="160x224")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, help="where runs are kept")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    height, width = (int(side) for side in options.crop.split("x"))
    base = TrainConfig(
        head="fcn32s",
        weights=options.weights,
        epochs=options.epochs,
        val_every=options.every,
        crop_hw=(height, width),
        batch_size=4,
        workers=0,
    )
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        found = curves(options.data, base, options.seeds, work)
    facts = environment()
    start = "from scratch" if options.weights == "none" else f"from {Path(options.weights).name}"
    text = "\n".join(
        (
            "# The chapter's exercises\n",
            f"{facts['date']}, commit {facts['commit']}, torch {facts['packages']['torch']},",
            f"{facts['cpu']}, {facts['cores']} cores. Data: {options.data.name}; body {start};",
            f"{options.epochs} epochs of {options.crop} crops; seeds: {options.seeds}.",
            f"The first answer to each question is the base: {BASE}.\n",
            table(found),
            "\n![curves](exercises.png)",
        )
    )
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "exercises.md").write_text(text + "\n")
    draw(found, options.every, options.out / "exercises.png")


if __name__ == "__main__":
    main()
