"""What is measured, and how long."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.artifacts import TRAIN_RECORD
from fcn_deploy.benchmark.contenders import Contender
from fcn_deploy.benchmark.rounds import Pace
from fcn_deploy.dataset import open_dataset
from fcn_deploy.errors import FcnDeployError, UsageError
from fcn_deploy.image import image_hw

_USUAL_HW = (512, 512)
_LARGEST = 1024
"""Longest side of the shape that is taken if nobody names one, in pixels."""


@dataclass(frozen=True)
class Settings:
    """What a user may choose of a benchmark.

    Attributes:
        shapes: Heights and widths of crops, in pixels; none for that of the run's images.
        batches: Crops in one call.
        rounds: Turns that each row has at least.
        seconds: That all turns of a row take at least.
        compile: Whether ``torch.compile`` takes part, which takes about a minute for each shape.
        memory: Whether memory is measured, for which each row is loaded again.
        power: Whether power is measured, where the device tells it.
        provider: Of ONNX Runtime; eager PyTorch takes a GPU for all but ``cpu``.
        trust_engine: Load plans without a passport.
        data: Labelled images for mean IoU; ``None`` for none.
        split: Which part of them.
        images: How many images at most, of these and of ``end_to_end``; ``None`` for all.
        end_to_end: Folder of images to segment as whole files; ``None`` for none.
        seed: Of the crops' content.
    """

    shapes: tuple[tuple[int, int], ...] = ()
    batches: tuple[int, ...] = (1,)
    rounds: int = 20
    seconds: float = 3.0
    compile: bool = True
    memory: bool = True
    power: bool = True
    provider: str = "auto"
    trust_engine: bool = False
    data: Path | None = None
    split: str = "val"
    images: int | None = None
    end_to_end: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.batches or min(self.batches) < 1:
            raise UsageError("A batch is at least one crop.", "For example: --batches 1,4")
        if any(min(shape) < 1 for shape in self.shapes):
            raise UsageError("A shape is at least one pixel.", "For example: --shapes 320x480")
        if self.rounds < 1 or not 0 <= self.seconds < float("inf"):
            raise UsageError(
                "There is nothing to measure in no rounds.", "For example: --rounds 20 --seconds 3"
            )
        if self.images is not None and self.images < 1:
            raise UsageError("No images are nothing to measure on.", "For example: --images 50")

    def as_dict(
        self, shapes: Sequence[tuple[int, int, int]], reference: str | None
    ) -> dict[str, Any]:
        """The same, for JSON, with the shapes and the reference that it came to."""
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        sizes = dict.fromkeys((height, width) for _, height, width in shapes)
        return {
            **plain,
            "shapes": [list(size) for size in sizes],
            "batches": list(self.batches),
            "warmup": Pace.warmup,
            "reference": reference,
            "split": None if self.data is None else self.split,
        }


def shapes_for(contenders: Sequence[Contender], step: int) -> tuple[int, int]:
    """Height and width to measure on if nobody names one: those of the run's images, padded.

    Large images are cut into crops anyway: then, and where nothing is known of them, it is that of
    the training's crops.

    Args:
        contenders: All of them; the first one's run is asked.
        step: Heights and widths are multiples of it, in pixels.
    """
    try:
        record = json.loads(contenders[0].path.with_name(TRAIN_RECORD).read_text(encoding="utf-8"))
        height, width = (int(side) for side in record["config"]["crop_hw"])
    except (OSError, ValueError, KeyError, TypeError):
        return _up(_USUAL_HW, step)
    try:
        first = open_dataset(Path(str(record["data"]))).pairs("val")[0]
        whole = image_hw(first.image)
    except (FcnDeployError, KeyError, OSError):
        return _up((height, width), step)
    return _up(whole if max(whole) <= _LARGEST else (height, width), step)


def _up(size: tuple[int, int], step: int) -> tuple[int, int]:
    height, width = (-(-side // step) * step for side in size)
    return height, width
