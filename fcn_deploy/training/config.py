"""Settings of a training, and which of them can be."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fcn_deploy.errors import UsageError
from fcn_deploy.training.network import BACKBONES, SCORE_STRIDE

LEARNING_RATE = {"sgd": 0.02, "adam": 5e-4}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training.

    Attributes:
        head: ``fcn32s``, ``fcn16s`` or ``fcn8s``.
        backbone: ``resnet18``, ``resnet34`` or ``resnet50``.
        weights: Start of the body: ``imagenet``, ``none`` or a file.
        epochs: 0 writes the initialised network.
        batch_size: Crops per step.
        crop_hw: Height and width of a crop in pixels, multiples of 32.
        lr: Learning rate of the first step; ``None`` is 0.02 for SGD, 5e-4 for Adam.
        schedule: ``constant``, or ``poly``: falling to zero with power 0.9 by the last epoch, as
            DeepLab (Chen et al. 2017) does. A run with ``poly`` can be resumed exactly, but not
            made longer without becoming another one.
        optimizer: ``sgd`` (momentum 0.9) or ``adam``.
        weight_decay: L2 penalty on all weights.
        freeze_backbone: Leave the body as it starts, batch norm statistics included.
        freeze_upsampling: Leave the transposed convolutions as they start.
        upsampling_init: ``bilinear`` or ``xavier``.
        seed: Of initial weights, order, crops and flips.
        device: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``.
        workers: Processes that read and crop images; 0 reads in between.
        val_every: Validate and save after every so many epochs, and after the last.
    """

    head: str = "fcn32s"
    backbone: str = "resnet18"
    weights: str = "imagenet"
    epochs: int = 30
    batch_size: int = 8
    crop_hw: tuple[int, int] = (320, 480)
    lr: float | None = None
    schedule: str = "constant"
    optimizer: str = "sgd"
    weight_decay: float = 1e-4
    freeze_backbone: bool = False
    freeze_upsampling: bool = False
    upsampling_init: str = "bilinear"
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    val_every: int = 1

    @property
    def first_lr(self) -> float:
        """Learning rate of the first step."""
        return LEARNING_RATE[self.optimizer] if self.lr is None else self.lr

    def check(self) -> None:
        """Refuse settings that cannot be.

        Raises:
            UsageError: Names the setting and what it may be.
        """
        for kind, value, known in (
            ("head", self.head, tuple(SCORE_STRIDE)),
            ("backbone", self.backbone, BACKBONES),
            ("optimizer", self.optimizer, tuple(LEARNING_RATE)),
            ("schedule", self.schedule, ("constant", "poly")),
            ("upsampling-init", self.upsampling_init, ("bilinear", "xavier")),
        ):
            if value not in known:
                raise UsageError(f"There is no {kind} {value!r}.", f"Known: {', '.join(known)}.")
        if min(self.crop_hw) < 32 or any(size % 32 for size in self.crop_hw):
            raise UsageError(
                f"The crop {self.crop_hw[0]}x{self.crop_hw[1]} is not a multiple of 32 pixels.",
                "For example: --crop 320x480",
            )
        if min(self.epochs, self.workers) < 0 or min(self.batch_size, self.val_every) < 1:
            raise UsageError(
                "Epochs and workers are 0 or more, batch size and val-every 1 or more."
            )
        if not (0 < self.first_lr < math.inf and 0 <= self.weight_decay < math.inf):
            raise UsageError(f"No training with --lr {self.first_lr}, or that weight decay.")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed {self.seed} does not lie in 0..2^63-1.")
