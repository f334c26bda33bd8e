"""What meters of power make of the files and programs of a device."""

from __future__ import annotations

import stat
import sys
import time
from pathlib import Path

import pytest

from fcn_deploy.benchmark.gpus import memory_used_mib
from fcn_deploy.benchmark.power import Rails, Rapl, Smi, find_meters, watts_of


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def program(path: Path, code: str) -> str:
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


PACKAGES = {
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": 1_000_000,
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 60_000_000,
    "sys/class/powercap/intel-rapl:1/name": "package-1",
    "sys/class/powercap/intel-rapl:1/energy_uj": 55_000_000,
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": 60_000_000,
    "sys/class/powercap/intel-rapl:2/name": "psys",
    "sys/class/powercap/intel-rapl:2/energy_uj": 7,
}


def test_rapl_adds_up_packages_and_knows_that_counters_begin_anew(tmp_path: Path) -> None:
    write(tmp_path, PACKAGES)
    zones = [tmp_path / f"sys/class/powercap/intel-rapl:{number}" for number in (0, 1)]
    now = iter([10.0, 12.0])
    meter = Rapl(zones, lambda: next(now))
    meter.start()
    (zones[0] / "energy_uj").write_text("31000000\n")  # 30 joules
    (zones[1] / "energy_uj").write_text("5000000\n")  # 5 to the end, and 5 after it
    assert meter.stop() == pytest.approx(20)
    assert meter.name == "RAPL package-0, package-1"


def test_counters_that_nobody_may_read_are_no_meter(tmp_path: Path) -> None:
    cpu, gpu = find_meters(write(tmp_path / "one", PACKAGES), has_gpu=False)
    assert isinstance(cpu, Rapl)
    assert gpu is None
    hidden = {name: text for name, text in PACKAGES.items() if not name.endswith("energy_uj")}
    assert find_meters(write(tmp_path / "two", hidden), has_gpu=False) == (None, None)
    _, gpu = find_meters(tmp_path / "nothing", has_gpu=True)
    assert isinstance(gpu, Smi)


def rails(*labels: str) -> dict[str, object]:
    files: dict[str, object] = {"sys/class/hwmon/hwmon3/name": "ina3221"}
    for number, label in enumerate(labels, 1):
        folder = f"sys/class/hwmon/hwmon3/{{}}{number}_{{}}"
        files[folder.format("in", "label")] = label
        files[folder.format("in", "input")] = 5000
        files[folder.format("curr", "input")] = 1000 * number
    return files


def test_a_jetson_is_measured_where_everything_goes_through(tmp_path: Path) -> None:
    orin = rails("VDD_CPU_GPU_CV", "VDD_IN", "VDD_SOC", "sum of shunt voltages")
    cpu, gpu = find_meters(write(tmp_path, orin | PACKAGES), has_gpu=True)
    assert isinstance(cpu, Rails)
    assert cpu is gpu
    assert cpu.name == "INA3221 VDD_IN"
    assert watts_of(cpu, lambda: time.sleep(0.001), 0.12) == pytest.approx(10)


def test_without_such_a_rail_all_of_them_add_up(tmp_path: Path) -> None:
    agx = rails("VDD_GPU_SOC", "VDD_CPU_CV", "sum of shunt voltages")
    cpu, _ = find_meters(write(tmp_path, agx), has_gpu=False)
    assert cpu is not None
    assert cpu.name == "INA3221 VDD_GPU_SOC+VDD_CPU_CV"
    cpu.start()
    assert cpu.stop() == pytest.approx(15)


def test_a_meter_is_stopped_when_the_work_fails(tmp_path: Path) -> None:
    cpu, _ = find_meters(write(tmp_path, rails("VDD_IN")), has_gpu=False)
    assert isinstance(cpu, Rails)
    with pytest.raises(ZeroDivisionError):
        watts_of(cpu, lambda: 1 // 0, 1)
    assert cpu._watch is not None
    assert not cpu._watch.is_alive()


def test_nvidia_smi_is_believed_for_the_second_half(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = (
        "import sys, time, pathlib\n"
        "assert '--query-gpu=power.draw' in sys.argv, sys.argv\n"
        "print('20.5\\n30\\n[N/A]\\n100.0\\n120.0', flush=True)\n"
        f"pathlib.Path({str(said)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    meter = Smi(program(tmp_path / "smi", code))
    meter.start()
    end = time.monotonic() + 30
    while not said.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert meter.stop() == pytest.approx(110)


def test_a_device_without_a_sensor_tells_nothing(tmp_path: Path) -> None:
    meter = Smi(program(tmp_path / "smi", "print('[N/A]')"))
    meter.start()
    assert meter.stop() is None


@pytest.mark.parametrize(
    ("code", "mib"),
    [
        ("print('1234\\n77')", 1234.0),
        ("print('[N/A]')", None),
        ("raise SystemExit('no driver')", None),
    ],
)
def test_memory_of_the_first_gpu(tmp_path: Path, code: str, mib: float | None) -> None:
    assert memory_used_mib(program(tmp_path / "smi", code)) == mib
    assert memory_used_mib(str(tmp_path / "none")) is None
