"""A process of its own that loads one model, runs it, and says what memory that took."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.benchmark.contenders import Contender
from fcn_deploy.benchmark.gpus import memory_used_mib
from fcn_deploy.errors import FcnDeployError

TIMEOUT_S = 600.0
_RUNS = 3
"""The first one allocates, later ones show whether that grows."""

_STATUS = Path("/proc/self/status")
_MARK = "fcn-deploy memory: "


def memory_of(
    contender: Contender,
    shape: tuple[int, int, int],
    provider: str,
    *,
    trust_engine: bool = False,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, float | None] | str:
    """Memory of a model that is loaded and run in a new process.

    Args:
        contender: What to load.
        shape: Batch, height and width to run it on.
        provider: Where.
        trust_engine: Load a plan without a passport, too.
        timeout_s: When it is given up.

    Returns:
        ``peak_memory_mib`` and ``gpu_memory_mib``; or why they are not known.
    """
    asked = {
        "path": str(contender.path),
        "kind": contender.kind,
        "shape": shape,
        "provider": provider,
        "trust_engine": trust_engine,
    }
    code = (
        f"import sys; sys.path[:] = {list(sys.path)!r}; "
        f"from fcn_deploy.benchmark.child import answer; answer({json.dumps(asked)!r})"
    )
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} seconds"
    _, mark, answered = ended.stdout.rpartition(_MARK)
    if not mark:
        last = ended.stderr.strip().splitlines()[-1:]
        return f"the process ended with code {ended.returncode}" + "".join(f": {x}" for x in last)
    found: dict[str, Any] = json.loads(answered)
    return str(found["error"]) if "error" in found else found


def answer(question: str) -> None:
    """What the process does: load, run, and print one line of JSON."""
    asked = json.loads(question)
    try:
        found: dict[str, Any] = _measure(
            Contender(Path(asked["path"]), asked["kind"], named=True),
            tuple(asked["shape"]),
            asked["provider"],
            trust_engine=asked["trust_engine"],
        )
    except FcnDeployError as error:
        found = {"error": error.problem}
    sys.stdout.write(f"\n{_MARK}{json.dumps(found)}\n")


def _measure(
    contender: Contender, shape: Sequence[int], provider: str, *, trust_engine: bool
) -> dict[str, float | None]:
    before = memory_used_mib()
    crops = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    with contender.open(provider, trust_engine=trust_engine) as backend:
        for _ in range(_RUNS):
            backend.labels(crops)
        after = memory_used_mib()
        on_device = before is not None and after is not None and runs_on_gpu(backend.provider)
    return {
        "peak_memory_mib": round(_peak_bytes() / 2**20, 1),
        "gpu_memory_mib": after - before if on_device and after and before is not None else None,
    }


def runs_on_gpu(provider: str) -> bool:
    """Whether that is a GPU, in whichever vendor's spelling."""
    return provider not in ("cpu", "CPUExecutionProvider")


def _peak_bytes() -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Of a child, this begins with the peak of the process that started it, hence not first.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
