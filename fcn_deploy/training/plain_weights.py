"""Weights without a description: which network they are of, told by their names and shapes."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import torchvision
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fcn_deploy.classes import Classes
from fcn_deploy.errors import ModelError, UsageError
from fcn_deploy.spec import IGNORE, SPEC_KEY, TORCHVISION, ModelSpec, voc_palette
from fcn_deploy.training.backbone import pretrained, read_weights
from fcn_deploy.training.checkpoint import load_network, load_weights
from fcn_deploy.training.network import SCORE_STRIDE, build_network

log = logging.getLogger("fcn_deploy")

TORCHVISION_FCNS = ("fcn_resnet50", "fcn_resnet101")

_TORCHVISION_STRIDE = 8
"""Their bodies are dilated instead of going on with strides 16 and 32."""

# Blocks of layer3, by which ResNets of one kind of block differ.
_BASIC = {2: "resnet18", 6: "resnet34"}
_BOTTLENECK = {6: "resnet50", 23: "resnet101"}


def open_network(
    path: Path | None, classes: Classes | None = None, torchvision_name: str | None = None
) -> tuple[nn.Module, ModelSpec]:
    """The network of a file, in evaluation mode, and its description.

    Args:
        path: A checkpoint of ``fcn-deploy train``; or a state_dict, as safetensors or of
            ``torch.save``: of one of its networks, of "Dive into Deep Learning", or of an FCN of
            torchvision. ``None``: with torchvision's own weights.
        classes: Names and colours of a state_dict; ``None`` to number them.
        torchvision_name: The network of torchvision that it is of; ``None`` to find out.

    Raises:
        ModelError: Not such a file, of an unknown network, or of another number of classes.
        UsageError: Classes were named for a checkpoint, which has its own; or an unknown network.
        EnvironmentFault: torchvision's weights are neither cached nor reachable.
    """
    if torchvision_name not in (None, *TORCHVISION_FCNS):
        raise UsageError(
            f"There is no FCN {torchvision_name!r} in torchvision.",
            f"There are: {', '.join(TORCHVISION_FCNS)}.",
        )
    if path is None:
        name = str(torchvision_name)
        state, names = pretrained(name, f"Pass a file of them: --torchvision {name} FILE")
        own = names, voc_palette(len(names)), IGNORE
        return _of_torchvision(name, state, Path(name), classes or own)
    if path.suffix in (".onnx", ".plan") or _is_described(path):
        if classes is not None or torchvision_name is not None:
            raise UsageError(
                f"{path} is no plain weights: it says itself which network and classes it is of.",
                "Leave --torchvision and --classes away.",
            )
        return load_network(path)
    weights = read_weights(path)
    found = torchvision_fcn(weights)
    if torchvision_name not in (None, found):
        raise ModelError(f"{path} holds no weights of torchvision's {torchvision_name}.")
    if found is not None:
        return _of_torchvision(found, weights, path, classes)
    weights = _renamed(weights)
    spec = _own_spec(weights, path, classes)
    network = build_network(spec)
    load_weights(network, weights, path)
    return network.eval(), spec


def torchvision_fcn(weights: dict[str, Tensor]) -> str | None:
    """Which of torchvision's FCNs a state_dict is of; ``None`` for none."""
    blocks = _blocks(weights, "backbone.layer3")
    name = f"fcn_{_BOTTLENECK.get(blocks, '')}"
    found = name in TORCHVISION_FCNS and "classifier.4.weight" in weights
    return name if found else None


def _of_torchvision(
    name: str, weights: dict[str, Tensor], path: Path, classes: Classes | None
) -> tuple[nn.Module, ModelSpec]:
    names, palette, _ = _classes_for(weights["classifier.4.weight"].shape[0], path, classes)
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=len(names)
    )
    # What the auxiliary classifier says counts in training alone.
    used = {k: v for k, v in weights.items() if not k.startswith("aux_classifier.")}
    load_weights(network, used, path)
    spec = ModelSpec(
        names,
        palette,
        head=TORCHVISION,
        backbone=name,
        upsampling_bias=False,
        output_stride=_TORCHVISION_STRIDE,
        score_stride=_TORCHVISION_STRIDE,
    )
    return network.eval(), spec


def _own_spec(weights: dict[str, Tensor], path: Path, classes: Classes | None) -> ModelSpec:
    bottleneck = "body.6.0.conv3.weight" in weights
    backbone = (_BOTTLENECK if bottleneck else _BASIC).get(_blocks(weights, "body.6"))
    upsampling = weights.get("upsample.weight")
    heads = {2 * stride: head for head, stride in SCORE_STRIDE.items()}
    head = heads.get(upsampling.shape[-1]) if upsampling is not None else None
    if backbone is None or head is None or upsampling is None:
        raise ModelError(
            f"{path} holds weights of a network that is not known.",
            "Build it in Python, load them, and call fcn_deploy.export(network, spec, FILE).",
        )
    names, palette, _ = _classes_for(upsampling.shape[0], path, classes)
    return ModelSpec(
        names,
        palette,
        head=head,
        backbone=backbone,
        upsampling_bias="upsample.bias" in weights,
        score_stride=SCORE_STRIDE[head],
    )


def _classes_for(count: int, path: Path, classes: Classes | None) -> Classes:
    if classes is None:
        log.warning("%s does not name its classes: --classes FILE does.", path)
        names = tuple(f"class{label}" for label in range(count))
        return names, voc_palette(count), IGNORE
    if len(classes[0]) != count:
        raise ModelError(f"{path} has {count} classes, and {len(classes[0])} were named.")
    return classes


def _renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by our names, where they are those of "Dive into Deep Learning", chapter 14.11."""
    if "transpose_conv.weight" not in weights:
        return weights
    known = {"final_conv": "score", "transpose_conv": "upsample"}

    def ours(name: str) -> str:
        layer, _, rest = name.partition(".")
        return f"body.{name}" if layer.isdecimal() else f"{known.get(layer, layer)}.{rest}"

    return {ours(name): tensor for name, tensor in weights.items()}


def _blocks(weights: dict[str, Tensor], layer: str) -> int:
    pattern = re.compile(rf"{re.escape(layer)}\.(\d+)\.")
    return len({match[1] for name in weights if (match := pattern.match(name))})


def _is_described(path: Path) -> bool:
    """Whether it is a checkpoint of ours; damaged ones count, for their reader to refuse."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return SPEC_KEY in (file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return True
