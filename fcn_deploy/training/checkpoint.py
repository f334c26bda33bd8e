"""Checkpoints: safetensors with the ModelSpec in the header, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fcn_deploy.artifacts import atomic_path
from fcn_deploy.errors import ModelError
from fcn_deploy.spec import SPEC_KEY, ModelSpec
from fcn_deploy.training.network import FCN, build_network

RESUME_KEY = "fcn_deploy.resume"
RESUME_PREFIX = "resume."
"""Tensors that only --resume needs, such as the momentum, are named with it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        spec: The model's description.
        weights: State of the network, by name.
        resume_tensors: State of the optimizer, flat, by name; empty in ``best.safetensors``.
        resume: What else a training needs to go on; empty in ``best.safetensors``.
    """

    spec: ModelSpec
    weights: dict[str, Tensor]
    resume_tensors: dict[str, Tensor]
    resume: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; whoever reads ``path`` sees the old one or the whole new one.

    Raises:
        EnvironmentFault: The file cannot be written.
    """
    tensors = dict(checkpoint.weights)
    tensors.update({RESUME_PREFIX + k: v for k, v in checkpoint.resume_tensors.items()})
    header = {SPEC_KEY: checkpoint.spec.to_json(), "format": "pt"}
    if checkpoint.resume:
        header[RESUME_KEY] = json.dumps(checkpoint.resume)
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(host, temporary, header)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint that :func:`save_checkpoint` wrote.

    Raises:
        ModelError: Not safetensors, damaged, or without a ModelSpec.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} is no checkpoint that can be read: {error}.",
            "Checkpoints are safetensors files; `fcn-deploy train` writes them.",
        ) from error
    if SPEC_KEY not in header:
        raise ModelError(
            f"{path} holds weights, but no description of the model.",
            "Start a training with it: fcn-deploy train DATA --weights FILE; or export it: "
            "fcn-deploy export FILE --classes classes.txt",
        )
    resume = {k: v for k, v in tensors.items() if k.startswith(RESUME_PREFIX)}
    return Checkpoint(
        spec=ModelSpec.from_json(header[SPEC_KEY]),
        weights={k: v for k, v in tensors.items() if k not in resume},
        resume_tensors={k.removeprefix(RESUME_PREFIX): v for k, v in resume.items()},
        resume=json.loads(header.get(RESUME_KEY, "{}")),
    )


def load_network(path: Path) -> tuple[FCN, ModelSpec]:
    """The trained network of a checkpoint, in evaluation mode, on the CPU.

    Raises:
        ModelError: Not a checkpoint, or its tensors do not fit its description.
    """
    checkpoint = load_checkpoint(path)
    network = build_network(checkpoint.spec)
    load_weights(network, checkpoint.weights, path)
    return network.eval(), checkpoint.spec


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load a state into a module, after names, shapes and values were checked.

    Raises:
        ModelError: A tensor is missing, superfluous, of another shape, or not finite.
    """
    expected = module.state_dict()
    # Files from before PyTorch 0.4.1 lack this counter, some of torchvision's among them; PyTorch
    # then takes 0, and nothing reads it.
    problems = [
        f"{name} is missing"
        for name in expected.keys() - weights.keys()
        if not name.endswith(".num_batches_tracked")
    ]
    problems += [f"{name} is not part of the network" for name in weights.keys() - expected.keys()]
    for name, tensor in weights.items():
        if name in expected and tensor.shape != expected[name].shape:
            shapes = f"{tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            problems.append(f"{name} has shape {shapes}")
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            problems.append(f"{name} has values that are not finite")
    if problems:
        raise ModelError(
            f"The weights in {path} do not fit: {sorted(problems)[0]}"
            + (f" (and {len(problems) - 1} more)." if len(problems) > 1 else "."),
        )
    module.load_state_dict(weights)
