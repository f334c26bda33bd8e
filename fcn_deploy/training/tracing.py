"""A network in PyTorch to an ONNX graph, cleaned of what the exporter notes for itself."""

from __future__ import annotations

import logging
import warnings

import torch
from onnx import ModelProto
from torch import nn
from torch.export import Dim

from fcn_deploy.spec import INPUT


def trace(model: nn.Module, outputs: tuple[str, ...], step: int, opset: int) -> ModelProto:
    """Export a network that takes images (N, H, W, 3) uint8; N, H and W stay free.

    Args:
        model: In evaluation mode.
        outputs: Names of what it returns.
        step: Heights and widths are multiples of it, in pixels.
        opset: ONNX operator set.

    Raises:
        torch.onnx.OnnxExporterError: PyTorch cannot export it.
    """
    # Unequal sizes, so that the exporter cannot tie two axes together.
    image = torch.zeros(2, 3 * step, 5 * step, 3, dtype=torch.uint8)
    axes = {0: Dim("batch"), 1: step * Dim("rows"), 2: step * Dim("columns")}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside torch, none of which is ours
            program = torch.onnx.export(
                model,
                (image,),
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=(axes,),
            )
    finally:
        logger.setLevel(level)
    assert program is not None  # typed optional; dynamo=True always returns one
    proto = program.model_proto
    _clean(proto)
    return proto


def _clean(proto: ModelProto) -> None:
    """Remove what the exporter notes for its own developers, stack traces with paths included."""
    graph = proto.graph
    del proto.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
