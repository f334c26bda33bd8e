"""One release of one flavour of the FAKE of TensorRT: its device, its names, how it fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fake_cuda import FakeCuda
from fake_memory import Allocation
from fake_plan import MAGIC
from fake_streams import CudaError
from fake_tensorrt_names import Severity

ACTIVATION_ALIGNMENT = 256
"""Bytes; what addresses of tensors and of device memory must be multiples of, as documented."""

_BYTES_PER_ELEMENT = 8  # of an input; invented


@dataclass
class Library:
    """What the classes of one FAKE module share.

    Attributes:
        cuda: The device.
        flavour: ``tensorrt`` or ``rtx``.
        version: Of the release.
        enums: By name.
        classes: By name.
    """

    cuda: FakeCuda
    flavour: str
    version: str
    enums: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, Any] = field(default_factory=dict)

    @property
    def magic(self) -> bytes:
        """First bytes of the plans that it loads."""
        return MAGIC[self.flavour]

    def error(self, logger: Any, where: str, what: object) -> None:
        """Log an error."""
        logger.log(Severity.ERROR, f"FAKE {where}: {what}")

    def failed(self, name: str, logger: Any) -> bool:
        """Whether a test wants this call to fail; then it is in the log."""
        fault = self.cuda.fault(name)
        if fault is not None:
            self.error(logger, name, fault.log or "a test wants this to fail")
        return fault is not None

    def require_device(self) -> None:
        """Refuse work where the device has failed, or while something captures."""
        if self.cuda.broken:
            raise CudaError(self.cuda.broken)
        self.cuda.streams.forbid_unsafe()

    def allocate(self, size: int, owner: str) -> Allocation:
        """Device memory of the library's own.

        Raises:
            MemoryError: The device has too little left.
        """
        allocation = self.cuda.memory.allocate("device", size, owner)
        if allocation is None:
            raise MemoryError(f"OutOfMemory (Requested size was {size} bytes.)")
        return allocation


def activation_bytes(elements: int) -> int:
    """Device memory that an inference needs; proportional to what goes in.

    Args:
        elements: Of all inputs together.
    """
    size = elements * _BYTES_PER_ELEMENT
    return -(-size // ACTIVATION_ALIGNMENT) * ACTIVATION_ALIGNMENT
