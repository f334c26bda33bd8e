"""The examination of a machine: this one as it is, and broken ones made of real small files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

import fcn_deploy
from fcn_deploy.doctor import Finding, Report, examine
from fcn_deploy.doctor.abilities import follow
from fcn_deploy.doctor.child import Outcome, ask
from fcn_deploy.doctor.gpu import Smi, ask_smi, look_at_gpu
from fcn_deploy.doctor.machine import look_at_machine
from fcn_deploy.doctor.onnx_runtime import OnnxRuntime, look_at_onnx_runtime
from fcn_deploy.doctor.packages import Packages, Requirement, read_packages
from fcn_deploy.doctor.probe import MODEL
from fcn_deploy.doctor.pytorch import look_at_cudnn, look_at_pytorch
from fcn_deploy.doctor.tensorrt import look_at_rtx, look_at_tensorrt, rtx_supports
from fcn_deploy.spec import SOURCE_KEY
from small_models import small_model

SITE = [path for path in sys.path if "site-packages" in path]
BARE = [path for path in sys.path if path and path not in SITE and "fcn_deploy" not in path]
NEEDS = importlib.metadata.requires("fcn-deploy") or []
CARD = {"name": "NVIDIA RTX 3060", "compute_capability": "8.6", "memory_mib": 12288}
NO_GPU = Finding("NVIDIA", "GPU", "absent", "none", {"devices": [], "driver_cuda": None})
GPU = Finding("NVIDIA", "GPU", "ok", "RTX 3060", {"devices": [CARD], "driver_cuda": "13.0"})


@dataclass(frozen=True)
class Site:
    """A site-packages folder of the test's own, in which nothing but fcn-deploy is installed."""

    folder: Path

    @property
    def path(self) -> list[str]:
        """The search path on which only this folder has packages."""
        return [str(self.folder), *BARE, str(Path(fcn_deploy.__file__).parents[1])]

    def distribution(self, name: str, version: str, requires: list[str] | None = None) -> None:
        """Metadata as pip writes it."""
        folder = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(parents=True)
        lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {need}" for need in requires or []]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")

    def module(self, name: str, code: str) -> None:
        """A package with that code, in place of a library."""
        (self.folder / name).mkdir()
        (self.folder / name / "__init__.py").write_text(code)

    def real(self, *names: str) -> None:
        """Real packages of this environment, by their modules."""
        for name in names:
            spec = importlib.util.find_spec(name)
            assert spec is not None
            if spec.submodule_search_locations is None and spec.origin is not None:
                (self.folder / Path(spec.origin).name).symlink_to(spec.origin)
            for place in spec.submodule_search_locations or []:
                (self.folder / name).symlink_to(place)
                for beside in Path(place).parent.glob(f"{name}.libs"):
                    (self.folder / beside.name).symlink_to(beside)

    def packages(self) -> Packages:
        return read_packages(self.path)

    def examine(self, **options: Any) -> Report:
        options.setdefault("root", self.folder / "no-root")
        return examine(path=self.path, folder=self.folder, **options)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    site.distribution("fcn-deploy", "0.1.0", NEEDS)
    return site


@pytest.fixture(scope="module")
def here() -> Report:
    return examine()


def found(report: Report, name: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.name == name]
    return finding


def test_onnx_runtime_really_computes_here(here: Report) -> None:
    assert found(here, "CPU provider").status == "ok"
    assert found(here, "Python").facts["version"].startswith(f"{sys.version_info[0]}.")
    assert found(here, "this folder").facts["free_bytes"] > 0
    assert "segment --backend ort" in {a.command for a in here.abilities if a.possible}
    assert json.loads(json.dumps(here.as_dict(), allow_nan=False))["healthy"] is here.healthy


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="needs PyTorch")
def test_pytorch_really_computes_here(here: Report) -> None:
    assert found(here, "PyTorch").facts["sum"] == 2.0
    possible = {ability.command for ability in here.abilities if ability.possible}
    assert {"train", "export", "segment --backend eager"} <= possible


def test_tensorrt_rtx_really_builds_here(here: Report) -> None:
    pytest.importorskip("tensorrt_rtx")
    rtx = found(here, "TensorRT-RTX")
    assert rtx.status == "ok"
    assert rtx.facts["plan_bytes"] > 1000


def test_every_problem_of_any_kind_has_a_remedy(here: Report) -> None:
    assert all(finding.remedy for finding in (*here.problems, *here.warnings))


def test_the_one_node_model_is_a_convolution_that_doubles() -> None:
    model = onnx.load_from_string(MODEL)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Conv"]
    assert list(onnx.numpy_helper.to_array(model.graph.initializer[0]).flat) == [2.0]


# Nothing installed, little installed.


def test_without_any_backend_the_first_thing_to_install_is_named(site: Site) -> None:
    report = site.examine(pip="env/bin/pip")
    assert not report.healthy
    assert found(report, "backends").remedy == 'env/bin/pip install "fcn-deploy[cpu]"'
    assert not any(a.possible for a in report.abilities if a.command.startswith("segment"))


def test_onnx_runtime_alone_is_enough_to_segment(site: Site) -> None:
    site.real("onnxruntime", "numpy", "onnx")
    site.distribution("onnxruntime", "1.31.1")
    site.distribution("onnx", "1.23.2")
    report = site.examine()
    assert found(report, "CPU provider").status == "ok"
    assert report.healthy, report.problems
    (train,) = [ability for ability in report.abilities if ability.command == "train"]
    assert not train.possible
    assert train.remedy == 'pip install "fcn-deploy[train]"'


def test_a_folder_that_was_never_installed_is_told_apart(tmp_path: Path) -> None:
    packages = read_packages([str(tmp_path)])
    assert packages.missing("train") == ["fcn-deploy"]


# Packages that stand in each other's way.


def test_two_onnx_runtimes_overwrite_each_other(site: Site) -> None:
    site.real("onnxruntime", "numpy")
    site.distribution("onnxruntime", "1.31.1")
    site.distribution("onnxruntime_gpu", "1.31.1")
    report = site.examine()
    clash = found(report, "ONNX Runtime")
    assert clash.status == "problem"
    assert clash.remedy == (
        'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "fcn-deploy[gpu]"'
    )
    assert not report.healthy
    assert found(report, "CPU provider").status == "ok"  # it still computes; both are said


@pytest.mark.parametrize("beside", ["onnxruntime-extensions", "onnxruntime-ep-nv-tensorrt-rtx"])
def test_packages_that_only_sound_alike_are_no_clash(site: Site, beside: str) -> None:
    site.distribution("onnxruntime", "1.31.1")
    site.distribution(beside, "0.5.0")
    assert site.packages().onnx_runtimes() == ("onnxruntime",)


def test_what_uninstalling_one_of_them_leaves_is_broken(site: Site) -> None:
    site.distribution("onnxruntime-gpu", "1.31.1")
    site.module("onnxruntime", "")
    broken = found(site.examine(), "ONNX Runtime")
    assert broken.status == "problem"
    assert broken.remedy == "pip install --force-reinstall --no-deps onnxruntime-gpu"


@pytest.mark.parametrize(
    ("torch", "needs", "remedy"),
    [
        ("2.15.0", "torch==2.15.0", None),
        ("2.15.0+cu132", "torch==2.15.0", None),
        ("2.14.1", "torch==2.15.0", 'pip install "torch==2.15.0"'),
        (
            "2.14.1+cpu",
            "torch==2.15.0",
            'pip install "torch==2.15.0" --index-url https://download.pytorch.org/whl/cpu',
        ),
        ("2.13.0", "torch (>=2.14.0)", "pip install --upgrade torch torchvision"),
    ],
)
def test_torchvision_that_does_not_fit(
    site: Site, torch: str, needs: str, remedy: str | None
) -> None:
    site.distribution("torch", torch)
    site.distribution("torchvision", "0.30.0", ["numpy", needs])
    answer = Outcome({"version": torch, "built_for_cuda": None, "device": "cpu"})
    findings = look_at_pytorch(answer, site.packages(), NO_GPU)
    unfit = [finding.remedy for finding in findings if finding.name == "torchvision"]
    assert unfit == ([] if remedy is None else [remedy])


def test_a_package_that_is_too_old_is_named_with_what_is_needed(site: Site) -> None:
    site.distribution("torch", "2.5.1")
    site.distribution("onnx", "1.30.0")
    old = found(site.examine(), "torch")
    assert old.status == "warning"
    assert old.remedy == 'pip install --upgrade "torch>=2.10"'


@pytest.mark.parametrize(
    ("version", "clauses", "met"),
    [
        ("2.10.0", ((">=", "2.10"),), True),
        ("2.9.1", ((">=", "2.10"),), False),
        ("2.15.0+cpu", (("==", "2.15.0"),), True),
        ("8.3.2", (("!=", "8.3."), (">=", "5.3.0")), False),
        ("10", ((">=", "10.3"),), False),
    ],
)
def test_versions_are_compared_as_numbers(
    version: str, clauses: tuple[tuple[str, str], ...], met: bool
) -> None:
    assert Requirement("package", clauses, "").met_by(version) is met


# Libraries that break.


def test_a_library_that_crashes_does_not_end_the_examination(site: Site) -> None:
    site.distribution("tensorrt", "10.16.1")
    site.distribution("tensorrt-cu13-libs", "10.16.1")
    site.module("tensorrt", "import os; os.abort()")
    report = site.examine()
    crashed = found(report, "TensorRT")
    assert crashed.status == "problem"
    assert "crashes the process (SIGABRT)" in crashed.says
    assert "--force-reinstall" in crashed.remedy
    assert not report.healthy
    assert not list(Path.cwd().glob("core*"))


def test_a_segmentation_fault_is_a_fault_of_that_question_alone(site: Site) -> None:
    site.module("tensorrt", "import ctypes; ctypes.string_at(0)")
    outcome = ask("tensorrt", "tensorrt", path=site.path)
    assert outcome.failure == "it crashes the process (SIGSEGV)"


def test_a_library_that_hangs_is_given_up(site: Site) -> None:
    site.module("tensorrt", "import time; time.sleep(60)")
    start = time.monotonic()
    outcome = ask("tensorrt", "tensorrt", path=site.path, timeout_s=1)
    assert outcome.failure == "no answer within 1 seconds"
    assert time.monotonic() - start < 20


def test_what_a_library_prints_is_kept_apart_from_the_answer(site: Site) -> None:
    site.module("rasterio", "print('{}'); __version__ = '1'; __gdal_version__ = '3'")
    outcome = ask("rasterio", path=site.path)
    assert outcome.facts == {"version": "1", "gdal": "3"}
    assert outcome.said == "{}\n"


def test_a_library_that_exits_tells_its_last_words(site: Site) -> None:
    site.module("rasterio", "import sys; sys.exit('no licence')")
    assert ask("rasterio", path=site.path).failure.endswith("code 1: no licence")


def test_files_of_the_current_folder_are_not_taken_for_libraries(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rasterio.py").write_text("__version__ = __gdal_version__ = 'mine'")
    monkeypatch.chdir(tmp_path)
    assert ask("rasterio", path=site.path).failure.startswith("ModuleNotFoundError")


# TensorRT.


def test_the_package_that_only_fetches_tensorrt_is_no_tensorrt(site: Site) -> None:
    site.distribution("tensorrt", "11.4.0.106")
    site.distribution("tensorrt_cu13", "11.4.0.106")
    site.distribution("tensorrt-rtx-cu13-libs", "1.7.1")  # of the other flavour
    site.module("tensorrt", "from tensorrt_bindings import *")
    stub = found(site.examine(), "TensorRT")
    assert stub.status == "problem"
    assert stub.facts["stub"] is True
    assert stub.remedy.endswith("--extra-index-url https://pypi.nvidia.com")


def test_a_stub_without_any_module_is_one_too(site: Site) -> None:
    site.distribution("tensorrt", "11.4.0.106")
    stub = look_at_tensorrt(None, site.packages(), NO_GPU, jetson=False)
    assert stub.facts["stub"] is True


def test_on_a_jetson_tensorrt_comes_with_the_system(site: Site) -> None:
    unseen = look_at_tensorrt(None, site.packages(), GPU, jetson=True)
    assert unseen.status == "warning"
    assert "--system-site-packages" in unseen.remedy
    packages = site.packages()
    assert look_at_tensorrt(None, packages, GPU, jetson=False).remedy == packages.install("trt")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_gpus_that_tensorrt_rtx_runs_on(capability: tuple[int, int]) -> None:
    assert rtx_supports(capability)


@pytest.mark.parametrize("capability", [(7, 0), (8, 7), (9, 0), (10, 0), (10, 3), (11, 0)])
def test_gpus_that_tensorrt_rtx_does_not_run_on(capability: tuple[int, int]) -> None:
    assert not rtx_supports(capability)


@pytest.mark.parametrize(
    ("capability", "says", "runs"),
    [
        ("9.0", "not run on this GPU (sm90)", False),
        ("7.5", "--target sm75", True),
        ("8.6", "", True),
    ],
)
def test_engines_of_rtx_run_only_on_its_gpus(
    site: Site, capability: str, says: str, runs: bool
) -> None:
    facts = {"devices": [{**CARD, "compute_capability": capability}]}
    gpu = Finding("NVIDIA", "GPU", "ok", "a GPU", facts)
    packages = site.packages()
    rtx = look_at_rtx(Outcome({"version": "1.7", "plan_bytes": 9}), packages, gpu)
    assert rtx.status == "ok"  # engines are built here, also for other machines
    assert says in rtx.says
    standard = look_at_tensorrt(None, packages, gpu, jetson=False)
    rasterio = Finding("Libraries", "rasterio", "absent", "")
    abilities = {a.command: a for a in follow([gpu, rtx, standard, rasterio], packages)}
    engine = abilities["segment --backend trt"]
    assert engine.possible is runs
    if not runs:
        assert engine.remedy == packages.install("trt")


# Execution providers. The words are those of onnxruntime-gpu without the libraries it needs.

WITHOUT_CUBLAS = (
    "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] FAIL : Failed to load library "
    "/x/libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object "
    "file: No such file or directory"
)
FELL_BACK = f"""
import sys
__version__, cuda_version = "1.31.1", "12.8"
class SessionOptions:
    def add_session_config_entry(self, key, value): pass
class InferenceSession:
    def __init__(self, model, options, providers):
        self.cuda = providers == ["CUDAExecutionProvider"]
        if self.cuda:
            sys.stderr.write({WITHOUT_CUBLAS!r})
    def get_providers(self):
        return ["CPUExecutionProvider"]
    def run(self, outputs, inputs):
        return [2 * inputs["x"]]
def get_available_providers():
    return ["CUDAExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]
"""


def test_a_provider_that_falls_back_to_the_cpu_is_found_out(site: Site) -> None:
    site.real("numpy")
    site.distribution("onnxruntime-gpu", "1.31.1")
    site.module("onnxruntime", FELL_BACK)
    report = site.examine()
    cuda = found(report, "CUDA provider")
    assert cuda.status == "problem"
    assert cuda.facts["cause"] == "libcublasLt.so.12 is missing"
    assert found(report, "CPU provider").status == "ok"
    assert "Azure" not in "".join(finding.name for finding in report.findings)
    assert not report.healthy


def provider(outcome: Outcome, name: str, packages: Packages, gpu: Finding) -> Finding:
    listed = Outcome({"version": "1.31.1", "cuda": "13.0", "providers": [name]})
    return look_at_onnx_runtime(OnnxRuntime(listed, {name: outcome}), packages, gpu)[1]


def test_what_mends_cuda_depends_on_the_machine(site: Site) -> None:
    site.distribution("onnxruntime-gpu", "1.31.1")
    fell_back = Outcome({"active": "CPUExecutionProvider", "right": True}, "", WITHOUT_CUBLAS)
    packages, cuda = site.packages(), "CUDAExecutionProvider"
    assert provider(fell_back, cuda, packages, GPU).remedy == 'pip install "fcn-deploy[gpu]"'
    assert provider(fell_back, cuda, packages, NO_GPU).remedy == (
        'pip uninstall -y onnxruntime-gpu && pip install "fcn-deploy[cpu]"'
    )
    old = Finding("NVIDIA", "GPU", "problem", "too old", {"devices": []}, "newer driver")
    assert provider(fell_back, cuda, packages, old).remedy == "newer driver"


def test_a_provider_that_computes_wrong_numbers_does_not_work(site: Site) -> None:
    wrong = Outcome({"active": "CPUExecutionProvider", "right": False})
    finding = provider(wrong, "CPUExecutionProvider", site.packages(), NO_GPU)
    assert finding.status == "problem"
    assert finding.facts["cause"] == "it computes wrong numbers"


def test_the_tensorrt_provider_is_optional_until_tensorrt_10_is_installed(site: Site) -> None:
    site.distribution("onnxruntime-gpu", "1.31.1")
    said = "with error: libnvinfer.so.10: cannot open shared object file"
    missing = Outcome({}, "InvalidArgument: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : x", said)
    name = "TensorrtExecutionProvider"
    optional = provider(missing, name, site.packages(), GPU)
    assert optional.status == "absent"
    assert optional.remedy == 'pip install "tensorrt-cu13==10.16.*"'
    site.distribution("tensorrt-cu13", "10.16.1")
    crashed = Outcome({}, "it crashes the process (SIGSEGV)")
    assert provider(crashed, name, site.packages(), GPU).status == "problem"


def test_cudnn_matters_only_where_something_computes_with_it(site: Site) -> None:
    assert look_at_cudnn(None, site.packages()) is None
    site.distribution("onnxruntime-gpu", "1.31.1")
    missing = look_at_cudnn(None, site.packages())
    assert missing is not None
    assert missing.status == "absent"
    torch = look_at_cudnn(Outcome({"built_for_cuda": "13.2", "cudnn": 92600}), site.packages())
    assert torch is not None
    assert torch.says == "9.26.0"


# GPUs and their driver.


def script(folder: Path, code: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!{sys.executable}\n{code}\n")
    path.chmod(0o755)


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(
        tmp_path, "print('NVIDIA RTX 3060, 12288, 580.65, 8.6\\nOrin (nvgpu), [N/A], 540.4, 8.7')"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    first, second = ask_smi().gpus
    assert first == {**CARD, "driver": "580.65"}
    assert second["memory_mib"] is None
    packages = Packages({}, (), ())
    gpu = look_at_gpu(None, ask_smi(), packages, tmp_path)
    assert gpu.status == "ok"
    assert gpu.says.startswith("NVIDIA RTX 3060, sm86, 12 GiB")


@pytest.mark.parametrize(
    ("code", "words", "remedy"),
    [
        (
            "print('Failed to initialize NVML: Driver/library version mismatch'); exit(18)",
            "mismatch",
            "sudo reboot",
        ),
        ("print('NVIDIA-SMI has failed'); exit(9)", "has failed", "https://www.nvidia.com/drivers"),
        ("import time; time.sleep(60)", "no answer within 1 seconds", "nvidia.com/drivers"),
    ],
)
def test_a_driver_that_does_not_work(
    code: str, words: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path, code)
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu = look_at_gpu(None, ask_smi(timeout_s=1), Packages({}, (), ()), tmp_path)
    assert gpu.status == "problem"
    assert words in gpu.says
    assert remedy in gpu.remedy


def cuda(**answer: Any) -> Outcome:
    facts = {"status": 0, "message": "", "driver": 13000, "runtime": 13020, "hidden": None}
    return Outcome({**facts, "devices": [], **answer})


def test_a_gpu_that_cuda_finds(tmp_path: Path) -> None:
    gpu = look_at_gpu(cuda(devices=[CARD]), Smi(), Packages({}, (), ()), tmp_path)
    assert gpu.status == "ok"
    assert gpu.says == "NVIDIA RTX 3060, sm86, 12 GiB; CUDA 13.0"


@pytest.mark.parametrize(
    ("answer", "status", "remedy"),
    [
        ({"driver": 12040, "status": 35}, "problem", "580 or later"),
        ({"hidden": "", "status": 100}, "warning", "unset CUDA_VISIBLE_DEVICES"),
        ({"status": 999, "message": "unknown error"}, "problem", "sudo reboot"),
        ({"driver": 0, "status": 35}, "absent", ""),
    ],
)
def test_a_driver_without_a_gpu(
    answer: dict[str, Any], status: str, remedy: str, tmp_path: Path
) -> None:
    gpu = look_at_gpu(cuda(**answer), Smi(), Packages({}, (), ()), tmp_path)
    assert gpu.status == status
    assert remedy in gpu.remedy


def test_on_a_jetson_the_bindings_are_fitted_to_the_driver(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 4.3, GCID: 1")
    gpu = look_at_gpu(cuda(driver=12060, status=35), Smi(), Packages({}, (), ()), tmp_path)
    assert gpu.remedy == 'pip install "cuda-bindings<13"'


@pytest.mark.parametrize(
    ("vendor", "kind", "seen"),
    [("0x10de", "0x030000", True), ("0x10de", "0x040300", False), ("0x8086", "0x030000", False)],
)
def test_a_card_without_a_driver_is_seen(
    vendor: str, kind: str, seen: bool, tmp_path: Path
) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    gpu = look_at_gpu(None, Smi(), Packages({}, (), ()), tmp_path)
    assert gpu.status == ("warning" if seen else "absent")
    assert "driver" in gpu.remedy or not seen
    (tmp_path / ".dockerenv").touch()
    gpu = look_at_gpu(None, Smi(), Packages({}, (), ()), tmp_path)
    assert "--gpus all" in gpu.remedy or not seen


def test_pytorch_that_leaves_a_gpu_idle(site: Site) -> None:
    cpu_build = Outcome({"version": "2.15.0+cpu", "built_for_cuda": None, "device": "cpu"})
    idle = look_at_pytorch(cpu_build, site.packages(), GPU)[0]
    assert idle.status == "warning"
    assert idle.remedy.endswith("/whl/cu130")
    why = "The NVIDIA driver on your system is too old"
    refused = Outcome({**cpu_build.facts, "built_for_cuda": "13.2", "why_not_cuda": why})
    broken = look_at_pytorch(refused, site.packages(), GPU)[0]
    assert broken.status == "problem"
    assert why in broken.says
    assert look_at_pytorch(refused, site.packages(), NO_GPU)[0].status == "ok"


# Machines, as trees of files.


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[dict[str, str]], dict[str, Finding]]:
    def look(files: dict[str, str]) -> dict[str, Finding]:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return {f.name: f for f in look_at_machine(tmp_path, tmp_path, tmp_path)}

    return look


def test_a_jetson_is_known_by_its_files(
    machine: Callable[[dict[str, str]], dict[str, Finding]],
) -> None:
    files = {
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    }
    plain = machine(files)["Jetson"]
    assert plain.facts["l4t"] == "36.4.3"
    assert plain.facts["jetpack"] == "6"
    files["var/lib/dpkg/status"] = (
        "Package: other\nVersion: 1\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n"
    )
    exact = machine(files)["Jetson"]
    assert exact.says == "NVIDIA Jetson Orin Nano Developer Kit, JetPack 6.2 (L4T 36.4.3)"
    assert exact.status == "ok"


def test_a_jetpack_whose_tensorrt_is_too_old(
    machine: Callable[[dict[str, str]], dict[str, Finding]],
) -> None:
    old = machine({"etc/nv_tegra_release": "# R35 (release), REVISION: 5.0, GCID: 1"})["Jetson"]
    assert old.status == "warning"
    assert "JetPack 6" in old.remedy


def test_other_machines_are_no_jetsons(
    machine: Callable[[dict[str, str]], dict[str, Finding]],
) -> None:
    assert "Jetson" not in machine({"proc/device-tree/model": "Raspberry Pi 5\0"})


MEMINFO = "MemTotal:       8388608 kB\nMemFree: 1 kB\nMemAvailable:   4194304 kB\n"
V2 = {
    "proc/self/cgroup": "0::/job\n",
    "sys/fs/cgroup/job/memory.max": "max\n",
    "sys/fs/cgroup/memory.max": f"{2 << 30}\n",
    "sys/fs/cgroup/memory.current": f"{3 << 29}\n",
    "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {1 << 30}\n",
}
V1 = {
    "proc/self/cgroup": "4:memory:/docker/a1\n0::/\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 << 30}\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 << 29}\n",
    "sys/fs/cgroup/memory/memory.stat": f"inactive_file 9\ntotal_inactive_file {1 << 30}\n",
}


def test_memory_is_what_the_machine_has(
    machine: Callable[[dict[str, str]], dict[str, Finding]],
) -> None:
    memory = machine({"proc/meminfo": MEMINFO})["memory"]
    assert memory.says == "4.0 GiB available of 8.0 GiB"


@pytest.mark.parametrize("files", [V2, V1], ids=["v2", "v1"])
def test_or_what_its_control_group_leaves(
    files: dict[str, str], machine: Callable[[dict[str, str]], dict[str, Finding]]
) -> None:
    memory = machine({"proc/meminfo": MEMINFO, **files})["memory"]
    assert memory.facts["total_bytes"] == 2 << 30
    # Half a gigabyte is in use and not given back on demand.
    if files is V2:
        assert memory.facts["available_bytes"] == 3 << 29


def test_little_memory_is_a_warning(
    machine: Callable[[dict[str, str]], dict[str, Finding]],
) -> None:
    low = MEMINFO.replace("4194304", "409600")
    memory = machine({"proc/meminfo": low})["memory"]
    assert memory.status == "warning"
    assert "--max-memory" in memory.remedy


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
    ids=["v2", "v1"],
)
def test_a_quota_of_processor_time_is_seen(
    files: dict[str, str], machine: Callable[[dict[str, str]], dict[str, Finding]]
) -> None:
    cores = machine(files)["processor"]
    assert cores.facts["quota"] == 0.5
    assert cores.remedy == f"taskset -c {min(os.sched_getaffinity(0))} fcn-deploy segment DIR"
    unlimited = machine({name: "-1\n" if "quota" in name else "max 100000\n" for name in files})
    assert unlimited["processor"].status == "ok"


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    findings = {f.name: f for f in look_at_machine(tmp_path, file, file / "below")}
    assert findings["this folder"].status == "warning"
    assert findings["temporary files"].status == "problem"
    assert "TMPDIR" in findings["temporary files"].remedy


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))
    findings = {f.name: f for f in look_at_machine(tmp_path, tmp_path, tmp_path)}
    assert findings["this folder"].status == findings["temporary files"].status == "warning"


# The newest run.


def test_artifacts_of_an_earlier_checkpoint_are_named(site: Site) -> None:
    site.real("numpy", "PIL", "onnx", "google", "ml_dtypes", "typing_extensions", "threadpoolctl")
    if sys.version_info < (3, 11):
        site.real("tomli")
    run = site.folder / "runs" / "road"
    run.mkdir(parents=True)
    assert "newest run" not in {finding.name for finding in site.examine().findings}

    (run / "best.safetensors").write_bytes(b"weights")
    assert "not exported" in found(site.examine(), "newest run").says

    source = {"name": "best.safetensors", "sha256": hashlib.sha256(b"weights").hexdigest()}
    model = small_model()
    model.metadata_props.add(key=SOURCE_KEY, value=json.dumps(source))
    (run / "model.onnx").write_bytes(model.SerializeToString())
    assert "model.onnx up to date" in found(site.examine(), "newest run").says

    (run / "best.safetensors").write_bytes(b"weights of the next epoch")
    stale = found(site.examine(), "newest run")
    assert stale.status == "warning"
    assert stale.remedy == f"fcn-deploy export {run}"
