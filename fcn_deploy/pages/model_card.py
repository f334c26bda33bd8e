"""What a model is and what is known of its limits: facts alone, nothing that nobody measured."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

from fcn_deploy.artifacts import LAST, SUFFIX_BACKEND, sha256
from fcn_deploy.pages.page import figure, percent
from fcn_deploy.pages.scenes import Judged

PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx")
WEAK = 0.5
"""IoU below which a class is named among the limits: less than half of what it should cover."""

_SETTINGS = (
    ("weights", "start"),
    ("epochs", "epochs"),
    ("batch_size", "batch size"),
    ("crop_hw", "crop (height x width)"),
    ("optimizer", "optimizer"),
    ("lr", "learning rate"),
    ("schedule", "schedule"),
    ("loss", "loss"),
    ("class_weights", "class weights"),
    ("ema", "moving average"),
    ("precision", "precision of training"),
    ("seed", "seed"),
)


@dataclass(frozen=True)
class File:
    """A file that the model comes in."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ModelCard:
    """What there is to know of a model, by rows of name and value.

    Attributes:
        classes: Name and colour of each.
        model: What it is, and what it takes.
        training: How it came to be; empty where nobody wrote it down.
        files: What it comes in.
        versions: Of the packages on the machine that made the page.
        limits: One sentence each.
    """

    classes: tuple[tuple[str, tuple[int, int, int]], ...]
    model: tuple[tuple[str, str], ...]
    training: tuple[tuple[str, str], ...]
    files: tuple[File, ...]
    versions: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]


def model_card(run: Path, facts: dict[str, Any], judged: Judged | None) -> ModelCard:
    """Put together what is known.

    Args:
        run: The run folder.
        facts: Of the model file, by :func:`~fcn_deploy.describe.describe`.
        judged: How it did on labelled images, if that was found out.
    """
    return ModelCard(
        tuple(zip(facts["classes"], map(tuple, facts["palette"]), strict=True)),
        _model(facts),
        _training(facts["training"]),
        files_of(run),
        _versions(),
        _limits(facts, judged),
    )


def _model(facts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    stride = facts["output_stride"]
    # Of a checkpoint, too: this is what its export will take.
    tensors = facts.get("tensors", {})
    image = tensors.get("image", f"uint8 [batch, {stride}*rows, {stride}*columns, 3]")
    precision = facts.get("precision") or "fp32"
    if isinstance(precision, dict):  # of an engine, with all that proves it
        precision = precision["computes"]
    rows = [
        ("network", facts["network"].strip(", ")),
        ("file shown", f"{Path(facts['file']).name} ({facts['kind']})"),
        ("precision", str(precision)),
        ("input", f"image: {image}, RGB; normalisation is inside the model"),
        ("sizes", f"heights and widths in multiples of {stride}; segment takes images of any size"),
    ]
    if "parameters" in facts:
        rows.append(("parameters", f"{facts['parameters']:,}"))
    outputs = [f"{name}: {shape}" for name, shape in tensors.items() if name != "image"]
    if outputs:
        rows.append(("outputs", "; ".join(outputs)))
    return tuple(rows)


def _training(facts: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    rows = []
    for key, name in _SETTINGS:
        value = facts.get(key)
        if isinstance(value, (list, tuple)):
            value = "x".join(map(str, value))
        if value is not None:
            rows.append((name, "from scratch" if (key, value) == ("weights", "none") else value))
    return tuple((name, str(value)) for name, value in rows)


def files_of(run: Path) -> tuple[File, ...]:
    """Models in a run folder, without what only ``--resume`` needs."""
    found = sorted(path for path in run.iterdir() if path.suffix in SUFFIX_BACKEND)
    return tuple(
        File(path.name, path.stat().st_size, sha256(path))
        for path in found
        if path.name != LAST and not path.name.startswith(".")
    )


def _versions() -> tuple[tuple[str, str], ...]:
    known = [("Python", python_version())]
    for name in PACKAGES:
        try:
            known.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(known)


def _limits(facts: dict[str, Any], judged: Judged | None) -> tuple[str, ...]:
    said = [
        f"It knows {len(facts['classes'])} classes and gives every pixel one of them, "
        "also where it shows none of them."
    ]
    if judged is None:
        return (*said, "Its accuracy was not measured for this page.")
    found, images = judged.evaluation.scores, judged.evaluation.images
    sizes = ", ".join(f"{height}x{width}" for height, width in judged.sizes[:3])
    more = f" and {len(judged.sizes) - 3} more sizes" if len(judged.sizes) > 3 else ""
    said.append(
        f"Its figures are those of {images} images of {judged.data}, split {judged.split}, "
        f"{sizes}{more} (height x width); other images were not judged."
    )
    weak = [
        (iou, name)
        for name, iou in zip(judged.evaluation.classes, found.class_iou, strict=True)
        if iou is not None and iou < WEAK
    ]
    if weak:
        listed = ", ".join(f"{name} ({figure(iou)})" for iou, name in sorted(weak))
        said.append(f"IoU below {WEAK}: {listed}.")
    absent = [
        name
        for name, iou in zip(judged.evaluation.classes, found.class_iou, strict=True)
        if iou is None
    ]
    if absent:
        said.append(f"Nothing is known of {', '.join(absent)}: not in these images.")
    if judged.ignored:
        share = percent(judged.ignored / (judged.ignored + found.pixels))
        said.append(f"{share} of the pixels carry no label and were not judged.")
    return tuple(said)
