"""Where the weights of the body come from: torchvision, a file, or nowhere."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

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
        state, _ = pretrained(
            backbone,
            "Pass --weights FILE (torchvision's .pth, copied from elsewhere) or --weights none.",
        )
        load_weights(network.body, _body_of(state), Path(backbone))
        return
    path = Path(source)
    weights = read_weights(path)
    if any(name.startswith("body.") for name in weights):
        body = {k.removeprefix("body."): v for k, v in weights.items() if k.startswith("body.")}
    else:
        body = _body_of(weights)
    load_weights(network.body, body, path)


def pretrained(name: str, remedy: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The best weights of torchvision for a network, and their classes, by its loader and cache.

    Args:
        name: As torchvision calls the network.
        remedy: What to do if there are none.

    Raises:
        EnvironmentFault: They are neither cached nor reachable.
    """
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except Exception as error:  # OSError of the network; on damage in the cache, anything
        # What PyTorch says of a damaged file is advice to run it.
        cause = error if isinstance(error, OSError) else f"damaged ({type(error).__name__})"
        raise EnvironmentFault(
            f"torchvision's weights of {name} cannot be downloaded or read: {cause}.", remedy
        ) from error
    return state, tuple(weights.meta["categories"])


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state_dict from a file, by name: safetensors, or of ``torch.save``.

    Also what training scripts save around one, as ``"model"`` or ``"state_dict"``, and the names
    that DataParallel gives.

    Raises:
        ModelError: Not such a file, or one that only running what is in it could read.
    """
    if not path.is_file():
        raise ModelError(f"There is no weights file {path}.", "Pass imagenet, none or a file.")
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            # Never anything but weights_only: other pickles are programs. A Namespace is plain; the
            # training scripts of torchvision save their arguments as one.
            with torch.serialization.safe_globals([Namespace]):
                tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is not a plain file of weights.",
            "Save it as safetensors, or with torch.save(model.state_dict(), FILE).",
        ) from error
    except Exception as error:  # torch's readers raise KeyError, EOFError and more on damage
        raise ModelError(
            f"{path} is damaged, or no file of weights.",
            "Weights are safetensors, or of torch.save(model.state_dict(), FILE).",
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(tensors, dict) and isinstance(tensors.get(wrapper), dict):
            tensors = tensors[wrapper]
    if not isinstance(tensors, dict) or not all(
        isinstance(tensor, Tensor) for tensor in tensors.values()
    ):
        raise ModelError(f"{path} holds more than weights.", "Save model.state_dict() alone.")
    named = {str(k): v for k, v in tensors.items() if not str(k).startswith(RESUME_PREFIX)}
    if all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    return named


def _body_of(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision's ResNet layout to positions in the body; the classifier is dropped."""
    position = {name: str(index) for index, name in enumerate(_CHILDREN)}
    renamed = {}
    for name, tensor in weights.items():
        child, _, rest = name.partition(".")
        if child != "fc":
            renamed[f"{position.get(child, child)}.{rest}"] = tensor
    return renamed
