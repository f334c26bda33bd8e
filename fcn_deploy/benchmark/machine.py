"""The machine that measures, and the libraries that take part."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from fcn_deploy import __version__
from fcn_deploy.doctor.gpu import ask_smi
from fcn_deploy.doctor.machine import look_at_machine
from fcn_deploy.doctor.packages import ONNX_RUNTIMES, read_packages

_PACKAGES = (
    "numpy",
    "pillow",
    *ONNX_RUNTIMES,
    "onnxruntime-ep-nv-tensorrt-rtx",
    "torch",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "cuda-bindings",
)
_LOADED = 0.25
"""Other work that takes more than this share of the cores is worth a note."""


def machine_of(root: Path = Path("/")) -> dict[str, Any]:
    """Processor, cores, memory, platform, GPUs and load; JSON types only.

    Args:
        root: Where ``/etc``, ``/proc`` and ``/sys`` lie.
    """
    found = {finding.name: finding for finding in look_at_machine(root, Path(), Path())}
    cores, memory = found["processor"].facts, found["memory"].facts
    jetson = found.get("Jetson")
    gpus = [
        {"name": gpu["name"], "driver": gpu["driver"], "memory_mib": gpu["memory_mib"]}
        for gpu in ask_smi().gpus
    ]
    total = memory.get("total_bytes")
    return {
        "cpu": cpu_name(root),
        "cores": cores["usable"],
        "cores_quota": cores["quota"],
        "memory_mib": None if total is None else total >> 20,
        "platform": found["platform"].says,
        "jetson": None if jetson is None else jetson.says,
        "gpus": gpus,
        "load": _load(),
        "power": None,
    }


def cpu_name(root: Path) -> str:
    """What the processor calls itself; a Jetson is called by its board."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^(?:model name|Hardware|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    if named:
        return " ".join(named[1].split())
    try:
        board = (root / "proc/device-tree/model").read_text(encoding="utf-8", errors="replace")
        return board.strip("\0\n ") or platform.machine()
    except OSError:
        return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the libraries that take part, as far as they are installed."""
    packages = read_packages(sys.path)
    known = {name: packages.versions[name] for name in _PACKAGES if name in packages.versions}
    return {"fcn-deploy": __version__, "python": platform.python_version(), **known}


def load_note(machine: dict[str, Any]) -> str:
    """What to say of other work that was under way at the start; empty if there was little."""
    load, cores = machine["load"], machine["cores"]
    if load is None or load < _LOADED * cores:
        return ""
    return (
        f"Other work was under way (load {load:g} on {cores} cores): milliseconds are too long; "
        "trust the ratios, as far as their spread lets you."
    )


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):  # Windows has none
        return None
