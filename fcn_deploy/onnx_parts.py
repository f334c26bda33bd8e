"""An exported graph as the parts that an engine is built from: whole, trunk and head."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from fcn_deploy.onnx_file import OnnxModel, has_half_head, keep_outputs
from fcn_deploy.onnx_upsampling import head_of, upsampling_of
from fcn_deploy.passport import HEAD, TRUNK, WHOLE, Profile
from fcn_deploy.recipe import Shapes
from fcn_deploy.spec import INPUT
from fcn_deploy.upsample import Border, Upsampling

_HEAD_PIXELS = 1 << 20
"""Pixels that a head decides at once: 2 bytes of each class of them are its largest tensor."""

_HEAD_HEIGHT = 256
"""Pixels of a band's height that a head is made for; merged bands are lower, and wide."""


@dataclass(frozen=True)
class GraphPart:
    """A graph to build a plan from.

    Attributes:
        role: ``whole``, ``trunk`` or ``head``.
        proto: The typed graph.
        input: Name of its input.
        step: Multiple that height and width of the input must be of; 1 for cells.
        profiles: (N, H, W) of what it takes.
    """

    role: str
    proto: ModelProto
    input: str
    step: int
    profiles: tuple[Profile, ...]

    def dims(self, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Shape of the input tensor, channels last, of (N, H, W)."""
        batch, height, width = shape
        channels = self.proto.graph.input[0].type.tensor_type.shape.dim[3].dim_value
        return batch, height, width, channels


def parts_of(typed: OnnxModel, profiles: tuple[Shapes, ...]) -> tuple[GraphPart, ...]:
    """The parts of a typed graph: the whole, and trunk and head where it can be cut at scores."""
    # Whole images come one by one, crops of an image as many at once as there may be.
    images, crops = [], []
    for s in profiles:
        most = (s.max_batch, *s.max_hw)
        images.append(Profile((1, *s.min_hw), (1, *s.opt_hw), most))
        crops.append(Profile((1, *s.min_hw), (s.max_batch, *s.opt_hw), most))
    step, upsampling = typed.spec.output_stride, upsampling_of_scores(typed)
    if upsampling is None or "labels" not in typed.outputs:
        return (GraphPart(WHOLE, typed.proto, INPUT, step, tuple(images)),)
    whole, trunk = (keep_outputs(typed.proto, (name,)) for name in ("labels", "scores"))
    head = head_of(upsampling, half=has_half_head(typed.proto))
    return (
        GraphPart(WHOLE, whole, INPUT, step, tuple(images)),
        GraphPart(TRUNK, trunk, INPUT, step, tuple(crops)),
        GraphPart(HEAD, head, "scores", 1, (head_profile(upsampling.stride),)),
    )


def upsampling_of_scores(model: OnnxModel) -> Upsampling | None:
    """The layer behind the scores; ``None`` where the graph has no such cut."""
    if "scores" not in model.outputs:
        return None
    return upsampling_of(model.proto, model.spec.num_classes)


def head_profile(stride: int) -> Profile:
    """Cells (N, R, K) that a head takes: one more on each side than windows."""
    rows = max(_HEAD_HEIGHT // stride, 1)
    columns = max(_HEAD_PIXELS // (rows * stride * stride), 1)
    return Profile((1, 2, 2), (1, rows + 1, columns // 2 + 1), (1, rows + 1, columns + 1))


def upsampling_bytes(upsampling: Upsampling) -> bytes:
    """The weights of the upsampling as a NumPy file, float32."""
    buffer = io.BytesIO()
    np.save(buffer, upsampling.matrix.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()


def read_upsampling(content: bytes, num_classes: int, border: Border = "zeros") -> Upsampling:
    """What :func:`upsampling_bytes` made of a layer with this border.

    Raises:
        ValueError: Not such bytes, or of another number of classes.
    """
    return Upsampling(np.load(io.BytesIO(content), allow_pickle=False), num_classes, border)
