"""What a rung may differ by, and what is wrong with one that differs by more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fcn_deploy.parity import TOLERANCES
from fcn_deploy.verify.result import CropFigures, ImageFigures

NOISE_FACTOR = 3.0
"""How many times the error of eager half precision that of an FP16 artifact may be.

In a trained FCN-8s, one layer scaled by 1.01 made at least 3.5 times the error of eager half
precision (three layers were tried), and weights alone in FP16 made 0.6 of it; by root mean square,
which, unlike the largest error, hardly depends on how many crops were compared.
"""


@dataclass(frozen=True)
class Limits:
    """What is allowed, whatever the precision.

    Attributes:
        min_agreement: Least share of pixels of real images with the reference's label, in [0, 1].
        max_miou_drop: Most that the mean IoU may fall by, in [0, 1].
    """

    min_agreement: float
    max_miou_drop: float


USUAL = {
    "fp32": Limits(0.999, 0.002),
    "fp16": Limits(0.999, 0.002),
    # Eight bits are chosen for speed, by people who can afford half a point.
    "int8": Limits(0.97, 0.005),
}


def limits_for(precision: str, min_agreement: float | None, max_miou_drop: float | None) -> Limits:
    """The usual limits of a precision, with those that somebody named."""
    usual = USUAL[precision]
    return Limits(
        usual.min_agreement if min_agreement is None else min_agreement,
        usual.max_miou_drop if max_miou_drop is None else max_miou_drop,
    )


def problems_of(
    precision: str,
    limits: Limits,
    crops: CropFigures,
    images: ImageFigures | None,
    noise: float | None,
) -> Iterator[str]:
    """One sentence for everything about a rung that is not allowed.

    Comparisons are written so that NaN fails.

    Args:
        precision: ``fp32``, ``fp16`` or ``int8``.
        limits: What is allowed.
        crops: What was found on crops.
        images: What was found on whole images, if there were any.
        noise: Root mean square error of eager half precision on the same crops, in logits.
    """
    if not crops.pixels:
        yield "Nothing was compared: no shape that it takes."
        return
    yield from _of_logits(precision, crops, noise)
    agreement, where = crops.agreement, "crops"
    if images is not None:
        agreement, where = images.agreement, "images"
    if not agreement >= limits.min_agreement:
        yield (
            f"Labels of {where} agree on {agreement:.4%} of the pixels; "
            f"{limits.min_agreement:.4%} is the least."
        )
    if images is None or images.mean_iou is None or images.mean_iou_change is None:
        return
    if not -images.mean_iou_change <= limits.max_miou_drop:
        yield (
            f"The mean IoU falls by {-images.mean_iou_change:.4f} to {images.mean_iou:.4f}; "
            f"{limits.max_miou_drop:.4f} is the most."
        )


def _of_logits(precision: str, crops: CropFigures, noise: float | None) -> Iterator[str]:
    allowed = TOLERANCES[precision]
    if crops.flips_outside_margin:
        yield (
            f"{crops.flips_outside_margin:,} pixels got another class although the two best were "
            f"more than {allowed.margin:.0e} of the range apart: no rounding does that."
        )
    if crops.max_error is None or crops.rms_error is None:
        return
    if not crops.max_error <= allowed.logits * crops.logit_range:
        yield (
            f"Logits are off by up to {crops.relative(crops.max_error):.1e} of their range; "
            f"{allowed.logits:.0e} is the most in {precision}."
        )
    if precision == "fp16" and noise is not None and not crops.rms_error <= NOISE_FACTOR * noise:
        yield (
            f"Its error is {crops.rms_error / noise:.1f} times that of PyTorch in half precision: "
            "more than rounding."
        )
