"""What ONNX Runtime raises, in words; its exceptions share no public base class."""

from __future__ import annotations

import re

from fcn_deploy.errors import DeviceError, DeviceMemoryError

_SIZE = re.compile(r"(?:buffer of size|Requested size was|requested bytes of) (\d+)")
_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|failed to allocate memory|smaller than requested bytes"
    r"|bad_alloc|bad allocation|ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA failure 2\b",
    re.IGNORECASE,
)

# What matters of messages that are mostly places in ONNX Runtime's own source.
_CORES = (re.compile(r"(CU\w+ failure \d+: [^;\n]+?) *;"), re.compile(r"with error: ([^\n]+)"))
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


def cause_of(error: Exception) -> str:
    """Why it was raised, in one line."""
    text = str(error)
    for core in _CORES:
        if found := core.search(text):
            return found[1].strip().rstrip(".")
    lines = text.splitlines() or [type(error).__name__]
    return _PREFIX.sub("", lines[0]).strip().rstrip(".")


def is_out_of_memory(error: Exception) -> bool:
    """Whether less work at once might have been done."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


def run_failure(error: Exception, crops: tuple[int, ...], provider: str) -> DeviceError:
    """What to raise when crops could not be computed.

    Args:
        error: What ONNX Runtime raised.
        crops: Shape of the crops, (N, H, W, 3).
        provider: The execution provider.
    """
    shape = "x".join(str(size) for size in crops)
    if not is_out_of_memory(error):
        return DeviceError(
            f"ONNX Runtime failed on crops of {shape}: {cause_of(error)}.",
            "If memory is short, pass a smaller --tile.",
        )
    size = _SIZE.search(str(error))
    piece = f": a piece of {int(size[1]) / 2**20:,.0f} MiB was refused" if size else ""
    return DeviceMemoryError(
        f"{provider} has too little memory for crops of {shape}{piece}.",
        "Pass a smaller --tile, or end what else uses that memory.",
    )
