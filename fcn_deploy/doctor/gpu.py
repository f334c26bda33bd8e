"""NVIDIA GPUs and their driver, from two sides: CUDA, and nvidia-smi where there is one."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.doctor.child import Outcome
from fcn_deploy.doctor.packages import Packages
from fcn_deploy.doctor.report import Finding

AREA = "NVIDIA"
SMI = "nvidia-smi"
SMI_TIMEOUT_S = 10.0
DRIVERS = "Install NVIDIA driver 580 or later: https://www.nvidia.com/drivers"
_COLUMNS = ("name", "memory.total", "driver_version", "compute_cap")


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi says.

    Attributes:
        found: Whether there is such a program.
        gpus: Name, ``memory_mib``, ``driver`` and ``compute_capability`` of each.
        failure: Why it says nothing, in one line; empty if it does.
    """

    found: bool = False
    gpus: tuple[dict[str, Any], ...] = ()
    failure: str = ""

    @property
    def driver(self) -> str | None:
        """Version of the driver."""
        return self.gpus[0]["driver"] if self.gpus else None


def ask_smi(timeout_s: float = SMI_TIMEOUT_S) -> Smi:
    """Ask nvidia-smi; with a driver that hangs, it hangs."""
    command = [SMI, f"--query-gpu={','.join(_COLUMNS)}", "--format=csv,noheader,nounits"]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except FileNotFoundError:
        return Smi()
    except OSError as error:
        return Smi(True, failure=str(error.strerror or error))
    except subprocess.TimeoutExpired:
        return Smi(True, failure=f"no answer within {timeout_s:g} seconds")
    if ended.returncode:
        lines = (ended.stdout + ended.stderr).strip().splitlines()
        return Smi(True, failure=lines[0] if lines else f"it ended with code {ended.returncode}")
    rows = [[cell.strip() for cell in line.split(",")] for line in ended.stdout.splitlines()]
    return Smi(True, tuple(_gpu(row) for row in rows if len(row) == len(_COLUMNS)))


def _gpu(row: list[str]) -> dict[str, Any]:
    name, memory, driver, capability = row
    return {
        "name": name,
        # [N/A] on Jetsons, whose GPU has no memory of its own
        "memory_mib": int(memory) if memory.isdecimal() else None,
        "driver": driver,
        "compute_capability": capability if capability.replace(".", "").isdecimal() else None,
    }


def look_at_gpu(cuda: Outcome | None, smi: Smi, packages: Packages, root: Path) -> Finding:
    """What both say, put together.

    Args:
        cuda: Outcome of the question ``cuda``; ``None`` if cuda-bindings is not installed.
        smi: What nvidia-smi says.
        packages: What is installed.
        root: Where ``/sys`` lies: a card shows there, even without a driver.
    """
    facts: dict[str, Any] = {
        "devices": [],
        "driver": smi.driver,
        "driver_cuda": None,
        "runtime_cuda": None,
    }
    if smi.failure:
        return _smi_failed(smi, facts)
    if cuda is None:
        return _without_cuda(smi, packages, root, facts)
    answer = cuda.facts
    facts["driver_cuda"] = _release(answer.get("driver", 0))
    facts["runtime_cuda"] = _release(answer.get("runtime", 0))
    if answer.get("devices"):
        facts["devices"] = answer["devices"]
        return Finding(AREA, "GPU", "ok", _says(facts), facts)
    cause = cuda.failure or answer.get("message", "no device")
    if answer.get("driver"):
        return _cuda_refuses(answer, cause, facts, packages, root)
    if smi.gpus or "crashes" in cause:
        # The driver is there, and yet CUDA's library does not find it.
        facts["devices"] = [dict(gpu) for gpu in smi.gpus]
        seen = f"nvidia-smi sees {smi.gpus[0]['name']}; " if smi.gpus else ""
        remedy = f'{packages.pip} install --force-reinstall "cuda-bindings"'
        return Finding(AREA, "GPU", "problem", f"{seen}CUDA does not work: {cause}", facts, remedy)
    return _none(root, facts)


def _smi_failed(smi: Smi, facts: dict[str, Any]) -> Finding:
    says = f"{SMI}: {smi.failure}"
    # The kernel still has the driver of before an update.
    stale = "mismatch" in smi.failure.lower()
    return Finding(AREA, "GPU", "problem", says, facts, "sudo reboot" if stale else DRIVERS)


def _without_cuda(smi: Smi, packages: Packages, root: Path, facts: dict[str, Any]) -> Finding:
    if not smi.gpus:
        return _none(root, facts)
    facts["devices"] = [dict(gpu) for gpu in smi.gpus]
    if packages.has_module("tensorrt") or packages.has_module("tensorrt_rtx"):
        says = f"{_says(facts)}; engines need cuda-bindings to run"
        return Finding(AREA, "GPU", "warning", says, facts, f"{packages.pip} install cuda-bindings")
    return Finding(AREA, "GPU", "ok", _says(facts), facts)


def _cuda_refuses(
    answer: dict[str, Any], cause: str, facts: dict[str, Any], packages: Packages, root: Path
) -> Finding:
    """There is a driver, but no GPU comes out of it."""
    mine, needed = answer["driver"] // 1000, answer["runtime"] // 1000
    if mine < needed:
        says = (
            f"the driver is made for CUDA {facts['driver_cuda']}, and cuda-bindings for "
            f"{facts['runtime_cuda']}"
        )
        # On a Jetson, the driver is that of JetPack.
        fixed = (root / "etc/nv_tegra_release").exists()
        older = f'{packages.pip} install "cuda-bindings<{mine + 1}"'
        return Finding(AREA, "GPU", "problem", says, facts, older if fixed else DRIVERS)
    hidden = answer.get("hidden")
    if hidden is not None:
        says = f"{cause}; CUDA_VISIBLE_DEVICES is {hidden!r}"
        return Finding(AREA, "GPU", "warning", says, facts, "unset CUDA_VISIBLE_DEVICES")
    return Finding(AREA, "GPU", "problem", f"CUDA does not work: {cause}", facts, "sudo reboot")


def _none(root: Path, facts: dict[str, Any]) -> Finding:
    if not _has_card(root):
        return Finding(
            AREA,
            "GPU",
            "absent",
            "no NVIDIA card or driver; the CPU does without",
            facts,
        )
    says = "there is an NVIDIA card, but no driver that this process can see"
    inside = (root / ".dockerenv").exists()
    remedy = "docker run --gpus all IMAGE" if inside else DRIVERS
    return Finding(AREA, "GPU", "warning", says, facts, remedy)


def _has_card(root: Path) -> bool:
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        try:
            kind = vendor.with_name("class").read_text()
            if vendor.read_text().strip() == "0x10de" and kind.startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def _says(facts: dict[str, Any]) -> str:
    names = []
    for gpu in facts["devices"]:
        capability, memory = gpu.get("compute_capability"), gpu.get("memory_mib")
        names.append(
            str(gpu["name"])
            + (f", sm{capability.replace('.', '')}" if capability else "")
            + (f", {memory / 1024:.0f} GiB" if memory else "")
        )
    driver = f"driver {facts['driver']}" if facts["driver"] else ""
    cuda = f"CUDA {facts['driver_cuda']}" if facts["driver_cuda"] else ""
    return "; ".join(part for part in (*names, driver, cuda) if part)


def _release(number: int) -> str | None:
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def capability(gpu: Finding) -> tuple[int, int] | None:
    """Compute capability of the first GPU, such as (8, 6); ``None`` if it is not known."""
    devices = gpu.facts["devices"]
    text = devices[0].get("compute_capability") if devices else None
    if text is None:
        return None
    major, _, minor = str(text).partition(".")
    return int(major), int(minor)
