"""The passport of an engine: a JSON beside it that says what it is, checked before it is loaded.

A plan is native code to whoever deserialises it. The passport proves that files are those that were
built together, not that their builder was honest.

An engine is several files under one passport, ``model.fp16.plan.json``::

    model.fp16.plan             whole: image to labels; for trtexec, Triton, and images in one piece
    model.fp16.trunk.plan       image to scores, which are merged on the host
    model.fp16.head.plan        merged scores to labels
    model.fp16.upsampling.npy   the weights of the head, for all that needs more than labels
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy.errors import EngineError, ModelError, UsageError
from fcn_deploy.plan_header import REBUILD
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import ModelSpec

if TYPE_CHECKING:
    from fcn_deploy.upsample import Border

FORMAT = 2
WHOLE, TRUNK, HEAD, UPSAMPLING = "whole", "trunk", "head", "upsampling"


@dataclass(frozen=True)
class Profile:
    """An optimization profile: (N, H, W) of the smallest, best and largest input.

    H and W are pixels of crops, or cells of scores for a head.
    """

    min: tuple[int, int, int]
    opt: tuple[int, int, int]
    max: tuple[int, int, int]

    def takes(self, shape: tuple[int, int, int]) -> bool:
        """Whether an input (N, H, W) lies inside."""
        return all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class Part:
    """One file of an engine.

    Attributes:
        file: Its name, beside the passport.
        sha256: Of its bytes.
        profiles: Of its input; none for weights.
    """

    file: str
    sha256: str
    profiles: tuple[Profile, ...] = ()


@dataclass(frozen=True)
class Precision:
    """What the built engine computes in, and how that is known.

    Attributes:
        computes: ``fp16`` or ``fp32``; ``int8`` where the plan holds 8-bit weights: whether the
            library multiplies them as such, it does not say (TensorRT-RTX may widen them).
        fp16_layers: Layers with weights whose input and output the parsed network types as FP16.
        layers: All of these: convolutions, transposed ones, matrix products.
        fp16_arithmetic: Share of the multiply-adds whose weights are FP16, in [0, 1].
        fp16_weights: Share of the convolutions' weights whose FP16 bytes lie in the plan, in
            [0, 1].
        fp32_weights: The same of their float32 bytes.
        kernels: Kernels of the built engine by the type they compute in, read back through the
            library's inspector; ``None`` where the engine cannot be loaded (no GPU).
        int8_weights: Share of 8-bit weights whose bytes lie in the plan, in [0, 1].
    """

    computes: str
    fp16_layers: int
    layers: int
    fp16_arithmetic: float
    fp16_weights: float
    fp32_weights: float
    kernels: dict[str, int] | None = None
    int8_weights: float = 0.0


@dataclass(frozen=True)
class Passport:
    """What is true of one engine.

    Attributes:
        parts: Its files, by role: ``whole``, and ``trunk``, ``head``, ``upsampling`` where the
            model can be merged as scores.
        source: Name of the ONNX file that it was built from.
        source_sha256: Of its bytes, but for the stamp of a verification.
        flavour: ``tensorrt`` or ``rtx``.
        version: Of the flavour's library.
        targets: Compute capabilities it was built for, such as ``sm86``; ``portable`` where the
            flavour chose.
        options: How it was built, and how it would be built again.
        precision: What it computes in.
        parity: How its graph compared with the model it was made from; ``None`` if it was not.
        spec: The model's description.
        halo: Pixels of a crop's border that what lies beyond it would change; ``None``: not known.
        border: What the upsampling sees beyond the scores.
        verified: What ``fcn-deploy verify`` found; ``None`` before that.
    """

    parts: Mapping[str, Part]
    source: str
    source_sha256: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    options: EngineOptions
    precision: Precision
    parity: dict[str, Any] | None
    spec: ModelSpec
    halo: int | None = None
    border: Border = "zeros"
    verified: dict[str, Any] | None = None

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Crops that it takes."""
        return self.parts[WHOLE].profiles

    def to_json(self) -> str:
        """Readable JSON."""
        fields = {"format": FORMAT, **asdict(self), "spec": json.loads(self.spec.to_json())}
        return json.dumps(fields, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Passport:
        """Read what :meth:`to_json` wrote.

        Raises:
            EngineError: Not a passport, or of another release.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != FORMAT:
                raise EngineError("The passport is of another release.", REBUILD)
            fields["spec"] = ModelSpec.from_json(json.dumps(fields["spec"]))
            fields["parts"] = {role: _part(part) for role, part in fields["parts"].items()}
            fields["options"] = _options(fields["options"])
            fields["precision"] = Precision(**fields["precision"])
            fields["targets"] = tuple(fields["targets"])
            passport = cls(**fields)
            _require_sound(passport)
        except EngineError:
            raise
        except (ModelError, UsageError) as error:
            raise EngineError(f"The passport cannot be read: {error.problem}", REBUILD) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise EngineError(f"The passport cannot be read: {error}.", REBUILD) from error
        except RecursionError as error:
            raise EngineError("The passport is no passport.", REBUILD) from error
        return passport


def _require_sound(passport: Passport) -> None:
    """Refuse values that would fail where they are used: the file may be anybody's."""
    if not passport.parts[WHOLE].profiles:
        raise ValueError("it has no profile")
    names = (passport.source, passport.source_sha256, passport.flavour, passport.version)
    if not all(isinstance(text, str) for text in (*names, *passport.targets)):
        raise TypeError("a text is none")
    if Path(passport.source).name != passport.source:
        raise ValueError(f"{passport.source!r} is not a file beside it")
    if type(passport.halo) not in (int, type(None)):
        raise TypeError(f"the halo is {passport.halo!r}")
    if passport.border not in ("zeros", "edge"):
        raise ValueError(f"the border is {passport.border!r}")
    passport.options.check(step=1)


def _part(fields: dict[str, Any]) -> Part:
    if not fields["file"] or Path(fields["file"]).name != fields["file"]:
        raise ValueError(f"{fields['file']!r} is not a file beside it")
    profiles = [Profile(**{k: _nhw(v) for k, v in p.items()}) for p in fields["profiles"]]
    return Part(fields["file"], str(fields["sha256"]), tuple(profiles))


def _options(fields: dict[str, Any]) -> EngineOptions:
    shapes = [
        Shapes(_hw(entry["min_hw"]), _hw(entry["opt_hw"]), _hw(entry["max_hw"]), entry["max_batch"])
        for entry in fields.pop("profiles")
    ]
    targets = tuple(fields.pop("targets"))
    return EngineOptions(**fields, profiles=tuple(shapes), targets=targets)


def _hw(values: list[int]) -> tuple[int, int]:
    height, width = (int(value) for value in values)
    return height, width


def _nhw(values: list[int]) -> tuple[int, int, int]:
    batch, height, width = (int(value) for value in values)
    return batch, height, width
