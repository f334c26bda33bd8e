"""What a device says of the power that it takes: NVIDIA's driver, a Jetson's rails, or RAPL."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fcn_deploy.doctor.gpu import SMI

_EVERY_S = 0.05
_TOTALS = ("VDD_IN", "VIN_SYS", "POM_5V_IN", "VIN")
"""Rails of Jetsons through which everything goes; where there is none, all rails add up."""


class PowerMeter(Protocol):
    """Tells the mean power between two moments."""

    @property
    def name(self) -> str:
        """What it measures, and by whom."""
        ...

    def start(self) -> None:
        """From now on."""
        ...

    def stop(self) -> float | None:
        """Watts since the start; ``None`` where it told nothing."""
        ...


class Rapl:
    """Energy of the processor packages, as the kernel counts it.

    Args:
        zones: Folders of ``/sys/class/powercap`` that are packages.
        clock: Seconds, from any start.
    """

    def __init__(self, zones: list[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._zones, self._clock = zones, clock
        self.name = f"RAPL {', '.join(_text(zone / 'name') for zone in zones)}"
        self._since, self._energy = 0.0, [0] * len(zones)

    def start(self) -> None:
        """From now on."""
        self._since, self._energy = self._clock(), [_micro(zone) for zone in self._zones]

    def stop(self) -> float | None:
        """Watts since the start."""
        seconds = self._clock() - self._since
        used = 0
        for zone, before in zip(self._zones, self._energy, strict=True):
            after = _micro(zone)
            if after < before:  # the counter has begun anew
                after += int(_text(zone / "max_energy_range_uj") or 0)
            used += max(after - before, 0)
        return used / 1e6 / seconds if seconds > 0 and used else None


class Rails:
    """The sensors of a Jetson (INA3221), looked at 20 times a second.

    Args:
        rails: Files of voltage (millivolt) and current (milliampere), by label.
    """

    def __init__(self, rails: dict[str, tuple[Path, Path]]) -> None:
        total = next((name for name in _TOTALS if name in rails), None)
        self._rails = [rails[total]] if total else list(rails.values())
        self.name = f"INA3221 {total or '+'.join(rails)}"
        self._watts: list[float] = []
        self._done = threading.Event()
        self._watch: threading.Thread | None = None

    def start(self) -> None:
        """From now on."""
        self._done.clear()
        self._watts = [self._read()]
        self._watch = threading.Thread(target=self._look, name="fcn-deploy-power", daemon=True)
        self._watch.start()

    def _look(self) -> None:
        while not self._done.wait(_EVERY_S):
            self._watts.append(self._read())

    def _read(self) -> float:
        milli = [int(_text(volt) or 0) * int(_text(ampere) or 0) for volt, ampere in self._rails]
        return sum(milli) / 1e6

    def stop(self) -> float | None:
        """Watts since the start."""
        self._done.set()
        if self._watch is not None:
            self._watch.join()
        mean = sum(self._watts) / max(len(self._watts), 1)
        return mean or None


class Smi:
    """``nvidia-smi``, which says ten times a second what the first GPU draws.

    Args:
        program: What to run.
    """

    name = f"{SMI} power.draw"

    def __init__(self, program: str = SMI) -> None:
        self._program = program
        self._running: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """From now on."""
        command = [self._program, "--id=0", "--query-gpu=power.draw"]
        self._running = subprocess.Popen(
            [*command, "--format=csv,noheader,nounits", "--loop-ms=100"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def stop(self) -> float | None:
        """Watts, of the second half: the driver's figure is itself an average of a second."""
        assert self._running is not None, "it was not started"
        self._running.terminate()
        said, _ = self._running.communicate()
        watts = [float(line) for line in said.splitlines() if line.replace(".", "", 1).isdecimal()]
        half = watts[len(watts) // 2 :]
        return sum(half) / len(half) if half else None


def find_meters(root: Path, *, has_gpu: bool) -> tuple[PowerMeter | None, PowerMeter | None]:
    """What tells power here: of rows on the processor, and of rows on the GPU.

    Args:
        root: Where ``/sys`` lies.
        has_gpu: Whether nvidia-smi knows a GPU.
    """
    rails = _rails(root)
    if rails:
        jetson = Rails(rails)
        return jetson, jetson
    zones = [
        zone
        for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*"))
        if _text(zone / "name").startswith("package") and _text(zone / "energy_uj").isdecimal()
    ]
    return Rapl(zones) if zones else None, Smi() if has_gpu else None


def watts_of(meter: PowerMeter, work: Callable[[], object], seconds: float) -> float | None:
    """Mean power while work is done without pause for so long."""
    end = time.monotonic() + seconds
    meter.start()
    try:
        while time.monotonic() < end:
            work()
    finally:
        watts = meter.stop()
    return None if watts is None else round(watts, 2)


def _rails(root: Path) -> dict[str, tuple[Path, Path]]:
    found = {}
    for label in sorted((root / "sys/class/hwmon").glob("hwmon*/in*_label")):
        folder, number = label.parent, label.name[2:].partition("_")[0]
        current = folder / f"curr{number}_input"
        if _text(folder / "name").startswith("ina") and current.is_file():
            name = _text(label)
            if not name.startswith(("sum of", "NC")):  # shunts together, and what is not connected
                found[name] = (folder / f"in{number}_input", current)
    return found


def _micro(zone: Path) -> int:
    return int(_text(zone / "energy_uj") or 0)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
