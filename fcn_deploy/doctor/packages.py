"""Which distributions are installed, and what fcn-deploy's extras need of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions

ONNX_RUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
    "onnxruntime-vitisai",
    "onnxruntime-silicon",
    "onnxruntime-training",
    "onnxruntime-azure",
    "ort-nightly",
    "ort-nightly-gpu",
)
"""Distributions that all bring the module ``onnxruntime``."""

_COMPARE = {
    ">=": lambda order: order >= 0,
    "<=": lambda order: order <= 0,
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    ">": lambda order: order > 0,
    "<": lambda order: order < 0,
}


@dataclass(frozen=True)
class Requirement:
    """A line of a package's requirements.

    Attributes:
        name: Distribution, normalised.
        clauses: Such as ``>=2.10``, parted.
        extra: The extra that it belongs to; empty for none.
    """

    name: str
    clauses: tuple[tuple[str, str], ...]
    extra: str

    def met_by(self, version: str) -> bool:
        """Whether that version is one that it allows, as far as numbers say."""
        return all(_COMPARE[sign](_order(version, bound)) for sign, bound in self.clauses)

    def __str__(self) -> str:
        return self.name + ",".join(sign + bound for sign, bound in self.clauses)


@dataclass(frozen=True)
class Packages:
    """What is installed.

    Attributes:
        versions: Of each distribution, by its normalised name.
        requirements: Of fcn-deploy, those of its extras included; empty if it is not installed.
        path: Where modules are looked for, as ``sys.path``.
        pip: How pip of this Python is called.
        of_torchvision: What torchvision needs of torch; ``None`` if nothing is known.
    """

    versions: dict[str, str]
    requirements: tuple[Requirement, ...]
    path: tuple[str, ...]
    pip: str = "pip"
    of_torchvision: Requirement | None = None

    def version(self, *names: str) -> str | None:
        """Version of the first of these that is installed."""
        return next((self.versions[name] for name in names if name in self.versions), None)

    def has_module(self, name: str) -> bool:
        """Whether a module can be found, by whatever it was installed: apt writes no metadata."""
        spec = PathFinder.find_spec(name, list(self.path))
        return spec is not None and spec.origin is not None  # a mere folder has no origin

    def onnx_runtimes(self) -> tuple[str, ...]:
        """Installed distributions that bring the module ``onnxruntime``."""
        return tuple(name for name in ONNX_RUNTIMES if name in self.versions)

    def missing(self, extra: str) -> list[str]:
        """Packages of an extra that are not installed; any ONNX Runtime is as good as another."""
        if not self.requirements:
            return ["fcn-deploy"]
        return [
            need.name
            for need in self.requirements
            if need.extra == extra
            and need.name not in self.versions
            and not (need.name in ONNX_RUNTIMES and self.onnx_runtimes())
            and not self.has_module(need.name.replace("-", "_"))
        ]

    def too_old(self) -> list[tuple[Requirement, str]]:
        """Requirements that an installed package does not meet, and its version."""
        found = {
            str(need): (need, self.versions[need.name])
            for need in self.requirements
            if need.name in self.versions
            and need.extra not in ("dev", "bench")
            and not need.met_by(self.versions[need.name])
        }
        return list(found.values())

    def install(self, extra: str) -> str:
        """The command that installs an extra."""
        return f'{self.pip} install "fcn-deploy[{extra}]"'


def read_packages(path: Sequence[str], pip: str = "pip") -> Packages:
    """Read what is installed on a search path, which is ``sys.path`` for this process itself."""
    versions: dict[str, str] = {}
    requirements: tuple[Requirement, ...] = ()
    of_torchvision = None
    for found in distributions(path=list(path)):
        if "Name" not in found.metadata or "Version" not in found.metadata:
            continue  # what a killed pip leaves behind
        name = normal(found.metadata["Name"])
        if name in versions:  # the first on the path is the one that is imported
            continue
        versions[name] = found.version
        if name == "fcn-deploy":
            requirements = tuple(_requirements(found))
        elif name == "torchvision":
            needs = [need for need in _requirements(found) if need.name == "torch"]
            of_torchvision = needs[0] if needs else None
    return Packages(versions, requirements, tuple(path), pip, of_torchvision)


def normal(name: str) -> str:
    """A distribution's name in the spelling that pip compares."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(found: Distribution) -> Iterable[Requirement]:
    for line in found.requires or []:
        need, _, marker = line.partition(";")
        match = re.match(r"\s*([\w.-]+)\s*(?:\[[^]]*\])?\s*(.*)", need)
        if match is None:
            continue
        clauses = re.findall(r"(>=|<=|==|!=|>|<)\s*([\d.]+)", match[2])
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        yield Requirement(normal(match[1]), tuple(clauses), extra[1] if extra else "")


def _order(version: str, bound: str) -> int:
    """-1, 0 or 1; as many numbers as the bound has are compared, so that 2.10 is also 2.10.1+cpu.

    ``>`` and ``<`` of a release's own patches would need more; nobody writes such requirements.
    """
    limit = [int(number) for number in bound.strip(".").split(".")]
    numbers = [int(number) for number in re.findall(r"\d+", version.split("+")[0])]
    mine = [*numbers, *[0] * len(limit)][: len(limit)]
    return (mine > limit) - (mine < limit)
