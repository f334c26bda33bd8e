"""The receptive field of a network in eager mode, from its modules."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fcn_deploy.errors import ModelError
from fcn_deploy.reach import Dependence, Reach, require_stride
from fcn_deploy.spec import ModelSpec
from fcn_deploy.training.network import FCN

_POINTWISE = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.Identity, nn.ReLU)


def reach_of_network(network: FCN, spec: ModelSpec) -> Reach:
    """How far the scores of a network look, whatever its weights are.

    The same as :func:`fcn_deploy.receptive.reach_of_scores` of its exported graph.

    Raises:
        ModelError: It has a layer whose reach is not known.
    """
    return require_stride(Reach(_scores(network, 0), _scores(network, 1)), spec.score_stride)


def _scores(network: FCN, axis: int) -> Dependence:
    """The dependence of :meth:`FCN.scores`, along rows (0) or columns (1)."""
    by_stride: dict[int, Dependence] = {}
    x = Dependence()
    for layer in network.body:
        x = _behind(layer, x, axis)
        by_stride[int(x.stride)] = x  # of each stride, the last: that is where the skips begin
    scores = _behind(network.score, x, axis)
    skips = zip(network.skip_strides, network.skips, network.doublings, strict=True)
    for stride, skip, double in skips:
        scores = _behind(double, scores, axis).union(_behind(skip, by_stride[stride], axis))
    return scores


def _behind(layer: nn.Module, x: Dependence, axis: int) -> Dependence:
    if isinstance(layer, _POINTWISE):
        return x
    if isinstance(layer, nn.Sequential):
        for part in layer:
            x = _behind(part, x, axis)
        return x
    if isinstance(layer, (BasicBlock, Bottleneck)):
        shortcut = x if layer.downsample is None else _behind(layer.downsample, x, axis)
        main = x
        for name in ("conv1", "conv2", "conv3"):
            main = _behind(getattr(layer, name, nn.Identity()), main, axis)
        return main.union(shortcut)
    if isinstance(layer, nn.ConvTranspose2d):
        kernel, stride, dilation, padding = _sizes(layer, axis)
        extra = layer.output_padding[axis]
        return x.transposed(kernel, stride, dilation, (padding, padding - extra))
    if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
        return x.window(*_sizes(layer, axis))
    raise ModelError(
        f"How far a {type(layer).__name__} looks is not known.",
        "Give the halo in pixels instead: --halo N",
    )


def _sizes(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d, axis: int
) -> tuple[int, int, int, int]:
    """Kernel, stride, dilation and padding along an axis."""
    sizes = []
    for value in (layer.kernel_size, layer.stride, layer.dilation, layer.padding):
        if isinstance(value, str):
            raise ModelError(
                f"How far a {type(layer).__name__} with padding {value!r} looks is not known.",
                "Give the halo in pixels instead: --halo N",
            )
        sizes.append(value if isinstance(value, int) else value[axis])
    kernel, stride, dilation, padding = sizes
    return kernel, stride, dilation, padding
