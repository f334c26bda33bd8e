"""Checkpoint to one self-describing ONNX file, compared with eager PyTorch before it is written."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn
from torch.export import Dim
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fcn_deploy.artifacts import sha256, write_atomically
from fcn_deploy.backends.eager import EagerBackend
from fcn_deploy.errors import UsageError
from fcn_deploy.onnx_file import OnnxModel, keep_outputs, to_half
from fcn_deploy.onnx_upsampling import to_matrix_form
from fcn_deploy.parity import ParityReport, compare
from fcn_deploy.spec import INPUT, OUTPUTS, PARITY_KEY, SOURCE_KEY, SPEC_KEY, ModelSpec
from fcn_deploy.training.checkpoint import load_network
from fcn_deploy.training.network import FCN, Deployed

OPSETS = (18, 23)
"""Lowest and highest: below 18 the exporter does not go, above 23 TensorRT does not."""


def export_onnx(
    checkpoint: Path,
    path: Path,
    *,
    crops: Iterable[NDArray[np.uint8]] | None,
    fp16: bool = False,
    outputs: tuple[str, ...] = OUTPUTS,
    opset: int = OPSETS[0],
) -> ParityReport | None:
    """Write a checkpoint as ONNX, after comparing it with eager PyTorch in ONNX Runtime.

    The file takes ``image`` uint8 (N, H, W, 3), N, H and W free, H and W multiples of the output
    stride. Normalisation and arg-max are inside; batch norm is folded into the convolutions; the
    ModelSpec and the result of the comparison are in the metadata.

    Args:
        checkpoint: A file of ``fcn-deploy train``.
        path: Where to write; nothing is left there if the comparison fails.
        crops: Batches (N, H, W, 3) uint8 to compare on; ``None`` skips the comparison.
        fp16: Compute in half precision after normalisation.
        outputs: Some of ``labels``, ``logits`` and ``scores``, in this order in the file.
        opset: ONNX operator set.

    Raises:
        ModelError: The checkpoint is not usable, or a weight does not fit FP16.
        UsageError: Unknown output or opset.
        CheckFailedError: The exported network differs from the eager one.
        EnvironmentFault: The file cannot be written.
    """
    if not outputs or not set(outputs) <= set(OUTPUTS) or len(set(outputs)) < len(outputs):
        raise UsageError(
            f"{', '.join(outputs) or 'Nothing'} cannot be the outputs.",
            f"Name some of {', '.join(OUTPUTS)}, each once.",
        )
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UsageError(f"Opset {opset} is not in {OPSETS[0]}..{OPSETS[1]}.")
    network, spec = load_network(checkpoint)
    proto = _to_proto(network, spec, opset)
    if fp16:
        proto = to_half(proto)
    report = None
    if crops is not None:
        report = _verify(network, spec, proto, crops, "fp16" if fp16 else "fp32")
        report.require()
    final = keep_outputs(proto, outputs)
    source = {"name": checkpoint.name, "sha256": sha256(checkpoint)}
    properties = {SPEC_KEY: spec.to_json(), SOURCE_KEY: json.dumps(source)}
    if report is not None:
        properties[PARITY_KEY] = json.dumps(report.as_dict())
    onnx.helper.set_model_props(final, properties)
    onnx.checker.check_model(final, full_check=True)
    write_atomically(path, final.SerializeToString())
    return report


def _verify(
    network: FCN,
    spec: ModelSpec,
    proto: ModelProto,
    crops: Iterable[NDArray[np.uint8]],
    precision: str,
) -> ParityReport:
    from fcn_deploy.backends.ort import OrtBackend  # only a verified export needs ONNX Runtime

    eager = EagerBackend(network, spec, torch.device("cpu"))
    exported = OnnxModel(proto, spec, OUTPUTS, precision)
    with OrtBackend(exported, Path("the exported graph"), "CPUExecutionProvider") as candidate:
        return compare(eager, candidate, crops)


def _to_proto(network: FCN, spec: ModelSpec, opset: int) -> ModelProto:
    folded = copy.deepcopy(network).eval()
    fold_batch_norm(folded)
    model = Deployed(folded, spec).eval()
    step = spec.output_stride
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
                output_names=list(OUTPUTS),
                dynamic_shapes=(axes,),
            )
    finally:
        logger.setLevel(level)
    assert program is not None  # typed optional; dynamo=True always returns one
    proto = program.model_proto
    _clean(proto)
    _name_axes(proto, spec)
    return to_matrix_form(proto)


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


def _clean(proto: ModelProto) -> None:
    """Remove what the exporter notes for its own developers, stack traces with paths included."""
    graph = proto.graph
    del proto.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


def _name_axes(proto: ModelProto, spec: ModelSpec) -> None:
    """Name the free axes of scores as those of the image; the exporter invents names for them."""
    factor = spec.output_stride // spec.score_stride
    names = [f"{factor}*{axis}" if factor > 1 else axis for axis in ("rows", "columns")]
    scores = next(value for value in proto.graph.output if value.name == "scores")
    for dim, name in zip(scores.type.tensor_type.shape.dim[2:], names, strict=True):
        dim.dim_param = name
