"""One step of the optimizer: forward, loss, backward, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fcn_deploy.spec import IGNORE
from fcn_deploy.training.acceleration import PRECISIONS, Compiled
from fcn_deploy.training.config import TrainConfig
from fcn_deploy.training.distributed import total
from fcn_deploy.training.losses import Loss
from fcn_deploy.training.network import FCN, Deployed

Batch = tuple[Tensor, Tensor]
"""Image uint8 (N, H, W, 3) and labels uint8 (N, H, W)."""


class Updates:
    """The network in training with its optimizer.

    Attributes:
        network: What is trained.
        average: Moving average of its weights and statistics; ``None`` without one.
        optimizer: Its state is on the device.
        scaler: Of the loss, for fp16; switched off otherwise.
    """

    def __init__(
        self, model: Deployed, loss: Loss, config: TrainConfig, *, precision: str, compiled: bool
    ) -> None:
        self.network = model.network
        self._model = model
        self._loss = loss
        self._ranks = loss.ranks
        self._frozen_body = config.freeze_backbone
        self._device = next(model.parameters()).device
        # First of all, since it brings the weights of rank 0 to the others.
        self._shared = _shared(self.network, self._device) if self._ranks.world > 1 else None
        self._precision = precision
        self.optimizer = build_optimizer(self.network, config)
        self.scaler = torch.amp.GradScaler(self._device.type, enabled=precision == "fp16")
        self.average = _averaged(self.network, config.ema) if config.ema else None
        self._losses: Callable[..., Any] = Compiled(self._forward) if compiled else self._forward

    @property
    def deployed(self) -> FCN:
        """The network that is validated and saved as the result."""
        if self.average is None:
            return self.network
        assert isinstance(self.average.module, FCN)
        return self.average.module

    def train_mode(self) -> None:
        """Batch norm from the batch; a frozen body keeps its own statistics."""
        self.network.train()
        if self._frozen_body:
            self.network.body.eval()

    def step(self, batches: list[Batch], lr: float) -> Tensor:
        """Learn from some batches at once.

        Returns:
            float64 (3,) on the device, over all ranks: loss times counted pixels, right pixels,
            counted pixels.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        on_device = [
            tuple(part.to(self._device, non_blocking=True) for part in batch) for batch in batches
        ]
        weight = torch.stack([self._loss.weight_of(labels) for _, labels in on_device]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        facts = torch.zeros(3, dtype=torch.float64, device=self._device)
        world = self._ranks.world
        for number, (image, labels) in enumerate(on_device, 1):
            alone = self._shared is not None and number < len(batches)
            with self._shared.no_sync() if self._shared and alone else nullcontext():
                entropy, extra, right, counted = self._losses(image, labels, weight)
                extra = extra / len(batches)
                # Gradients are to be summed over ranks, of which DistributedDataParallel takes the
                # mean.
                self.scaler.scale((entropy + extra) * world).backward()
            loss = (entropy + extra / world).detach()
            facts += torch.stack([loss.double(), right.double(), counted.double()])
        facts = total(facts, self._ranks)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.network)
        facts[0] *= facts[2]
        return facts

    def _forward(
        self, image: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        format_ = PRECISIONS[self._precision]
        with torch.autocast(self._device.type, format_, enabled=self._precision != "fp32"):
            logits = (self._shared or self.network)(self._model.normalise(image))
        entropy, extra = self._loss(logits, labels, weight)
        valid = labels != IGNORE
        right = ((logits.detach().argmax(1) == labels) & valid).sum()
        return entropy, extra, right, valid.sum()


def _shared(network: FCN, device: torch.device) -> DistributedDataParallel:
    """The network, with gradients that are the means over ranks; it starts as that of rank 0."""
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def build_optimizer(network: FCN, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of all that is learned, in two groups: with weight decay, and without.

    Decay pulls towards zero, which is no sensible place for the scales of batch norm, nor for
    transposed convolutions, which start as bilinear.
    """
    upsampling = {
        id(parameter) for m in network.upsampling_layers() for parameter in m.parameters()
    }
    learned = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in learned if config.decay_all or (p.ndim > 1 and id(p) not in upsampling)]
    chosen = {id(parameter) for parameter in decayed}
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": [p for p in learned if id(p) not in chosen], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.first_lr, momentum=config.momentum, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, config.first_lr, fused=True)


def _averaged(network: FCN, decay: float) -> AveragedModel:
    """Exponential moving average, which trusts the first steps less than the decay says."""

    def average(averages: Any, current: Any, _: Tensor | int) -> None:
        steps = int(averaged.n_averaged)  # on the CPU, unlike the count that is passed
        share = 1 - min(decay, (1 + steps) / (10 + steps))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, share)
        else:  # counters of batch norm
            torch._foreach_copy_(averages, current)

    averaged = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    averaged.requires_grad_(False)
    return averaged


def match_layouts(optimizer: torch.optim.Optimizer) -> None:
    """Lay an optimizer's tensors out as their weights are: fused kernels walk raw memory."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                state[name] = torch.empty_like(weight).copy_(value)
