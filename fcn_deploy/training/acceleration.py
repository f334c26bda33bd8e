"""What makes a training faster on the device that it has: number formats and compilation."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fcn_deploy.errors import DeviceError

_LOG = logging.getLogger("fcn_deploy")
_STEPS_THAT_PAY = 500
_PIXELS_THAT_PAY = 160 * 160

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_precision(wanted: str, device: torch.device) -> str:
    """The number format of the convolutions: ``fp32``, ``bf16`` or ``fp16``.

    Args:
        wanted: One of these, or ``auto``: bf16 where the device multiplies it, or else fp16 on GPUs
            and fp32 on CPUs, which would only imitate it at a tenth of the speed.
        device: Where the training runs.

    Raises:
        DeviceError: ``fp16`` on a CPU: gradients would be computed by imitation.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return wanted if wanted != "auto" else ("bf16" if native else "fp16")
    if wanted == "fp16":
        raise DeviceError(
            "CPUs do not train in fp16.", "Pass --precision auto: bf16 where the CPU has it."
        )
    if wanted == "auto":
        can = torch.cpu.get_capabilities()
        return "bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else "fp32"
    return wanted


def worth_compiling(wanted: str, device: torch.device, steps: int, pixels: int) -> bool:
    """Whether ``torch.compile`` pays for the half minute that it takes.

    Args:
        wanted: ``on``, ``off``, or ``auto``: if there is a compiler, and work for it.
        device: Where the training runs.
        steps: Steps of the whole training, so that a resumed one decides alike.
        pixels: Of a crop.
    """
    if wanted != "auto":
        return wanted == "on"
    if steps < _STEPS_THAT_PAY or pixels < _PIXELS_THAT_PAY:
        return False
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


@contextmanager
def without_advice() -> Iterator[None]:
    """Where there is a CUDA toolkit but no GPU, PyTorch warns of it, compiling for the CPU."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def repeatable(wanted: bool) -> Iterator[None]:
    """Refuse, within, operations of PyTorch without a repeatable result, if that is wanted."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class Compiled:
    """A function compiled by ``torch.compile`` at its first call; itself where that fails."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._plain = function
        self._function: Callable[..., Any] = torch.compile(function, dynamic=False)
        self._works = False

    def __call__(self, *arguments: Any) -> Any:
        """Call it; a failure of the compiler is told once, in a warning."""
        if self._works:
            return self._function(*arguments)
        try:
            with without_advice():
                result = self._function(*arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            _LOG.warning("Training goes on without torch.compile, which failed: %s", reason)
            self._function = self._plain
            result = self._plain(*arguments)
        self._works = True
        return result
