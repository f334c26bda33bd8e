"""Settings of a training, and which of them can be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fcn_deploy.errors import UsageError
from fcn_deploy.training.network import BACKBONES, SCORE_STRIDE

LEARNING_RATE = {"sgd": 0.02, "adam": 5e-4, "adamw": 1e-3}
"""Of the first step, if none is given; the same without ImageNet weights as with them."""

CHOICES = {
    "head": tuple(SCORE_STRIDE),
    "backbone": BACKBONES,
    "optimizer": tuple(LEARNING_RATE),
    "schedule": ("constant", "poly", "cosine"),
    "loss": ("cross-entropy", "cross-entropy+dice", "cross-entropy-sum"),
    "class_weights": ("none", "log", "median"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "compile": ("auto", "on", "off"),
    "upsampling_init": ("bilinear", "xavier"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training; the defaults are those of the first CamVid training in benchmarks/.

    Attributes:
        head: ``fcn32s``, ``fcn16s`` or ``fcn8s``.
        backbone: ``resnet18``, ``resnet34`` or ``resnet50``.
        weights: Start of the body: ``imagenet``, ``none`` or a file.
        epochs: 0 writes the initialised network.
        batch_size: Crops computed at once, over all devices.
        accumulate: Batches whose gradients are added up for one step of the optimizer.
        crop_hw: Height and width of a crop in pixels, multiples of 32.
        scale: Least and greatest enlargement of images, drawn evenly in its logarithm. What a
            crop holds beyond the image is gray, and does not count.
        pad: Take images smaller than the crop, too; otherwise they are left out.
        stretch: Greatest ratio by which one side is enlarged more than the other.
        color: Greatest change of brightness, contrast and saturation, as a share of 1.
        flip: Mirror every other crop.
        lr: Greatest learning rate; ``None`` is 0.02 for SGD, 5e-4 for Adam, 1e-3 for AdamW.
        schedule: ``constant``; ``poly``, falling to zero with power 0.9 by the last epoch, as in
            DeepLab (Chen et al. 2017); or ``cosine``, falling along half a wave (Loshchilov and
            Hutter 2017). Only a ``constant`` run can be made longer without becoming another one.
        warmup_epochs: Epochs, or part of one, in which the learning rate rises from zero.
        optimizer: ``sgd``, ``adam`` or ``adamw``.
        momentum: Of SGD.
        weight_decay: On the weights of convolutions; of batch norm, biases and transposed
            convolutions with ``decay_all`` only.
        decay_all: Weight decay on everything that is learned.
        loss: ``cross-entropy``, the mean over counted pixels; ``cross-entropy+dice``, with the
            soft Dice loss over classes added (Milletari et al. 2016); ``cross-entropy-sum``,
            the mean over the pixels of an image, summed over the batch.
        class_weights: Of the cross-entropy: ``none``; ``log``, 1 / ln(1.02 + share of pixels)
            (ENet, Paszke et al. 2016); ``median``, median frequency balancing (Eigen and Fergus
            2015).
        ema: Decay per step of the moving average of the weights, which is what is validated,
            saved as the best, and exported; 0 is none.
        precision: Of the convolutions while training: ``fp32``, ``bf16``, ``fp16`` (with loss
            scaling), or ``auto``: bf16 where the device computes it, fp16 on other GPUs, fp32 on
            other CPUs.
        compile: Have the network compiled by ``torch.compile``: ``on``, ``off``, or ``auto``:
            where the training is long enough to pay for it.
        deterministic: Refuse operations without a repeatable result; slower on GPUs. On one CPU
            the same seed gives the same weights anyway.
        freeze_backbone: Leave the body as it starts, batch norm statistics included.
        freeze_upsampling: Leave the transposed convolutions as they start.
        upsampling_init: ``bilinear`` or ``xavier``.
        seed: Of initial weights, order and augmentation.
        device: ``cpu``, ``cuda``, ``cuda:1``, ..., or ``auto``.
        devices: Devices of this machine that share each batch, or processes that share the CPU.
            The result is the same but for rounding.
        workers: Processes that read and augment images for a device; 0 reads in between.
        cache_mib: Greatest size of the decoded images kept for the next epochs, in MiB.
        val_every: Validate and save after every so many epochs, and after the last.
    """

    head: str = "fcn8s"
    backbone: str = "resnet18"
    weights: str = "imagenet"
    epochs: int = 60
    batch_size: int = 8
    accumulate: int = 1
    crop_hw: tuple[int, int] = (320, 480)
    scale: tuple[float, float] = (0.5, 1.5)
    pad: bool = True
    stretch: float = 1.25
    color: float = 0.3
    flip: bool = True
    lr: float | None = None
    schedule: str = "poly"
    warmup_epochs: float = 1.0
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    decay_all: bool = False
    loss: str = "cross-entropy+dice"
    class_weights: str = "log"
    ema: float = 0.998
    precision: str = "auto"
    compile: str = "auto"
    deterministic: bool = False
    freeze_backbone: bool = False
    freeze_upsampling: bool = False
    upsampling_init: str = "bilinear"
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    workers: int = 2
    cache_mib: int = 2048
    val_every: int = 1

    @property
    def first_lr(self) -> float:
        """The greatest learning rate."""
        return LEARNING_RATE[self.optimizer] if self.lr is None else self.lr

    def check(self) -> None:
        """Refuse settings that cannot be.

        Raises:
            UsageError: Names the setting and what it may be.
        """
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                option = name.replace("_", "-")
                raise UsageError(f"There is no {option} {value!r}.", f"Known: {', '.join(known)}.")
        if min(self.crop_hw) < 32 or any(size % 32 for size in self.crop_hw):
            raise UsageError(
                f"The crop {self.crop_hw[0]}x{self.crop_hw[1]} is not a multiple of 32 pixels.",
                "For example: --crop 320x480",
            )
        if min(self.epochs, self.workers, self.cache_mib) < 0:
            raise UsageError("Epochs, workers and cache are 0 or more.")
        if min(self.batch_size, self.val_every, self.accumulate, self.devices) < 1:
            raise UsageError("Batch size, accumulate, devices and val-every are 1 or more.")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed {self.seed} does not lie in 0..2^63-1.")
        self._check_numbers()

    def _check_numbers(self) -> None:
        low, high = self.scale
        for option, value, least, most in (
            ("lr", self.first_lr, 1e-30, 1e30),
            ("weight-decay", self.weight_decay, 0, 1e6),
            ("momentum", self.momentum, 0, 1),
            ("ema", self.ema, 0, 1),
            ("warmup-epochs", self.warmup_epochs, 0, 1e9),
            ("scale", low, 0.05, 20),
            ("scale", high, low, 20),
            ("stretch", self.stretch, 1, 4),
            ("color", self.color, 0, 1),
        ):
            if not (math.isfinite(value) and least <= value <= most):
                raise UsageError(
                    f"No training with --{option} {value}.", f"It may be {least:g} to {most:g}."
                )
        if self.ema == 1 or self.momentum == 1:
            raise UsageError("Neither --ema nor --momentum can be 1: nothing would be learned.")


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "chapter": {
        "head": "fcn32s",
        "epochs": 5,
        "batch_size": 32,
        "scale": (1.0, 1.0),
        "pad": False,
        "stretch": 1.0,
        "color": 0.0,
        "flip": False,
        "lr": 0.001,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 1e-3,
        "decay_all": True,
        "loss": "cross-entropy-sum",
        "class_weights": "none",
        "ema": 0.0,
    },
}
"""Settings by name, over the defaults. ``chapter`` has those of "Dive into Deep Learning", chapter
14.11: SGD without momentum, 0.001, on a loss that is summed over the 32 images of a batch."""
