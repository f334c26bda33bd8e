"""What is true of a model on every machine, as one JSON that travels inside its file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fcn_deploy.errors import ModelError

IGNORE = 255
"""The label of pixels that belong to no class, in every mask that we write."""

SPEC_KEY = "fcn_deploy.spec"
"""Where the JSON lies in ONNX ``metadata_props`` and in a safetensors header."""

PARITY_KEY = "fcn_deploy.parity"
"""Where the result of the comparison with eager PyTorch lies in ONNX ``metadata_props``."""

VERIFIED_KEY = "fcn_deploy.verified"
"""Where the result of ``fcn-deploy verify`` lies in ONNX ``metadata_props``."""

SOURCE_KEY = "fcn_deploy.source"
"""Where name and SHA-256 of the checkpoint lie that an ONNX file was exported from."""

INPUT = "image"
OUTPUTS = ("labels", "logits", "scores")
"""Names of the tensors, in every exported file and engine."""

TORCHVISION, CUSTOM = "torchvision", "custom"
"""``head`` of networks that are not ours: torchvision's, and any module that was exported."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Color = tuple[int, int, int]


def voc_palette(count: int) -> tuple[Color, ...]:
    """Colours of Pascal VOC: the bits of the class id, dealt to R, G and B from the top down.

    Args:
        count: Number of classes, at most 255.

    Source: the colour map of the VOC development kit (Everingham et al.), ``VOClabelcolormap``.
    """

    def color(label: int) -> Color:
        red = green = blue = 0
        for bit in range(8):
            red |= (label & 1) << (7 - bit)
            green |= ((label >> 1) & 1) << (7 - bit)
            blue |= ((label >> 2) & 1) << (7 - bit)
            label >>= 3
        return red, green, blue

    return tuple(color(label) for label in range(count))


@dataclass(frozen=True)
class ModelSpec:
    """Everything that must be known to use a model, and to build its network again.

    Attributes:
        classes: Class names; the position is the label.
        palette: One RGB colour per class, each channel in [0, 255].
        head: ``fcn32s``, ``fcn16s`` or ``fcn8s``; of networks that are not ours :data:`TORCHVISION`
            or :data:`CUSTOM`.
        backbone: ``resnet18``, ``resnet34`` or ``resnet50``; of others the name of the network.
        upsampling_bias: Whether the last transposed convolution has a bias.
        output_stride: Height and width of an input are multiples of it, in pixels.
        score_stride: Stride of the last transposed convolution, or of the bilinear resize in its
            place, in pixels; 1 where there is neither, so that crops are merged as logits.
        mean: Per-channel mean of RGB in [0, 1], subtracted inside the model.
        std: Per-channel standard deviation of RGB in [0, 1], divided by inside the model.
        training: Facts of the training (epochs, seed, accuracy); for people, never for logic.
    """

    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    head: str = "fcn32s"
    backbone: str = "resnet18"
    upsampling_bias: bool = True
    output_stride: int = 32
    score_stride: int = 32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = _contradiction(self)
        if problem:
            raise ModelError(f"The model's description contradicts itself: {problem}.")

    @property
    def num_classes(self) -> int:
        """Number of classes, C in every shape."""
        return len(self.classes)

    @classmethod
    def custom(
        cls,
        classes: Sequence[str],
        *,
        output_stride: int = 32,
        palette: Sequence[Color] | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> ModelSpec:
        """What ``fcn_deploy.export`` must be told of a network; it finds out the rest.

        Args:
            classes: As the attribute.
            output_stride: The same: the product of the strides of a network that has no branches,
                and of others what their branches fit together at.
            palette: The same; ``None`` for the colours of Pascal VOC.
            mean: The same.
            std: The same.

        Raises:
            ModelError: These contradict each other.
        """
        return cls(
            tuple(classes),
            voc_palette(len(classes)) if palette is None else tuple(palette),
            head=CUSTOM,
            backbone="",
            upsampling_bias=False,
            output_stride=output_stride,
            score_stride=1,
            mean=mean,
            std=std,
        )

    def to_json(self) -> str:
        """One line of JSON, keys in a fixed order."""
        return json.dumps({"format": 1, **asdict(self)}, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """Read what :meth:`to_json` wrote, refusing anything else.

        Raises:
            ModelError: Not JSON, written by a newer release, or a field is missing or wrong.
        """
        try:
            fields = json.loads(text)
            version = fields.pop("format")
            if version != 1:
                raise ModelError(
                    f"The model's description has format {version}, this release reads format 1.",
                    "Upgrade: pip install -U fcn-deploy",
                )
            if missing := {"head", "backbone", *_NUMBERS} - set(fields):
                raise KeyError(", ".join(sorted(missing)))
            fields["classes"] = tuple(str(name) for name in fields["classes"])
            fields["palette"] = tuple(_rgb(color) for color in fields["palette"])
            fields["mean"] = _three(fields["mean"])
            fields["std"] = _three(fields["std"])
            return cls(**fields)
        except (ArithmeticError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"The model's description cannot be read: {error}.") from error


def _rgb(color: list[int]) -> Color:
    red, green, blue = (int(channel) for channel in color)
    return red, green, blue


def _three(values: list[float]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third


_NUMBERS = {"upsampling_bias": bool, "output_stride": int, "score_stride": int}


def _contradiction(spec: ModelSpec) -> str:
    for name, kind in {"head": str, "backbone": str, **_NUMBERS}.items():
        if type(getattr(spec, name)) is not kind:
            return f"{name} is {getattr(spec, name)!r}"
    if not 1 <= spec.num_classes <= IGNORE:
        return f"{spec.num_classes} classes, where 1 to {IGNORE} fit a uint8 label"
    if len(set(spec.classes)) != spec.num_classes:
        return "two classes have the same name"
    if len(spec.palette) != spec.num_classes:
        return f"{len(spec.palette)} colours for {spec.num_classes} classes"
    if any(not 0 <= channel <= 255 for color in spec.palette for channel in color):
        return "a colour lies outside 0..255"
    if spec.score_stride < 1 or spec.output_stride < 1 or spec.output_stride % spec.score_stride:
        return f"score stride {spec.score_stride} does not divide {spec.output_stride}"
    if not all(math.isfinite(value) for value in (*spec.mean, *spec.std)):
        return "a mean or standard deviation is not finite"
    if min(spec.std) <= 0:
        return "a standard deviation is not positive"
    return ""
