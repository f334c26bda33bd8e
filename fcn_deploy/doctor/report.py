"""What was found on a machine, and what follows from it: values, and how they become JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["ok", "warning", "problem", "absent"]
"""``problem``: something that is installed is broken. ``absent``: optional, and not there."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: Under which heading it is shown.
        name: What it is.
        status: How it is.
        says: The same in one line for people.
        facts: The same for machines; JSON types only.
        remedy: The exact command that mends it, or where none does, what to do; may be empty.
    """

    area: str
    name: str
    status: Status
    says: str
    facts: dict[str, Any] = field(default_factory=dict)
    remedy: str = ""


@dataclass(frozen=True)
class Ability:
    """One thing that fcn-deploy does, and whether it can be done here.

    Attributes:
        command: What a person would type.
        possible: Whether it can be done.
        says: Where it computes; or, if it cannot be done, why.
        remedy: What would make it possible; may be empty.
    """

    command: str
    possible: bool
    says: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """All of it.

    Attributes:
        version: Of fcn-deploy.
        findings: In the order in which they are read best.
        abilities: One for each command, and for each backend of ``segment``.
    """

    version: str
    findings: tuple[Finding, ...]
    abilities: tuple[Ability, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What is broken."""
        return tuple(finding for finding in self.findings if finding.status == "problem")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What works, but not as well as it could."""
        return tuple(finding for finding in self.findings if finding.status == "warning")

    @property
    def healthy(self) -> bool:
        """Whether some backend can segment here, and nothing that is installed is broken."""
        segments = (a.possible for a in self.abilities if a.command.startswith("segment --backend"))
        return not self.problems and any(segments)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"healthy": self.healthy, **asdict(self)}
