"""Python, platform, cores, memory and disk: read from files, nothing is run."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from pathlib import Path

from fcn_deploy.artifacts import require_writable
from fcn_deploy.doctor.report import Finding
from fcn_deploy.errors import EnvironmentFault

AREA = "Machine"
OLDEST, NEWEST = (3, 10), (3, 13)
THIS_FOLDER = "this folder"
MACHINES = ("x86_64", "amd64", "aarch64", "arm64")
FEW_BYTES = 2 << 30
"""Free disk below which a training or an installation is likely to end early."""
LITTLE_MEMORY = 1 << 30
JETPACKS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7}
"""JetPack of each major release of Jetson Linux (L4T)."""


def look_at_machine(root: Path, folder: Path, temporary: Path) -> list[Finding]:
    """All of it.

    Args:
        root: Where ``/etc``, ``/proc``, ``/sys`` and ``/var`` lie.
        folder: Where results would be written.
        temporary: Where temporary files go.
    """
    jetson = _jetson(root)
    return [
        _python(),
        _platform(root),
        *([jetson] if jetson else []),
        _cores(root),
        _memory(root),
        _disk(folder, THIS_FOLDER),
        _disk(temporary, "temporary files"),
    ]


def _python() -> Finding:
    version = platform.python_version()
    facts = {"version": version, "executable": sys.executable}
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Finding(AREA, "Python", "ok", version, facts)
    return Finding(
        AREA,
        "Python",
        "warning",
        f"{version}; fcn-deploy is made for {span}",
        facts,
        f"python{NEWEST[0]}.{NEWEST[1]} -m venv .venv",
    )


def _platform(root: Path) -> Finding:
    named = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release"), re.MULTILINE)
    facts = {"system": platform.system(), "machine": platform.machine()}
    if named:
        facts["distribution"] = named[1]
    says = ", ".join([f"{facts['system']} {facts['machine']}", *([named[1]] if named else [])])
    if facts["system"] == "Linux" and facts["machine"].lower() in MACHINES:
        return Finding(AREA, "platform", "ok", says, facts)
    return Finding(AREA, "platform", "warning", f"{says}; only tried on Linux", facts)


def _jetson(root: Path) -> Finding | None:
    release = _text(root / "etc/nv_tegra_release")
    model = _text(root / "proc/device-tree/model").strip("\0\n ")
    if not release and "Jetson" not in model:
        return None
    found = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release)
    l4t = f"{found[1]}.{found[2]}" if found else None
    package = re.search(
        r"^Package: nvidia-jetpack\n(?:.+\n)*?Version: (\S+)",
        _text(root / "var/lib/dpkg/status"),
        re.MULTILINE,
    )
    major = JETPACKS.get(int(found[1])) if found else None
    jetpack = None if major is None else str(major)
    if package:
        jetpack = package[1].partition("+")[0]
    facts = {"model": model or None, "l4t": l4t, "jetpack": jetpack, "package": package is not None}
    says = f"{model or 'Jetson'}, JetPack {jetpack or '?'} (L4T {l4t or '?'})"
    if major is not None and major < 6:
        return Finding(
            AREA,
            "Jetson",
            "warning",
            f"{says}: its TensorRT is older than 10.3",
            facts,
            "Flash JetPack 6 or later: https://developer.nvidia.com/embedded/jetpack",
        )
    return Finding(AREA, "Jetson", "ok", says, facts)


def _cores(root: Path) -> Finding:
    there = os.cpu_count() or 1
    mine = sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(there))
    usable = len(mine)
    quotas = []
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.strip().isdecimal() and period.strip().isdecimal():
            quotas.append(int(quota) / int(period))
    limit = min(quotas) if quotas else None
    facts = {"there": there, "usable": usable, "quota": limit}
    says = f"{usable} of {there} cores" if usable < there else _count(there, "core")
    if limit is not None and limit < usable:
        # Threads beyond the quota are stopped again and again: slower than fewer of them.
        few = ",".join(str(core) for core in mine[: max(int(limit), 1)])
        return Finding(
            AREA,
            "processor",
            "warning",
            f"{says}, but the container may use the time of {limit:g}",
            facts,
            f"taskset -c {few} fcn-deploy segment DIR",
        )
    return Finding(AREA, "processor", "ok", says, facts)


def _memory(root: Path) -> Finding:
    table: dict[str, str] = dict(
        re.findall(r"^(\w+):\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    )
    if "MemTotal" not in table:
        return Finding(AREA, "memory", "absent", "not known on this platform")
    total = int(table["MemTotal"]) << 10
    available = int(table.get("MemAvailable", table["MemTotal"])) << 10
    limited = False
    for folder in _cgroups(root, "memory"):
        limit = _number(folder, "memory.max", "memory.limit_in_bytes")
        if limit is None or limit >= total:
            continue
        used = _number(folder, "memory.current", "memory.usage_in_bytes") or 0
        cached = re.search(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat"), re.M)
        used -= int(cached[1]) if cached else 0  # given back when it is needed
        total, limited = limit, True
        available = max(min(available, limit - used), 0)
    facts = {"total_bytes": total, "available_bytes": available, "limited": limited}
    within = " (the limit of this container)" if limited else ""
    says = f"{_gib(available)} available of {_gib(total)}{within}"
    if available < LITTLE_MEMORY:
        remedy = "fcn-deploy segment DIR --max-memory 128"
        return Finding(AREA, "memory", "warning", says, facts, remedy)
    return Finding(AREA, "memory", "ok", says, facts)


def _disk(folder: Path, name: str) -> Finding:
    where = str(folder.absolute())
    facts: dict[str, object] = {"path": where, "free_bytes": None, "writable": False}
    temporary = name != THIS_FOLDER
    remedy = (
        'mkdir -p ~/tmp && export TMPDIR="$HOME/tmp"'
        if temporary
        else "Go to a folder on a disk with space that you may write to."
    )
    try:
        free = shutil.disk_usage(folder).free
        facts["free_bytes"] = free
        require_writable(folder)
        facts["writable"] = True
    except (OSError, EnvironmentFault) as error:
        says = error.problem if isinstance(error, EnvironmentFault) else f"{where}: {error}"
        # Nobody has to write here; but libraries fail in strange ways without temporary files.
        return Finding(AREA, name, "problem" if temporary else "warning", says, facts, remedy)
    says = f"{_gib(free)} free, {where}"
    if free < FEW_BYTES:
        return Finding(AREA, name, "warning", says, facts, remedy)
    return Finding(AREA, name, "ok", says, facts)


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Folders whose limits hold for this process: its control group's and those above it."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, inside = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        path = top / inside.lstrip("/")
        # In a container, the path may be the host's; its own limits are then at the top.
        found += [path, *(above for above in path.parents if above.is_relative_to(top))]
    return found


def _number(folder: Path, *names: str) -> int | None:
    texts = (_text(folder / name).strip() for name in names)
    return next((int(text) for text in texts if text.isdecimal()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
