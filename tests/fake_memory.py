"""A FAKE of a GPU's memory, and of pinned memory: host memory at real addresses, and who owns it.

What a GPU would answer with wrong pixels, or with the end of the process, is an AssertionError.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 512
"""Bytes; what addresses of allocations are multiples of, as those of CUDA are."""

_POISON = 0xFF  # NaN in every float type, and the ignored label
_POISONED = 64 << 20  # larger allocations stay untouched, so that they cost no memory here
_KEPT = 256 << 20  # bytes of freed memory whose addresses are not used again


class Allocation:
    """Memory of the device, or pinned memory of the host.

    Attributes:
        kind: ``device`` or ``pinned``.
        owner: Who asked for it.
        live: Whether it has not been freed.
    """

    def __init__(self, kind: str, size: int, owner: str) -> None:
        self.kind, self.size, self.owner, self.live = kind, size, owner, True
        self._whole = np.empty(size + ALIGNMENT, np.uint8)
        start = -self._whole.ctypes.data % ALIGNMENT
        self.bytes: NDArray[np.uint8] = self._whole[start : start + size]
        self.address = int(self.bytes.ctypes.data)
        self.poison()

    def __repr__(self) -> str:
        return f"{self.kind} memory of {self.size} bytes at {self.address:#x} ({self.owner})"

    def poison(self) -> None:
        """Overwrite the content: what nobody wrote, or what was freed, must not look right."""
        if self.size <= _POISONED:
            self.bytes.fill(_POISON)


@dataclass(frozen=True)
class Span:
    """Some bytes of one allocation; a graph keeps it, and the allocation with it."""

    allocation: Allocation
    address: int
    size: int

    @property
    def bytes(self) -> NDArray[np.uint8]:
        start = self.address - self.allocation.address
        return self.allocation.bytes[start : start + self.size]

    def overlaps(self, other: Span) -> bool:
        return (
            self.address < other.address + other.size and other.address < self.address + self.size
        )

    def require_live(self, what: str) -> None:
        assert self.allocation.live, f"use after free: {what} touches freed {self.allocation}"


class Memory:
    """All allocations, the freed ones too, so that their addresses are known when used again.

    Args:
        total: Bytes of the device.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.live: dict[int, Allocation] = {}
        self._freed: deque[Allocation] = deque()

    @property
    def free_bytes(self) -> int:
        """Bytes of the device that nobody has taken."""
        taken = sum(_rounded(a.size) for a in self.live.values() if a.kind == "device")
        return self.total - taken

    def allocate(self, kind: str, size: int, owner: str) -> Allocation | None:
        """Memory filled with 0xFF; ``None`` where the device has too little left."""
        if kind == "device" and _rounded(size) > self.free_bytes:
            return None
        allocation = Allocation(kind, size, owner)
        self.live[allocation.address] = allocation
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Free it; its address is not given out again for a while."""
        assert allocation.live, f"double free of {allocation}"
        del self.live[allocation.address]
        allocation.live = False
        allocation.poison()
        self._freed.append(allocation)
        while sum(freed.size for freed in self._freed) > _KEPT:
            self._freed.popleft()

    def owning(self, address: int, what: str) -> Allocation | None:
        """The allocation that an address lies in; ``None`` for pageable memory of the host."""
        for allocation in self.live.values():
            if allocation.address <= address < allocation.address + max(allocation.size, 1):
                return allocation
        for allocation in self._freed:
            inside = allocation.address <= address < allocation.address + allocation.size
            assert not inside, f"use after free: {what} at {address:#x}, freed {allocation}"
        return None

    def span(self, kind: str, address: int, size: int, what: str) -> Span:
        """Bytes of one allocation, which must be of this kind and hold all of them."""
        allocation = self.owning(address, what)
        assert allocation is not None, f"{what}: {address:#x} is no address of {kind} memory"
        assert allocation.kind == kind, f"{what}: {kind} memory is needed, this is {allocation}"
        room = allocation.address + allocation.size - address
        assert size <= room, (
            f"{what}: {size} bytes at {address:#x} go beyond {allocation}, which has {room} there"
        )
        return Span(allocation, address, size)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def pageable(address: int, size: int, what: str) -> NDArray[np.uint8]:
    """Bytes of ordinary host memory, such as an array's; the address is believed."""
    assert address > 1 << 16, f"{what}: {address:#x} is no address of memory"
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
