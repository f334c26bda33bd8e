"""The first bytes of a plan: which library wrote it, read without that library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.errors import EngineError, ModelError

MAGIC = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
"""First bytes of a plan, by flavour."""

_OTHERS = {
    b"\x7fELF": "a program or library",
    b"PK\x03\x04": "a ZIP archive",
    b"<htm": "a web page",
    b"<!DO": "a web page",
    b"vers": "a Git LFS pointer: git lfs pull fetches the file itself",
}
_SIZE_AT = 16
REBUILD = "Build it again: fcn-deploy build-engine MODEL.onnx --fp16"


@dataclass(frozen=True)
class PlanHeader:
    """What the first bytes of a plan say.

    Attributes:
        flavour: ``tensorrt`` or ``rtx``.
        size: Bytes of the whole plan, as it says.
    """

    flavour: str
    size: int


def read_header(plan: Path) -> PlanHeader:
    """Read the header of a plan, and compare the size it speaks of with the file's.

    The library itself answers a wrong file with an assertion of its own, at best.

    Raises:
        ModelError: Cannot be read, or not a plan at all.
        EngineError: A plan cut short, or something follows or precedes it.
    """
    try:
        with plan.open("rb") as file:
            start = file.read(_SIZE_AT + 8)
        there = plan.stat().st_size
    except OSError as error:
        raise ModelError(f"{plan} cannot be read: {error.strerror}.") from error
    if start[:4] not in MAGIC:
        if any(magic in _first_bytes(plan) for magic in MAGIC):
            raise EngineError(f"{plan} is a plan with something written before it.", REBUILD)
        what = _OTHERS.get(start[:4], "something else" if start else "an empty file")
        raise EngineError(f"{plan} is not a TensorRT plan, but {what}.", REBUILD)
    header = PlanHeader(MAGIC[start[:4]], _size(start))
    # Of TensorRT's own header only the magic is documented.
    if header.flavour == "rtx" and header.size != there:
        raise EngineError(
            f"{plan} is damaged: it speaks of {header.size} bytes, and has {there}.", REBUILD
        )
    return header


def _size(start: bytes) -> int:
    return int.from_bytes(start[_SIZE_AT : _SIZE_AT + 8], "little")


def _first_bytes(plan: Path) -> bytes:
    with plan.open("rb") as file:
        return file.read(1 << 16)
