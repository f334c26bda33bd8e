"""Where the weights of the body come from: torchvision, a file, or nowhere."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fcn_deploy.errors import EnvironmentFault, ModelError
from fcn_deploy.training.checkpoint import RESUME_PREFIX, load_weights
from fcn_deploy.training.network import FCN

# Children of a torchvision ResNet in the order in which FCN.body keeps them.
_CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")


def initialise_body(network: FCN, backbone: str, source: str) -> None:
    """Load weights into the body of a network.

    Args:
        network: Changed in place.
        backbone: ``resnet18``, ``resnet34`` or ``resnet50``.
        source: ``imagenet`` (torchvision's best weights, through its own loader and cache),
            ``none``, or a file: torchvision's ``.pth`` layout, or safetensors of the same names or
            of ``fcn-deploy train``.

    Raises:
        EnvironmentFault: The ImageNet weights are neither cached nor reachable.
        ModelError: The file is not usable, or does not fit the backbone.
    """
    if source == "none":
        return
    if source == "imagenet":
        load_weights(network.body, _body_of(_imagenet(backbone)), Path(backbone))
        return
    path = Path(source)
    weights = _read(path)
    if any(name.startswith("body.") for name in weights):
        body = {k.removeprefix("body."): v for k, v in weights.items() if k.startswith("body.")}
    else:
        body = _body_of(weights)
    load_weights(network.body, body, path)


def _imagenet(backbone: str) -> dict[str, Tensor]:
    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # OSError of the network; on damage in the cache, anything
        # What PyTorch says of a damaged file is advice to run it.
        cause = error if isinstance(error, OSError) else f"damaged ({type(error).__name__})"
        raise EnvironmentFault(
            f"The ImageNet weights of {backbone} cannot be downloaded or read: {cause}.",
            "Pass --weights FILE (torchvision's .pth, copied from elsewhere) or --weights none.",
        ) from error
    return state


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.", "Pass imagenet, none or a file.")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            # Never anything but weights_only: other pickles are programs.
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a plain file of weights.",
            "Save it as safetensors, or with torch.save(model.state_dict(), FILE).",
        ) from error
    except Exception as error:  # torch's readers raise KeyError, EOFError and more on damage
        raise ModelError(f"{path} is damaged: {type(error).__name__}.") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, Tensor) for tensor in tensors.values()
    ):
        raise ModelError(f"{path} holds more than weights.", "Save model.state_dict() alone.")
    return {str(k): v for k, v in tensors.items() if not str(k).startswith(RESUME_PREFIX)}


def _body_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's ResNet layout to positions in the body; the classifier is dropped."""
    position = {name: str(index) for index, name in enumerate(_CHILDREN)}
    renamed = {}
    for name, tensor in weights.items():
        child, _, rest = name.partition(".")
        if child != "fc":
            renamed[f"{position.get(child, child)}.{rest}"] = tensor
    return renamed
