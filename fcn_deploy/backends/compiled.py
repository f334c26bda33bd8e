"""PyTorch with ``torch.compile``: the other reference, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.backends.eager import EagerBackend, pick_device
from fcn_deploy.errors import DeviceError, MissingExtraError
from fcn_deploy.spec import ModelSpec

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "train") from error

from fcn_deploy.training.acceleration import without_advice
from fcn_deploy.training.checkpoint import load_network
from fcn_deploy.training.network import FCN

Compiler = str | Callable[..., Any]
"""``inductor``, another backend of ``torch.compile``, or a function that is one."""


class CompiledBackend(EagerBackend):
    """A network that is compiled when its first crops come; see the Backend protocol.

    Crops of another shape are compiled for once more, and for any shape from then on.

    Args:
        network: As :class:`~fcn_deploy.backends.eager.EagerBackend` takes it.
        spec: The same.
        device: The same.
        compiler: What makes code of it.
    """

    def __init__(
        self, network: FCN, spec: ModelSpec, device: torch.device, compiler: Compiler = "inductor"
    ) -> None:
        super().__init__(network, spec, device)
        self._model.compile(backend=compiler)

    def _run(self, crops: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        try:
            with without_advice():
                return super()._run(crops)
        except DeviceError as error:
            cause = error.__cause__
            if not isinstance(cause, torch._dynamo.exc.TorchDynamoException):
                raise
            raise DeviceError(
                f"torch.compile does not work here: {_reason(cause)}",
                "It needs a C++ compiler on the CPU, and triton on a GPU.",
            ) from cause


def _reason(error: Exception) -> str:
    """The line that says what happened, not the one that says who reports it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith("raised:")), type(error).__name__)


def open_compiled(path: Path, provider: str = "auto") -> CompiledBackend:
    """Load a checkpoint; ``provider`` is a PyTorch device.

    Raises:
        ModelError: Not a usable checkpoint.
        DeviceError: There is no such device.
    """
    network, spec = load_network(path)
    return CompiledBackend(network, spec, pick_device(provider))
