"""What was measured, as numbers: ``gpu-<device>.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu_parity import Verdict
from gpu_rounds import Samples


@dataclass(frozen=True)
class Row:
    """What is known of one contender on one job.

    Attributes:
        reason: Why there is no time; empty where there is one.
        samples: Seconds, round by round; empty where there is a reason.
        verdict: Its labels against the reference; ``None`` where there are none.
        memory_bytes: Device memory that it takes by itself, warm.
        busy_s: Seconds of a run in which the GPU works.
        ours: Whether it is fcn-deploy.
        alone: Whether copies between host and device are left out.
    """

    reason: str = ""
    samples: Samples = field(default_factory=list)
    verdict: Verdict | None = None
    memory_bytes: int | None = None
    busy_s: float | None = None
    ours: bool = False
    alone: bool = False


@dataclass(frozen=True)
class Table:
    """All contenders on one job.

    Attributes:
        network: Such as ``fcn32s:resnet18``.
        kind: ``crops`` or ``images``.
        job: Such as ``4x512x512``.
        pixels: That get a label.
        baseline: Name of the row that speeds are multiples of.
        reference: What labels were compared with.
        rows: By name of the contender.
    """

    network: str
    kind: str
    job: str
    pixels: int
    baseline: str
    reference: str
    rows: dict[str, Row]


@dataclass
class Results:
    """All that one run measured.

    Attributes:
        environment: Machine and versions.
        device: Name of the GPU; of a CPU where this only tries the benchmark out.
        is_gpu: Whether times are those of a GPU.
        rounds: Bursts of each contender.
        states: Of the GPU as nvidia-smi says them, by the moment.
        tables: One for each job.
    """

    environment: dict[str, Any]
    device: str
    is_gpu: bool
    rounds: int
    states: dict[str, dict[str, str]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """Name of the files without suffix."""
        words = re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")
        return f"gpu-{words}" if self.is_gpu else f"not-a-gpu-{words}"


def save_json(results: Results, folder: Path) -> Path:
    """Write the numbers; NaN has no place in them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{results.stem}.json"
    text = json.dumps(asdict(results), indent=1, allow_nan=False)
    # A burst in a line.
    text = re.sub(r"\[[-+.\de,\s]+\]", lambda match: " ".join(match[0].split()), text)
    path.write_text(text + "\n")
    return path


def load_json(path: Path) -> Results:
    """Read them back."""
    fields = json.loads(path.read_text())
    fields["tables"] = [_table(table) for table in fields["tables"]]
    return Results(**fields)


def _table(fields: Mapping[str, Any]) -> Table:
    rows = {}
    for name, row in fields["rows"].items():
        verdict = None if row["verdict"] is None else Verdict(*row["verdict"])
        rows[name] = Row(**{**row, "verdict": verdict})
    return Table(**{**fields, "rows": rows})
