"""What a verification found, for people and for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class MarginBin:
    """Pixels by how close the race of the reference's two best classes was.

    Attributes:
        start: Least margin, as a share of the range of the logits.
        stop: Margins are below it; ``None`` for the last bin.
        pixels: How many there were.
        agreement: Share of them with the same label; ``None`` where there were none.
    """

    start: float
    stop: float | None
    pixels: int
    agreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "from": self.start,
            "to": self.stop,
            "pixels": self.pixels,
            "agreement": self.agreement,
        }


@dataclass(frozen=True)
class ShapeFigures:
    """One batch of crops.

    Attributes:
        batch: Crops at once.
        height: Of a crop, in pixels.
        width: The same.
        source: ``real`` or ``random``.
        max_error: Largest difference of a logit; ``None`` where there are labels alone.
        agreement: Share of pixels with the same label.
    """

    batch: int
    height: int
    width: int
    source: str
    max_error: float | None
    agreement: float


@dataclass(frozen=True)
class CropFigures:
    """Logits and labels on crops.

    Attributes:
        count: Crops.
        pixels: Their pixels.
        logit_range: Largest minus smallest logit of the reference.
        max_error: Largest difference of a logit, in logits; this and the next two are ``None``
            where the rung returns labels alone.
        p999_error: What 99.9 % of the differences lie below, to 1 %.
        rms_error: Root mean square of the differences.
        agreement: Share of pixels with the same label, in [0, 1].
        flips_outside_margin: Pixels with another label although the reference was certain.
        by_margin: Agreement by how certain the reference was.
        by_shape: Batch by batch.
    """

    count: int
    pixels: int
    logit_range: float
    max_error: float | None
    p999_error: float | None
    rms_error: float | None
    agreement: float
    flips_outside_margin: int
    by_margin: tuple[MarginBin, ...] = ()
    by_shape: tuple[ShapeFigures, ...] = ()

    def relative(self, error: float) -> float:
        """An error as a share of the range of the logits."""
        return error / self.logit_range if self.logit_range else float("inf") if error else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {**asdict(self), "by_margin": [part.as_dict() for part in self.by_margin]}


@dataclass(frozen=True)
class ImageFigures:
    """Whole images, through tiling and merging as ``segment`` does it.

    Attributes:
        count: Images.
        pixels: Their pixels.
        agreement: Share of pixels with the reference's label, in [0, 1].
        worst: Name of the image that agrees least.
        worst_agreement: Share of its pixels.
        mean_iou: Of the rung, where there are masks, in [0, 1].
        mean_iou_change: What it is more than the reference's.
        pixel_accuracy: Of the rung, where there are masks.
        class_iou_change: The change of each class; ``None`` for one that is not there.
    """

    count: int
    pixels: int
    agreement: float
    worst: str
    worst_agreement: float
    mean_iou: float | None = None
    mean_iou_change: float | None = None
    pixel_accuracy: float | None = None
    class_iou_change: dict[str, float | None] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        fields = asdict(self)
        worst = {"name": fields.pop("worst"), "agreement": fields.pop("worst_agreement")}
        return {**fields, "worst": worst}


@dataclass(frozen=True)
class WorstPixel:
    """Where a label flipped although the reference was surest of it.

    Attributes:
        name: Of the image.
        row: From the top, in pixels.
        column: From the left, in pixels.
        reference: Class name.
        candidate: Class name.
        margin: By which the reference's class led, as a share of the range of its logits there.
    """

    name: str
    row: int
    column: int
    reference: str
    candidate: str
    margin: float


@dataclass(frozen=True)
class Layer:
    """A place in the network, in the order of execution.

    Attributes:
        name: Of the module, such as ``body.4.0.conv1``.
        local_error: How far its output is from what the reference's layer makes of the same
            input, relative to that, by root mean square.
        error: How far its output is from the reference's, with all that went before.
    """

    name: str
    local_error: float
    error: float

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON, which has no NaN."""
        return {
            name: value if isinstance(value, str) or isfinite(value) else None
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Picture:
    """A PNG with a line about it."""

    caption: str
    png: bytes

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        import base64

        return {"caption": self.caption, "image": base64.b64encode(self.png).decode()}


@dataclass(frozen=True)
class Rung:
    """One artifact, or eager half precision, against the reference.

    Attributes:
        name: For people.
        file: Its name; ``None`` for eager half precision.
        sha256: Of its bytes.
        backend: ``eager``, ``ort`` or ``trt``.
        provider: Where it computed.
        precision: ``fp32``, ``fp16`` or ``int8``.
        passed: Whether it may be shipped; ``None`` where it could not run here.
        problems: A sentence for everything that failed.
        notes: Remarks that fail nothing.
        diagnosis: What it looks like, where something failed and a cause was found.
        weights: How many weights were compared with the checkpoint's, and which differ.
        crops: What was found on crops.
        images: What was found on whole images.
        worst_pixel: The most certain flip in the worst image.
        layers: Where errors begin, if that was asked for.
        pictures: Of the worst image.
    """

    name: str
    file: str | None
    sha256: str | None
    backend: str
    provider: str | None
    precision: str | None
    passed: bool | None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    diagnosis: str | None = None
    weights: dict[str, Any] | None = None
    crops: CropFigures | None = None
    images: ImageFigures | None = None
    worst_pixel: WorstPixel | None = None
    layers: tuple[Layer, ...] = ()
    pictures: tuple[Picture, ...] = ()

    def as_dict(self, *, pictures: bool = True) -> dict[str, Any]:
        """The same, for JSON; with pictures as base64, or without them."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("crops", "images"):
            fields[name] = fields[name] and fields[name].as_dict()
        fields["worst_pixel"] = self.worst_pixel and asdict(self.worst_pixel)
        fields["layers"] = [layer.as_dict() for layer in self.layers]
        fields["pictures"] = [picture.as_dict() for picture in self.pictures if pictures]
        return fields


@dataclass(frozen=True)
class Verification:
    """A ladder.

    Attributes:
        reference: File, SHA-256, name and provider of what was believed.
        data: Which images, how many, and whether they are labelled.
        limits: What was allowed, where somebody said so; else the usual ones of each precision.
        rungs: From the bottom up.
        about: Date, machine and versions.
    """

    reference: dict[str, Any]
    data: dict[str, Any]
    limits: dict[str, Any]
    rungs: tuple[Rung, ...]
    about: dict[str, Any]

    @property
    def passed(self) -> bool:
        """Whether everything that could run here may be shipped, and something did run."""
        ran = [rung.passed for rung in self.rungs if rung.passed is not None]
        return bool(ran) and all(ran)

    def as_dict(self, *, pictures: bool = True) -> dict[str, Any]:
        """The same, for JSON."""
        return {
            "format": 1,
            "passed": self.passed,
            **self.about,
            "reference": self.reference,
            "data": self.data,
            "limits": self.limits,
            "rungs": [rung.as_dict(pictures=pictures) for rung in self.rungs],
        }
