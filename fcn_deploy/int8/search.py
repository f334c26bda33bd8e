"""Which layers are quantised: all, or all but those that cost more than the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from fcn_deploy.backends.ort import OrtBackend
from fcn_deploy.errors import CheckFailedError
from fcn_deploy.int8.graph import Form, Ranges, body_layers, quantised
from fcn_deploy.onnx_file import OnnxModel
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import OUTPUTS, ModelSpec
from fcn_deploy.tiling_options import Tiling
from fcn_deploy.verify.limits import Limits
from fcn_deploy.verify.result import ImageFigures
from fcn_deploy.verify.whole_images import Count, Images, segment_by

Told = Callable[[str], None]
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Choice:
    """A quantised graph that keeps to the budget.

    Attributes:
        proto: The graph.
        kept: Names of layers that stayed in float32.
        figures: How its labels compare with those of the float32 graph.
    """

    proto: ModelProto
    kept: tuple[str, ...]
    figures: ImageFigures


class Judge:
    """Compares graphs with the float32 one on whole images, whose labels it computes once."""

    def __init__(self, proto: ModelProto, spec: ModelSpec, images: Images, tell: Told) -> None:
        self._spec, self._images, self._tell = spec, images, tell
        with _open(proto, spec, "fp32") as model:
            self._wanted = [self._labels(model, image) for _, image, _ in self._read("float32")]

    def figures(self, proto: ModelProto, what: str) -> ImageFigures:
        """Agreement, and IoU where there are masks."""
        count = Count(self._spec.classes)
        with _open(proto, self._spec, "int8") as model:
            images = zip(self._read(what), self._wanted, strict=True)
            for (name, image, truth), wanted in images:
                count.add(name, wanted, self._labels(model, image), truth)
        return count.figures(len(self._images))

    def _read(self, what: str) -> Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8] | None]]:
        found = []
        for entry in self._images.read():
            found.append(entry)
            self._tell(what)
        return found

    def _labels(self, model: Segmenter, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return segment_by(model, image, model.plan((image.shape[0], image.shape[1]), Tiling()))


def choose(
    proto: ModelProto,
    spec: ModelSpec,
    ranges: Ranges,
    form: Form,
    judge: Judge,
    limits: Limits,
    sample: NDArray[np.uint8],
) -> Choice:
    """Quantise as many layers as the budget allows.

    All of them first. If that costs too much, the layers that alone cause the largest errors are
    kept in float32: one, two, four and so on, until it holds.

    Args:
        proto: As exported, in float32.
        spec: Its description.
        ranges: Of its tensors.
        form: For which runtime.
        judge: Of the same graph.
        limits: The budget.
        sample: Crops (N, H, W, 3) uint8 that single layers are judged on.

    Raises:
        CheckFailedError: Not even one layer fits into the budget.
    """
    layers = body_layers(proto)
    order: list[str] = []
    count = 0
    while count < len(layers):
        kept = tuple(order[:count])
        candidate = quantised(proto, ranges, form, kept)
        figures = judge.figures(candidate, f"{len(layers) - count} of {len(layers)} layers in INT8")
        if within(figures, limits):
            return Choice(candidate, kept, figures)
        order = order or by_harm(proto, spec, ranges, form, sample)
        count = max(1, 2 * count)
    raise CheckFailedError(
        "INT8 costs more than the budget allows, whatever layers are kept in float32.",
        "Allow more: --max-miou-drop; or use FP16: fcn-deploy export --fp16",
    )


def within(figures: ImageFigures, limits: Limits) -> bool:
    """Whether a graph keeps to the budget; the drop of IoU counts only where there are masks."""
    if figures.mean_iou_change is not None and not -figures.mean_iou_change <= limits.max_miou_drop:
        return False
    return figures.agreement >= limits.min_agreement


def by_harm(
    proto: ModelProto, spec: ModelSpec, ranges: Ranges, form: Form, sample: NDArray[np.uint8]
) -> list[str]:
    """Layers by the error of the scores when they alone are quantised, the worst first."""
    layers = body_layers(proto)
    with _open(proto, spec, "fp32") as exact:
        wanted = exact.backend.scores(sample)
    harm = {}
    for layer in layers:
        others = [name for name in layers if name != layer]
        with _open(quantised(proto, ranges, form, others), spec, "int8") as model:
            harm[layer] = float(np.square(model.backend.scores(sample) - wanted).mean())
    return sorted(layers, key=lambda layer: -harm[layer])


def _open(proto: ModelProto, spec: ModelSpec, precision: str) -> Segmenter:
    model = OnnxModel(proto, spec, OUTPUTS, precision)
    return Segmenter(OrtBackend(model, Path(f"the {precision} graph"), CPU))
