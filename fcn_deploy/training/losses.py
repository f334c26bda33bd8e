"""What a training minimises, and how much each class weighs in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fcn_deploy.spec import IGNORE
from fcn_deploy.training.distributed import ALONE, Ranks, total


def class_weights(kind: str, masks: Iterable[NDArray[np.uint8]], count: int) -> Tensor | None:
    """Weight of each class in the cross-entropy, from how often it occurs.

    Args:
        kind: ``none``; ``log``: 1 / ln(1.02 + p), p being the share of the class in all counted
            pixels (ENet, Paszke et al. 2016); ``median``: median of all f, divided by f, which is
            the share in the images where the class occurs (Eigen and Fergus 2015).
        masks: Labels uint8 (H, W) of the training images; not read for ``none``.
        count: Number of classes, C.

    Returns:
        float32 (C,), of mean 1 over the counted pixels; or ``None``. A class that never occurs
        weighs as much as the rarest that does.
    """
    if kind == "none":
        return None
    pixels = np.zeros(count)
    beside = np.zeros(count)
    for mask in masks:
        counts = np.bincount(mask.ravel(), minlength=IGNORE + 1)[:count]
        pixels += counts
        beside += np.where(counts > 0, counts.sum(), 0)
    occurs = pixels > 0
    if not occurs.any():
        return None
    weights = np.zeros(count)
    if kind == "log":
        weights[occurs] = 1 / np.log(1.02 + pixels[occurs] / pixels.sum())
    else:
        share = pixels[occurs] / beside[occurs]
        weights[occurs] = np.median(share) / share
    weights[~occurs] = weights.max()
    return torch.from_numpy(weights * pixels.sum() / (weights * pixels).sum()).float()


@dataclass(frozen=True)
class Loss:
    """The loss of a batch, in parts that add up over batches and devices.

    Attributes:
        kind: As in TrainConfig.
        weights: float32 (C,) on the device, or ``None``.
        ranks: Among which each batch is divided.
    """

    kind: str
    weights: Tensor | None = None
    ranks: Ranks = ALONE

    def weight_of(self, labels: Tensor) -> Tensor:
        """What the cross-entropy of these labels, and of other ranks', is divided by.

        The sum of the weights of the counted pixels; for ``cross-entropy-sum``, the pixels of one
        image. float32 scalar, the same on all ranks.
        """
        if self.kind == "cross-entropy-sum":
            return torch.tensor(float(labels[0].numel()), device=labels.device)
        counted = labels[labels != IGNORE]
        if self.weights is None:
            return total(torch.tensor(float(counted.numel()), device=labels.device), self.ranks)
        return total(self.weights[counted.long()].sum(), self.ranks)

    def __call__(self, logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of one batch.

        Args:
            logits: Float (N, C, H, W).
            labels: uint8 (N, H, W); 255 does not count.
            weight: :meth:`weight_of` the labels of all batches of the step.

        Returns:
            The share of this batch, on this rank, in the step's cross-entropy, and a further term
            that is a mean over batches, and the same on all ranks; both float32 scalars. The
            gradients of both are to be summed over ranks.
        """
        # float() of a channels-last half precision tensor would stay channels-last: slow below.
        planes = logits.float().contiguous()
        entropy, dice = _CrossEntropyAndDice.apply(planes, labels, self.weights, self.ranks.world)
        # The mean over no pixels is NaN: a crop of nothing but ignored pixels teaches nothing.
        entropy = entropy / weight.clamp(min=1e-6)
        return entropy, dice if self.kind == "cross-entropy+dice" else torch.zeros_like(dice)


class _CrossEntropyAndDice(torch.autograd.Function):
    """Summed cross-entropy and mean soft Dice loss, from one softmax.

    PyTorch's own operations, one after the other, take most of a second for a batch on two CPU
    cores: a quarter of the whole step. The gradients are written out here, which saves two thirds
    of it, and as much memory on GPUs.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor | None, world: int
    ) -> tuple[Tensor, Tensor]:
        valid = labels != IGNORE
        target = torch.where(valid, labels, 0).long()[:, None]
        costs = valid.float() if weights is None else weights[target[:, 0]] * valid
        # Logarithms first: that of a chance that has been rounded to 0 would not be finite.
        logarithms = logits.log_softmax(1)
        surprise = -logarithms.gather(1, target)[:, 0]
        chance = logarithms.exp_().mul_(valid[:, None])
        of_truth = chance.gather(1, target)[:, 0]
        squares = torch.linalg.vector_norm(chance, dim=(0, 2, 3)).square()
        classes = target.flatten()
        both, truth = torch.zeros_like(squares), torch.zeros_like(squares)
        both.index_add_(0, classes, of_truth.flatten())
        truth.index_add_(0, classes, valid.flatten().float())
        if world > 1:  # Dice is a ratio of sums over the whole batch
            sums = torch.stack([squares, both, truth])
            dist.all_reduce(sums)
            squares, both, truth = sums.unbind()
        sizes = (squares + truth).clamp(min=1e-6)
        occurs = (truth > 0).float()
        share = occurs / occurs.sum().clamp(min=1)
        dice = (share * (1 - 2 * both / sizes)).sum()
        ctx.save_for_backward(chance, of_truth, target, costs, both, sizes, share)
        return (surprise * costs).sum(), dice

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        chance, of_truth, target, costs, both, sizes, share = ctx.saved_tensors
        of_entropy, of_dice = grads
        # Of Dice by a chance p of class c: hit[c] where c is the truth, plus slope[c] * p. Through
        # the softmax, gradients g become p * (g - sum(g * p)).
        hit = of_dice * share * -2 / sizes
        slope = of_dice * share * 4 * both / sizes.square()
        hits = hit[target[:, 0]] * of_truth
        pull = of_entropy * costs
        gradient = chance * slope[:, None, None]
        mean = (gradient * chance).sum(1) + hits
        gradient += (pull - mean)[:, None]
        gradient *= chance
        at_truth = gradient.gather(1, target) + (hits - pull)[:, None]
        return gradient.scatter_(1, target, at_truth), None, None, None
