"""The machine that something was measured on, as rows of a page."""

from __future__ import annotations

from typing import Any


def machine_rows(machine: dict[str, Any], versions: dict[str, str]) -> list[tuple[str, str]]:
    """Name and value of what is known; what the record leaves out, the page does as well.

    Args:
        machine: As ``verify.json`` and ``benchmark.json`` hold it.
        versions: Of packages, by name.
    """
    cores, memory = machine.get("cores"), machine.get("memory_mib")
    gpus = [gpu["name"] for gpu in machine.get("gpus") or []]
    rows = [
        ("processor", f"{machine.get('cpu') or 'unknown'}{f', {cores} cores' if cores else ''}"),
        ("memory", f"{memory:,} MiB" if memory else ""),
        ("GPU", ", ".join(gpus) or "none"),
        ("Jetson", machine.get("jetson") or ""),
        ("system", machine.get("platform") or ""),
        ("power by", machine.get("power") or ""),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    ]
    return [(name, value) for name, value in rows if value]
