"""The machine that measures, and what runs on it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "fcn-deploy",
    "numpy",
    "onnxruntime",
    "torch",
    "monai",
    "patchly",
    "pytorch-toolbelt",
    "rasterio",
)
_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")


def environment() -> dict[str, Any]:
    """The machine, and what runs on it."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in cpu if ":" in line)
    facts = {name.strip(): value.strip() for name, value in fields.items()}
    flags = facts.get("flags", "").split()
    changed = _git("status", "--porcelain", "../fcn_deploy")
    return {
        "date": date.today().isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + (" and changes" if changed else ""),
        "cpu": facts.get("model name", platform.processor()),
        "cores": sum(line.startswith("processor") for line in cpu),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    command = ("git", "-C", str(Path(__file__).parent), *arguments)
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""  # a machine without git
