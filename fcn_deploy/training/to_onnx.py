"""A network to one self-describing ONNX file, compared with eager PyTorch before it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from torch import nn

from fcn_deploy.artifacts import sha256, write_atomically
from fcn_deploy.backends.eager import EagerBackend
from fcn_deploy.classes import Classes
from fcn_deploy.errors import UsageError
from fcn_deploy.half_range import require_range
from fcn_deploy.onnx_file import OnnxModel, keep_outputs, to_half
from fcn_deploy.onnx_upsampling import to_matrix_form
from fcn_deploy.parity import ParityReport, Reference, compare, generated_crops
from fcn_deploy.spec import OUTPUTS, PARITY_KEY, SOURCE_KEY, SPEC_KEY, ModelSpec
from fcn_deploy.training.folding import folded
from fcn_deploy.training.foreign import EagerModule, described_as_custom, graph_of, settled
from fcn_deploy.training.network import FCN, Deployed
from fcn_deploy.training.plain_weights import open_network
from fcn_deploy.training.tracing import trace

OPSETS = (18, 23)
"""Lowest and highest: below 18 the exporter does not go, above 23 TensorRT does not."""

_USUAL_STRIDE = 32
"""Output stride of our own networks, in pixels; crops to compare on are made for it."""


def export_onnx(
    checkpoint: Path | None,
    path: Path,
    *,
    crops: Iterable[NDArray[np.uint8]] | None,
    fp16: bool = False,
    fp32_head: bool = False,
    outputs: tuple[str, ...] | None = None,
    opset: int = OPSETS[0],
    classes: Classes | None = None,
    torchvision_name: str | None = None,
) -> ParityReport | None:
    """Write a checkpoint as ONNX, after comparing it with eager PyTorch in ONNX Runtime.

    The file takes ``image`` uint8 (N, H, W, 3), N, H and W free, H and W multiples of the output
    stride. Normalisation and arg-max are inside; batch norm is folded into the convolutions; the
    ModelSpec and the result of the comparison are in the metadata.

    Args:
        checkpoint: A file of ``fcn-deploy train``; or weights of one of its networks, or of an FCN
            of torchvision, without a description; ``None`` for torchvision's own.
        path: Where to write; nothing is left there if the comparison fails.
        crops: Batches (N, H, W, 3) uint8 to compare on; ``None`` skips the comparison.
        fp16: Compute in half precision after normalisation.
        fp32_head: With ``fp16``, compute what follows the scores in float32.
        outputs: Some of ``labels``, ``logits`` and ``scores``, in this order in the file; ``None``
            for all.
        opset: ONNX operator set.
        classes: Of weights without a description; ``None`` to number them.
        torchvision_name: The network of torchvision that these weights are of; may be left away
            where there is a file.

    Raises:
        ModelError: The checkpoint is not usable, or a weight does not fit FP16.
        UsageError: Unknown output or opset, or classes of a checkpoint that has some.
        CheckFailedError: The exported network differs from the eager one.
        EnvironmentFault: The file cannot be written.
    """
    _require(outputs, opset)
    network, spec = open_network(checkpoint, classes, torchvision_name)
    source = None
    if checkpoint is not None:
        source = {"name": checkpoint.name, "sha256": sha256(checkpoint)}
    return export_network(
        network,
        spec,
        path,
        crops=crops,
        fp16=fp16,
        fp32_head=fp32_head,
        outputs=outputs,
        opset=opset,
        source=source,
    )


def export_module(
    module: nn.Module,
    spec: ModelSpec,
    path: str | Path,
    *,
    crops: Iterable[NDArray[np.uint8]] | None = None,
    fp16: bool = False,
    fp32_head: bool = False,
    outputs: tuple[str, ...] | None = None,
    opset: int = OPSETS[0],
) -> ParityReport:
    """Write any network as ONNX, after comparing it with eager PyTorch in ONNX Runtime.

    The file is as that of :func:`export_onnx`. It returns ``scores``, too, where the network ends
    with a transposed convolution that enlarges s times (kernel 2s, stride s, padding s/2) or a
    bilinear ``F.interpolate`` to an even multiple, ``align_corners=False``: then crops of large
    images are merged there, and else as logits, in more memory.

    Args:
        module: From normalised RGB float32 (N, 3, H, W) to logits (N, C, H, W), or to a dictionary
            with these as ``"out"``. It is copied, not changed.
        spec: Its classes, normalisation and output stride, of which H and W are multiples; as
            ``ModelSpec.custom`` makes it. What it says of layers is filled in.
        path: Where to write; nothing is left there if the comparison fails.
        crops: Batches (N, H, W, 3) uint8 to compare on; ``None`` for generated textures.
        fp16: Compute in half precision after normalisation.
        fp32_head: With ``fp16``, compute what follows the scores in float32.
        outputs: Some of ``labels``, ``logits`` and ``scores``; ``None`` for all that there can be.
        opset: ONNX operator set.

    Raises:
        ModelError: The network returns something else, PyTorch cannot export it, or a weight does
            not fit FP16.
        UsageError: An output that there is not, or unknown opset.
        CheckFailedError: The exported network differs from the eager one.
        EnvironmentFault: The file cannot be written.
    """
    _require(outputs, opset)
    step = spec.output_stride
    report = export_network(
        module,
        described_as_custom(module, spec),
        Path(path),
        # Of sizes that images have, whatever the stride: forward may branch on them.
        crops=generated_crops(step=-(-_USUAL_STRIDE // step) * step) if crops is None else crops,
        fp16=fp16,
        fp32_head=fp32_head,
        outputs=outputs,
        opset=opset,
    )
    assert report is not None  # there were crops
    return report


def export_network(
    network: nn.Module,
    spec: ModelSpec,
    path: Path,
    *,
    crops: Iterable[NDArray[np.uint8]] | None,
    fp16: bool,
    fp32_head: bool,
    outputs: tuple[str, ...] | None,
    opset: int,
    source: dict[str, str] | None = None,
) -> ParityReport | None:
    """Write a network, ours or another, that ``spec`` describes; see :func:`export_onnx`."""
    reference: Reference
    if isinstance(network, FCN):
        reference, proto = _eager(network, spec), _to_proto(network, spec, opset)
    else:
        network = settled(network, spec)
        reference = EagerModule(network, spec)
        proto, spec = graph_of(network, spec, opset)
        if crops is not None and spec.output_stride < _USUAL_STRIDE:
            # Also on sizes that are multiples of its own output stride alone.
            crops = chain(crops, generated_crops(step=spec.output_stride))
    there = tuple(value.name for value in proto.graph.output)
    if not set(outputs or ()) <= set(there):
        raise UsageError(
            f"This network has no {', '.join(set(outputs or ()) - set(there))}: its last layer is "
            "no upsampling that crops can be merged before.",
            f"It has {', '.join(there)}.",
        )
    if fp16:
        crops = list(crops) if crops is not None else None
        if crops:
            require_range(proto, crops)
        proto = to_half(proto, fp32_head=fp32_head)
    report = None
    if crops is not None:
        report = _verify(reference, spec, proto, crops, "fp16" if fp16 else "fp32")
        report.require()
    final = keep_outputs(proto, outputs or there)
    properties = {SPEC_KEY: spec.to_json()}
    if source is not None:
        properties[SOURCE_KEY] = json.dumps(source)
    if report is not None:
        properties[PARITY_KEY] = json.dumps(report.as_dict())
    onnx.helper.set_model_props(final, properties)
    onnx.checker.check_model(final, full_check=True)
    write_atomically(path, final.SerializeToString())
    return report


def _require(outputs: tuple[str, ...] | None, opset: int) -> None:
    if outputs is not None and (
        not outputs or not set(outputs) <= set(OUTPUTS) or len(set(outputs)) < len(outputs)
    ):
        raise UsageError(
            f"{', '.join(outputs) or 'Nothing'} cannot be the outputs.",
            f"Name some of {', '.join(OUTPUTS)}, each once.",
        )
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise UsageError(f"Opset {opset} is not in {OPSETS[0]}..{OPSETS[1]}.")


def _eager(network: FCN, spec: ModelSpec) -> Reference:
    return EagerBackend(network, spec, torch.device("cpu"))


def _verify(
    reference: Reference,
    spec: ModelSpec,
    proto: ModelProto,
    crops: Iterable[NDArray[np.uint8]],
    precision: str,
) -> ParityReport:
    from fcn_deploy.backends.ort import OrtBackend  # only a verified export needs ONNX Runtime

    outputs = tuple(value.name for value in proto.graph.output)
    exported = OnnxModel(proto, spec, outputs, precision)
    with OrtBackend(exported, Path("the exported graph"), "CPUExecutionProvider") as candidate:
        return compare(reference, candidate, crops)


def _to_proto(network: FCN, spec: ModelSpec, opset: int) -> ModelProto:
    proto = trace(Deployed(folded(network), spec).eval(), OUTPUTS, spec.output_stride, opset)
    _name_axes(proto, spec)
    return to_matrix_form(proto)


def _name_axes(proto: ModelProto, spec: ModelSpec) -> None:
    """Name the free axes of scores as those of the image; the exporter invents names for them."""
    factor = spec.output_stride // spec.score_stride
    names = [f"{factor}*{axis}" if factor > 1 else axis for axis in ("rows", "columns")]
    scores = next(value for value in proto.graph.output if value.name == "scores")
    for dim, name in zip(scores.type.tensor_type.shape.dim[2:], names, strict=True):
        dim.dim_param = name
