"""The passport of a plan: a JSON beside it that says what it is, checked before it is loaded.

A plan is native code to whoever deserialises it. The passport proves that a file is the one that
was built, not that its builder was honest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.artifacts import sha256, write_atomically
from fcn_deploy.errors import ModelError
from fcn_deploy.spec import ModelSpec

MAGIC = {b"ftrt": "tensorrt", b"vtrt": "rtx"}
"""First bytes of a plan, by flavour."""

REBUILD = "Build it again: fcn-deploy build-engine MODEL.onnx --fp16"


@dataclass(frozen=True)
class Profile:
    """An optimization profile: (N, H, W) of the smallest, best and largest input."""

    min: tuple[int, int, int]
    opt: tuple[int, int, int]
    max: tuple[int, int, int]


@dataclass(frozen=True)
class Precision:
    """What the built engine computes in, and how that is known.

    Attributes:
        computes: ``fp16`` or ``fp32``.
        fp16_layers: Layers with weights whose input and output the parsed network types as FP16.
        layers: All of these: convolutions, transposed ones, matrix products.
        fp16_weights: Share of the convolutions' weights whose FP16 bytes lie in the plan, in
            [0, 1].
        fp32_weights: The same of their float32 bytes.
    """

    computes: str
    fp16_layers: int
    layers: int
    fp16_weights: float
    fp32_weights: float


@dataclass(frozen=True)
class Passport:
    """What is true of one plan file.

    Attributes:
        plan_sha256: Of the plan's bytes.
        source: Name of the ONNX file that it was built from.
        source_sha256: Of its bytes.
        flavour: ``tensorrt`` or ``rtx``.
        version: Of the flavour's library.
        targets: Compute capabilities it was built for, such as ``sm86``; ``portable`` where the
            flavour chose.
        profile: The shapes it takes.
        precision: What it computes in.
        parity: How its graph compared with the model it was made from; ``None`` if it was not.
        spec: The model's description.
        halo: Pixels of a crop's border that what lies beyond it would change; ``None``: not known.
    """

    plan_sha256: str
    source: str
    source_sha256: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    profile: Profile
    precision: Precision
    parity: dict[str, Any] | None
    spec: ModelSpec
    halo: int | None = None

    def to_json(self) -> str:
        """Readable JSON."""
        fields = {"format": 1, **asdict(self), "spec": json.loads(self.spec.to_json())}
        return json.dumps(fields, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Passport:
        """Read what :meth:`to_json` wrote.

        Raises:
            ModelError: Not a passport.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != 1:
                raise ModelError("The passport is of another release.", REBUILD)
            fields["spec"] = ModelSpec.from_json(json.dumps(fields["spec"]))
            fields["profile"] = Profile(**{k: _nhw(v) for k, v in fields["profile"].items()})
            fields["precision"] = Precision(**fields["precision"])
            fields["targets"] = tuple(fields["targets"])
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(f"The passport cannot be read: {error}.", REBUILD) from error


def _nhw(values: list[int]) -> tuple[int, int, int]:
    batch, height, width = (int(value) for value in values)
    return batch, height, width


def passport_path(plan: Path) -> Path:
    """Where the passport of a plan lies."""
    return plan.with_name(plan.name + ".json")


def write_plan(path: Path, plan: bytes, passport: Passport) -> None:
    """Write a plan and its passport.

    The passport goes last: a crash in between leaves a plan that is refused, never a wrong one.

    Raises:
        EnvironmentFault: A file cannot be written.
    """
    write_atomically(path, plan)
    write_atomically(passport_path(path), passport.to_json().encode())


def read_passport(plan: Path) -> Passport:
    """The passport of a plan, after the plan was found to be the one it speaks of.

    Raises:
        ModelError: No plan, no passport, or they do not belong together.
    """
    try:
        with plan.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"{plan} cannot be read: {error.strerror}.") from error
    if magic not in MAGIC:
        raise ModelError(f"{plan} is not a TensorRT plan, or something precedes it.", REBUILD)
    sidecar = passport_path(plan)
    if not sidecar.is_file():
        raise ModelError(
            f"{plan} has no passport beside it, {sidecar.name}: who built it, and for what?",
            "A plan is native code. " + REBUILD,
        )
    try:
        text = sidecar.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The passport {sidecar} cannot be read: {error}.", REBUILD) from error
    passport = Passport.from_json(text)
    if passport.flavour != MAGIC[magic]:
        raise ModelError(f"{plan} is a plan of {MAGIC[magic]}, its passport is not.", REBUILD)
    if sha256(plan) != passport.plan_sha256:
        raise ModelError(f"{plan} is not the file that its passport speaks of.", REBUILD)
    return passport
