"""Networks that are not ours: any module from normalised images to logits, as an exported graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx.helper
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from torch import Tensor, nn

from fcn_deploy.errors import ModelError
from fcn_deploy.onnx_resize import fix_scales
from fcn_deploy.onnx_upsampling import LOGITS, SCORES, to_matrix_form, upsampling_of
from fcn_deploy.spec import CUSTOM, ModelSpec
from fcn_deploy.training.network import Normalising, decided
from fcn_deploy.training.tracing import trace


class DeployedModule(Normalising):
    """A foreign network as it is shipped: raw images in; labels and logits out."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        super().__init__(spec)
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Labels uint8 (N, H, W) and logits float32 (N, C, H, W) of RGB uint8 (N, H, W, 3)."""
        # Laid out as planes: of interleaved channels PyTorch pools by way of strides, which become
        # a dozen nodes that no engine likes.
        logits = logits_of(self.network(self.normalise(image).contiguous()))
        return decided(logits), logits


class EagerModule:
    """A foreign network in PyTorch, on the CPU: what its exported graph is compared with."""

    name, precision = "eager", "fp32"

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        self._model = DeployedModule(network, spec).eval()

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Class scores per pixel of crops (N, H, W, 3): float32 (N, C, H, W)."""
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(np.ascontiguousarray(crops)))[1]
        return np.asarray(logits.numpy(), np.float32)


def logits_of(result: Any) -> Tensor:
    """The logits that a network returns: a tensor, or ``"out"`` of a dictionary, as torchvision.

    Raises:
        ModelError: Neither of them.
    """
    logits = result.get("out") if isinstance(result, Mapping) else result
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"The network returns a {type(result).__name__}, not logits.",
            'Let forward return a tensor (N, C, H, W), or a dictionary with it as "out".',
        )
    return logits


def settled(module: nn.Module, spec: ModelSpec) -> nn.Module:
    """A copy of a network as it is exported: on the CPU, in float32, in evaluation mode.

    Raises:
        ModelError: It does not make logits of these classes, of the size of the image.
    """
    network = copy.deepcopy(module).cpu().float().eval()
    # Unequal, and no multiple of more than the stride.
    height, width = 3 * spec.output_stride, 5 * spec.output_stride
    try:
        with torch.inference_mode():
            logits = logits_of(network(torch.zeros(1, 3, height, width)))
    except RuntimeError as error:  # the user's own layers; the traceback stays with it
        raise ModelError(
            f"The network fails on an image of {height}x{width}: {str(error).splitlines()[0]}",
            f"Its output_stride is said to be {spec.output_stride}: heights and widths are "
            "multiples of it.",
        ) from error
    if logits.ndim != 4 or logits.shape[2:] != (height, width):
        raise ModelError(
            f"Of an image of {height}x{width} the network returns {tuple(logits.shape)}.",
            "Let forward enlarge its logits to (N, C, H, W), for example by F.interpolate; or name "
            f"another output_stride than {spec.output_stride}.",
        )
    if logits.shape[1] != spec.num_classes:
        remedy = "Name as many classes as it has channels."
        if (logits.shape[1], spec.num_classes) == (1, 2):
            remedy = "Let forward return two: torch.cat([torch.zeros_like(x), x], 1)"
        raise ModelError(
            f"The network has {logits.shape[1]} channels for {spec.num_classes} classes.", remedy
        )
    return network


def graph_of(network: nn.Module, spec: ModelSpec, opset: int) -> tuple[ModelProto, ModelSpec]:
    """The graph of a network that was settled, and its description as far as the graph tells.

    Where its last layer can be merged as scores (:mod:`fcn_deploy.merging`), the graph returns
    these, too.

    Raises:
        ModelError: PyTorch cannot export it.
    """
    step = spec.output_stride
    model = DeployedModule(network, spec).eval()
    try:
        proto = trace(model, ("labels", LOGITS), step, opset)
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"PyTorch cannot export the network: {_cause(error)}",
            "Let forward not branch on values or sizes, nor take int() of them; heights and widths "
            f"are multiples of output_stride ({step}).",
        ) from error
    fix_scales(proto, step)
    return _with_scores(proto, spec)


def _cause(error: BaseException) -> str:
    """The first line of what is behind an error of the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _with_scores(proto: ModelProto, spec: ModelSpec) -> tuple[ModelProto, ModelSpec]:
    """The same graph with ``scores``, if crops can be merged there."""
    last = next(node for node in proto.graph.node if LOGITS in node.output)
    changed = ModelProto()
    changed.CopyFrom(proto)
    entry = last.input[0] if last.input else ""
    for node in changed.graph.node:
        node.input[:] = [SCORES if name == entry else name for name in node.input]
        node.output[:] = [SCORES if name == entry else name for name in node.output]
    upsampling = upsampling_of(changed, spec.num_classes)
    made = any(SCORES in node.output for node in changed.graph.node)
    if upsampling is None or not made or spec.output_stride % upsampling.stride:
        return proto, replace(spec, score_stride=1, upsampling_bias=False)
    factor = spec.output_stride // upsampling.stride
    axes = [f"{factor}*{axis}" if factor > 1 else axis for axis in ("rows", "columns")]
    shape: list[str | int | None] = ["batch", spec.num_classes, *axes]
    changed.graph.output.append(
        onnx.helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, shape)
    )
    bias = bool(upsampling.matrix[-1].any())
    described = replace(spec, score_stride=upsampling.stride, upsampling_bias=bias)
    return to_matrix_form(changed), described


def described_as_custom(module: nn.Module, spec: ModelSpec) -> ModelSpec:
    """The description of somebody's own network: what else it says of layers is the graph's."""
    return replace(spec, head=CUSTOM, backbone=type(module).__name__)
