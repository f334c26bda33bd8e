"""Batch norm folded into convolutions, as it is in every exported file."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fcn_deploy.training.network import FCN


def fold_batch_norm(module: nn.Module) -> None:
    """Fold every batch norm into the convolution registered just before it, in place, in float32.

    In a ResNet a convolution's batch norm always follows it; parity would tell if it did not.
    """
    previous: tuple[str, nn.Conv2d] | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and previous is not None:
            module.register_module(previous[0], fuse_conv_bn_eval(previous[1], child))
            module.register_module(name, nn.Identity())
        previous = (name, child) if isinstance(child, nn.Conv2d) else None
        fold_batch_norm(child)


def folded(network: FCN) -> FCN:
    """A copy of a network for inference, its batch norm folded in float32."""
    result = copy.deepcopy(network).eval()
    fold_batch_norm(result)
    return result
