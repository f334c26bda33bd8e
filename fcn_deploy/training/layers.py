"""Layers of a network one by one: what they hold, and what they make of something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fcn_deploy.training.checkpoint import load_network
from fcn_deploy.training.folding import folded
from fcn_deploy.training.network import Normalising

Floats = NDArray[np.float32]

NORMALISATION, UPSAMPLING = "normalisation", "upsample"
"""Names of the first and the last place in a network."""


class Layers:
    """The layers with weights of a checkpoint, batch norm folded, in float32 on the CPU.

    Raises:
        ModelError: Not a usable checkpoint.
    """

    def __init__(self, checkpoint: Path) -> None:
        network, self.spec = load_network(checkpoint)
        self._network = folded(network)
        self._entry = Normalising(self.spec)
        self._layers: dict[str, nn.Module] = {
            name: module
            for name, module in self._network.named_modules()
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
        }

    def weights(self) -> dict[str, Floats]:
        """Weights and biases by name, such as ``body.0.weight``."""
        return {
            f"{name}.{kind}": value.detach().numpy()
            for name, module in self._layers.items()
            for kind, value in module.named_parameters()
        }

    def outputs(self, crops: NDArray[np.uint8]) -> dict[str, Floats]:
        """What every layer returns, in the order of execution, for crops (N, H, W, 3)."""
        found: dict[str, Floats] = {}

        def keep(name: str) -> object:
            def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                found[name] = output.clone().numpy()  # the ReLU that follows works in place

            return hook

        hooks = [
            module.register_forward_hook(keep(name))  # type: ignore[arg-type]
            for name, module in self._layers.items()
        ]
        try:
            with torch.inference_mode():
                image = self._entry.normalise(torch.from_numpy(np.ascontiguousarray(crops)))
                found[NORMALISATION] = image.numpy()
                self._network(image)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def apply(self, name: str, inputs: Floats) -> Floats:
        """What the layer of that name makes of ``inputs``."""
        with torch.inference_mode():
            result: Floats = self._layers[name](torch.from_numpy(inputs)).numpy()
        return result
