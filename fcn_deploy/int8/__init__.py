"""From an exported float32 graph to an INT8 one that keeps to a budget of accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx.checker
import onnx.helper
from numpy.typing import NDArray

from fcn_deploy.artifacts import write_atomically
from fcn_deploy.errors import DataError, ModelError, UsageError
from fcn_deploy.int8.graph import FORMS, body_layers
from fcn_deploy.int8.ranges import observe
from fcn_deploy.int8.search import Judge, choose
from fcn_deploy.onnx_file import read_onnx
from fcn_deploy.spec import PARITY_KEY, VERIFIED_KEY
from fcn_deploy.verify.limits import Limits
from fcn_deploy.verify.result import ImageFigures
from fcn_deploy.verify.whole_images import Images

_SAMPLES = 4  # crops that single layers are judged on


@dataclass(frozen=True)
class Int8Report:
    """What was written.

    Attributes:
        runtime: ``ort`` or ``tensorrt``.
        layers: Layers of the body.
        kept: Those of them that stayed in float32.
        calibrated: Images that ranges are from.
        figures: How labels compare with those of the float32 graph, on whole images.
    """

    runtime: str
    layers: int
    kept: tuple[str, ...]
    calibrated: int
    figures: ImageFigures

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "passed": True,
            "reference": "the float32 graph",
            "runtime": self.runtime,
            "int8_layers": self.layers - len(self.kept),
            "kept_in_float32": list(self.kept),
            "calibration_images": self.calibrated,
            "images": self.figures.count,
            "label_agreement": self.figures.agreement,
            "mean_iou": self.figures.mean_iou,
            "mean_iou_change": self.figures.mean_iou_change,
        }

    def summary(self) -> str:
        """One line for people."""
        figures = self.figures
        iou = ""
        if figures.mean_iou is not None and figures.mean_iou_change is not None:
            iou = f", mean IoU {figures.mean_iou:.4f} ({figures.mean_iou_change:+.4f})"
        kept = f", in float32: {', '.join(self.kept)}" if self.kept else ""
        return (
            f"int8 against float32, {figures.count} images: labels {figures.agreement:.2%} "
            f"equal{iou}; {self.layers - len(self.kept)} of {self.layers} layers of the body in "
            f"INT8{kept}"
        )


def quantise_file(
    source: Path,
    path: Path,
    calibration: Sequence[NDArray[np.uint8]],
    images: Images,
    *,
    runtime: str = "ort",
    limits: Limits,
    tell: Callable[[str], None] = lambda _what: None,
) -> Int8Report:
    """Write an exported float32 file as INT8, if that keeps to the budget.

    Args:
        source: Written by ``fcn-deploy export``, in float32, with scores.
        path: Where to write; nothing is left there if the budget is not kept to.
        calibration: Batches of crops (N, H, W, 3) uint8 that ranges are observed on.
        images: Whole images that the budget is judged on.
        runtime: ``ort`` (uint8 activations, as its CPU kernels want them) or ``tensorrt`` (int8
            around zero; experimental).
        limits: The budget.
        tell: Told what is going on, after each step.

    Raises:
        ModelError: Not such a file.
        UsageError: There is no such runtime.
        DataError: There are no images, or one cannot be read.
        CheckFailedError: The budget cannot be kept to.
        EnvironmentFault: The file cannot be written.
    """
    if runtime not in FORMS:
        raise UsageError(f"There is no form for {runtime!r}.", f"Forms: {', '.join(FORMS)}.")
    model = read_onnx(source)
    if model.precision != "fp32" or not {"labels", "scores"} <= set(model.outputs):
        raise ModelError(
            f"{source} is no float32 file with labels and scores.", "Make one: fcn-deploy export"
        )
    if not len(images):
        raise DataError("There are no images to judge INT8 on.", "Name some: --images FOLDER")
    layers = body_layers(model.proto)
    ranges = observe(model.proto, calibration, lambda: tell("calibrating"))
    judge = Judge(model.proto, model.spec, images, tell)
    sample = np.concatenate([batch[:1] for batch in _of_one_shape(calibration)][:_SAMPLES])
    choice = choose(model.proto, model.spec, ranges, FORMS[runtime], judge, limits, sample)
    report = Int8Report(runtime, len(layers), choice.kept, len(calibration), choice.figures)
    final = choice.proto
    kept = [p for p in final.metadata_props if p.key not in (PARITY_KEY, VERIFIED_KEY)]
    properties = {p.key: p.value for p in kept} | {PARITY_KEY: json.dumps(report.as_dict())}
    onnx.helper.set_model_props(final, properties)
    onnx.checker.check_model(final, full_check=True)
    write_atomically(path, final.SerializeToString())
    return report


def _of_one_shape(batches: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    return [batch for batch in batches if batch.shape[1:] == batches[0].shape[1:]]
