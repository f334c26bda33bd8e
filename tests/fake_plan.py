"""FAKE plans: the header of a real plan, and an ONNX file instead of an engine."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TENSORRT, RTX = b"ftrt", b"vtrt"
MAGIC = {"tensorrt": TENSORRT, "rtx": RTX}
VERSIONS = {TENSORRT: "10.16.1.11", RTX: "1.7.1.116"}
"""Releases that a plan and a module are of, where a test names none."""

HEADER = 64  # bytes; what TensorRT-RTX calls the size of its header
_SIZE_AT, _VERSION_AT = 16, 24

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class PlanContents:
    """What a FAKE plan holds.

    Attributes:
        name: What the engine is called; room for metadata.
        profiles: Smallest, best and largest shape of each input.
        capability: Compute capability that it was built for; ``None`` for any.
    """

    name: str
    profiles: list[dict[str, list[Shape]]]
    capability: tuple[int, int] | None
    onnx: bytes = field(repr=False)


class PlanError(Exception):
    """A plan that a library does not load.

    Args:
        problem: In words.
        diagnosis: Name of a member of ``EngineInvalidityDiagnostics``.
    """

    def __init__(self, problem: str, diagnosis: str) -> None:
        super().__init__(problem)
        self.diagnosis = diagnosis


def fake_plan(
    onnx_bytes: bytes,
    profiles: Sequence[Profile | tuple[Shape, Shape, Shape]],
    *,
    name: str = "",
    magic: bytes = TENSORRT,
    version: str = "",
    capability: tuple[int, int] | None = None,
) -> bytes:
    """Bytes that the FAKE of TensorRT loads, and runs by ONNX Runtime on the CPU.

    Args:
        onnx_bytes: A serialised model.
        profiles: (min, opt, max) of the whole shape of each input, by its name; the triple alone
            where there is one input.
        name: What ``engine.name`` will be.
        magic: Of the flavour.
        version: Of the library that built it; for its flavour's usual one, nothing.
        capability: Compute capability of the only device that loads it.
    """
    named = [
        dict(profile) if isinstance(profile, Mapping) else {"": profile} for profile in profiles
    ]
    about = {"fake": True, "name": name, "profiles": named, "capability": capability}
    text = json.dumps(about).encode()
    body = struct.pack("<Q", len(text)) + text + onnx_bytes
    header = bytearray(HEADER)
    header[:4] = magic
    struct.pack_into("<Q", header, _SIZE_AT, HEADER + len(body))
    header[_VERSION_AT : _VERSION_AT + 4] = version_bytes(version or VERSIONS[magic])
    return bytes(header) + body


def read_plan(plan: bytes, magic: bytes, version: str, capability: tuple[int, int]) -> PlanContents:
    """What a FAKE plan holds.

    Raises:
        PlanError: Of another flavour, release or device, or damaged.
    """
    problem = header_problem(plan, magic, version)
    if problem is not None:
        raise problem
    if struct.unpack_from("<Q", plan, _SIZE_AT)[0] != len(plan):
        raise PlanError("Serialization (plan.header.size == blobSize failed.)", "MALFORMED_ENGINE")
    (length,) = struct.unpack_from("<Q", plan, HEADER)
    about = json.loads(plan[HEADER + 8 : HEADER + 8 + length])
    built_for = about["capability"] and tuple(about["capability"])
    if built_for not in (None, capability):
        raise PlanError(f"built for compute {built_for}, this is {capability}", "UNSUPPORTED_CC")
    profiles = [
        {name: [tuple(shape) for shape in shapes] for name, shapes in profile.items()}
        for profile in about["profiles"]
    ]
    return PlanContents(about["name"], profiles, built_for, plan[HEADER + 8 + length :])


def header_problem(plan: bytes, magic: bytes, version: str) -> PlanError | None:
    """What keeps a library from loading a plan, as far as its first bytes tell."""
    if len(plan) < HEADER + 8 or plan[:4] != magic:
        return PlanError("Serialization (magicTag == kEXPECTED_MAGIC_TAG)", "MALFORMED_ENGINE")
    there, here = bytes(plan[_VERSION_AT : _VERSION_AT + 4]), version_bytes(version)
    if there != here:
        written, running = (".".join(str(part) for part in one) for one in (there, here))
        return PlanError(f"the plan is of version {written}, not {running}", "VERSION_MISMATCH")
    return None


def version_bytes(version: str) -> bytes:
    """A release as four bytes: ``10.3.0`` is 10, 3, 0, 0."""
    parts = [int(part) for part in version.split(".")]
    return bytes([*parts, 0, 0, 0][:4])
