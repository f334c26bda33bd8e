"""What a training came to: its curve, its settings, and its IoU by class, as a page to keep.

    fcn-deploy train camvid -o runs/camvid --weights none --crop 256x352
    python benchmarks/learning.py runs/camvid [-o benchmarks/results]

The checkpoint, its ONNX file and its FP16 ONNX file are evaluated on the validation images at full
size, by the same tiler as in deployment.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from machine import environment

import fcn_deploy
from fcn_deploy.dataset import open_dataset
from fcn_deploy.evaluate import Evaluation, evaluate
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.to_onnx import export_onnx


def evaluations(run: Path, data: Path, folder: Path) -> dict[str, Evaluation]:
    """The checkpoint and what is exported from it, on all validation images."""
    dataset = open_dataset(data)
    checkpoint = run / "best.safetensors"
    files = {"checkpoint, eager PyTorch": checkpoint}
    for name, fp16 in (("model.onnx", False), ("model.fp16.onnx", True)):
        export_onnx(checkpoint, folder / name, crops=None, fp16=fp16)
        files[f"{name}, ONNX Runtime"] = folder / name
    found = {}
    for name, path in files.items():
        with fcn_deploy.load(path, provider="cpu") as model:
            found[name] = evaluate(model, dataset, dataset.pairs("val"), boundary_tolerance=0.0075)
        print(f"{name}: mean IoU {found[name].scores.mean_iou:.4f}", flush=True)
    return found


def draw(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Loss of each epoch, and accuracy and mean IoU of the validated ones."""
    validated = [epoch for epoch in history if epoch["val_mean_iou"] is not None]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot([epoch["epoch"] for epoch in history], [epoch["loss"] for epoch in history])
    left.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    epochs = [epoch["epoch"] for epoch in validated]
    right.plot(epochs, [epoch["val_accuracy"] for epoch in validated], label="pixel accuracy")
    right.plot(epochs, [epoch["val_mean_iou"] for epoch in validated], label="mean IoU")
    right.set(xlabel="epoch", ylabel="on the validation images", ylim=(0, 1))
    right.legend(frameon=False, loc="lower right")
    for panel in (left, right):
        panel.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def page(record: dict[str, Any], found: dict[str, Evaluation], picture: str) -> str:
    """Markdown: settings, curve, figures of the artifacts, IoU by class."""
    history, facts = record["history"], environment()
    data = open_dataset(Path(record["data"]))
    config = TrainConfig()
    batch = record["config"]["batch_size"] * record["config"]["accumulate"]
    examples = len(data.pairs("train")) // batch * batch
    hours = sum(examples / epoch["examples_per_s"] for epoch in history) / 3600
    defaults = json.loads(json.dumps(asdict(config)))
    changed = {k: v for k, v in record["config"].items() if defaults.get(k) != v}
    lines = [
        f"# {data.root.name}: {record['config']['head']} on {record['config']['backbone']}\n",
        f"{facts['date']}, {facts['cpu']}, {facts['cores']} cores, torch",
        f"{facts['packages']['torch']}, {record.get('precision', 'fp32')}.",
        f"{len(history)} epochs in {hours:.1f} hours, validation not counted;",
        f"seed {record['config']['seed']}. Settings other than the defaults of `train`:",
        ", ".join(f"`{name}` {value}" for name, value in changed.items()) + ".\n",
        f"![learning curve]({picture})\n",
        "| | mean IoU | frequency-weighted IoU | mean accuracy | pixel accuracy | boundary F |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in found.items():
        scores = result.scores
        figures = (
            scores.mean_iou,
            scores.frequency_weighted_iou,
            scores.mean_accuracy,
            scores.pixel_accuracy,
            None if result.boundary is None else result.boundary.mean_f,
        )
        lines.append(f"| {name} | " + " | ".join(_figure(value) for value in figures) + " |")
    first = next(iter(found.values()))
    lines += ["\n| class | IoU |", "|---|---|"]
    for name, iou in zip(first.classes, first.scores.class_iou, strict=True):
        lines.append(f"| {name} | {_figure(iou)} |")
    lines += [
        "\n| epoch | loss | pixel accuracy | mean IoU | examples/s |",
        "|---|---|---|---|---|",
    ]
    for epoch in history:
        if epoch["val_mean_iou"] is not None:
            lines.append(
                f"| {epoch['epoch']} | {epoch['loss']:.3f} | {epoch['val_accuracy']:.4f} | "
                f"{epoch['val_mean_iou']:.4f} | {epoch['examples_per_s']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> None:
    """Evaluate, and write the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    record = json.loads((options.run / "train.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        found = evaluations(options.run, Path(record["data"]), Path(folder))
    name = Path(record["data"]).name
    options.out.mkdir(parents=True, exist_ok=True)
    draw(record["history"], f"{name}, validation at full size", options.out / f"{name}.png")
    text = page(record, found, f"{name}.png")
    (options.out / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
