"""Batch norm over the batch of all ranks together, so that their number changes no result.

PyTorch's own, ``nn.SyncBatchNorm``, works on GPUs alone; this module has the one for CPUs. Both
keep the names of plain batch norm: checkpoints do not tell how many devices a network was trained
on.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


def share_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Let the batch norm of a network see the batches of all ranks; in place.

    Parameters and buffers stay the same tensors, under the same names.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.BatchNorm2d:
                setattr(parent, name, SharedBatchNorm2d.of(layer))


class SharedBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` over the batch of all ranks, on CPUs; with weights and statistics.

    All ranks must call it equally often in training; in evaluation it is the plain layer.
    """

    @classmethod
    def of(cls, layer: nn.BatchNorm2d) -> SharedBatchNorm2d:
        """The same layer, over the batch of all ranks; it shares the tensors of the given one."""
        shared = cls(layer.num_features, layer.eps, layer.momentum)
        shared.weight, shared.bias = layer.weight, layer.bias
        for name, buffer in layer.named_buffers():
            setattr(shared, name, buffer)
        return shared.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised (N, C, H, W), in the type of ``x``: its own, or bfloat16."""
        if not self.training:
            return super().forward(x)
        with torch.no_grad():
            mean, variance, count = _statistics(x, self.weight.dtype)
            self._remember(mean, variance * count / max(count - 1, 1))
        y: Tensor = _Normalised.apply(x, self.weight, self.bias, mean, variance, self.eps, count)
        return y

    def _remember(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None  # the running average, not the mean of all batches
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)
        self.num_batches_tracked.add_(1)


def _statistics(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance by channel, and number of values, over all ranks."""
    channels = x.shape[1]
    # The running statistics, which nobody needs here, say of what type the results are.
    running = torch.zeros(2, channels, dtype=dtype)
    own = torch.batch_norm_update_stats(x, running[0], running[1], 0.0)
    mean, variance = (fact.double() for fact in own)
    count = x.numel() // channels
    # In float64, the difference of squares is harmless.
    sums = torch.cat([mean, variance + mean.square(), torch.ones(1, dtype=torch.float64)]) * count
    dist.all_reduce(sums)
    mean, square = (sums[:-1] / sums[-1]).chunk(2)
    variance = (square - mean.square()).clamp(min=0)
    return mean.to(dtype), variance.to(dtype), int(sums[-1])


class _Normalised(torch.autograd.Function):
    """Normalisation by statistics of all ranks, each of which the gradient flows back to."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.eps, ctx.count = eps, count
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, mean, inverse = ctx.saved_tensors
        # The kernel of plain batch norm, for what it sums alone; its gradient of x would be that
        # of a batch which ends with this rank.
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        sums = torch.cat([by_weight, by_bias])
        dist.all_reduce(sums)
        mean_weight, mean_bias = (sums / ctx.count).chunk(2)
        slope = weight * inverse
        along = -slope * inverse * mean_weight
        offset = -slope * mean_bias - along * mean
        by_x = torch.addcmul(_by_channel(offset), x, _by_channel(along))
        by_x.addcmul_(gradient, _by_channel(slope))
        return by_x.to(x.dtype), by_weight, by_bias, None, None, None, None


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
