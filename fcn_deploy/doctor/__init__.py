"""What works on this machine, and what mends the rest; nothing here is believed, all is tried.

Whatever is native runs in processes of its own, all at once, so that no broken library ends the
examination, and the slowest of them (PyTorch) is nearly all of the time it takes.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fcn_deploy import __version__
from fcn_deploy.artifacts import RUNS
from fcn_deploy.doctor.abilities import follow
from fcn_deploy.doctor.child import TIMEOUT_S, Outcome, ask
from fcn_deploy.doctor.gpu import ask_smi, look_at_gpu
from fcn_deploy.doctor.machine import look_at_machine
from fcn_deploy.doctor.onnx_runtime import ask_onnx_runtime, look_at_onnx_runtime
from fcn_deploy.doctor.packages import Packages, read_packages
from fcn_deploy.doctor.pytorch import look_at_cudnn, look_at_pytorch
from fcn_deploy.doctor.report import Ability, Finding, Report
from fcn_deploy.doctor.tensorrt import look_at_rtx, look_at_tensorrt

__all__ = ["Ability", "Finding", "Report", "examine"]

AREA = "Libraries"


def examine(
    *,
    folder: Path = Path(),
    root: Path = Path("/"),
    path: Sequence[str] | None = None,
    pip: str = "pip",
    timeout_s: float = TIMEOUT_S,
) -> Report:
    """Look at everything that decides what fcn-deploy can do here; changes nothing.

    Args:
        folder: Where results would be written, and where ``runs`` may lie.
        root: Where ``/etc``, ``/proc``, ``/sys`` and ``/var`` lie.
        path: Where packages are looked for; ``None`` is ``sys.path``.
        pip: How pip of this Python is called; for the remedies.
        timeout_s: How long a library may take before it counts as hanging.
    """
    packages = read_packages(sys.path if path is None else path, pip)
    inquire = partial(ask, path=packages.path, timeout_s=timeout_s)
    wanted = _questions(packages, folder)
    with ThreadPoolExecutor(len(wanted) + 2) as pool:
        # PyTorch first: it takes longest.
        asked = {name: pool.submit(inquire, *words) for name, words in wanted.items()}
        runtime_asked = pool.submit(ask_onnx_runtime, inquire, packages)
        smi_asked = pool.submit(ask_smi)
        machine = look_at_machine(root, folder, _temporary())
        outcomes = {name: future.result() for name, future in asked.items()}
        runtime, smi = runtime_asked.result(), smi_asked.result()
    jetson = any(finding.name == "Jetson" for finding in machine)
    gpu = look_at_gpu(outcomes.get("cuda"), smi, packages, root)
    torch = outcomes.get("pytorch")
    findings = [
        *machine,
        gpu,
        *look_at_pytorch(torch, packages, gpu),
        *look_at_onnx_runtime(runtime, packages, gpu),
        look_at_cudnn(torch, packages),
        look_at_rtx(outcomes.get("rtx"), packages, gpu),
        look_at_tensorrt(outcomes.get("tensorrt"), packages, gpu, jetson=jetson),
        _rasterio(outcomes.get("rasterio"), packages),
        *_requirements(packages),
        _newest_run(outcomes.get("newest_run")),
    ]
    there = [finding for finding in findings if finding is not None]
    abilities = follow(there, packages)
    return Report(__version__, (*there, *_no_backend(there, abilities, packages)), abilities)


def _questions(packages: Packages, folder: Path) -> dict[str, tuple[str, ...]]:
    """What is worth asking here: nothing of libraries that are not installed."""
    asked: dict[str, tuple[str, ...]] = {}
    if packages.has_module("torch"):
        asked["pytorch"] = ("pytorch",)
    if "cuda-bindings" in packages.versions:
        asked["cuda"] = ("cuda",)
    if packages.has_module("tensorrt_rtx"):
        asked["rtx"] = ("tensorrt", "tensorrt_rtx")
    if packages.has_module("tensorrt"):
        asked["tensorrt"] = ("tensorrt", "tensorrt")
    if packages.has_module("rasterio"):
        asked["rasterio"] = ("rasterio",)
    if (folder / RUNS).is_dir():
        asked["newest_run"] = ("newest_run", str(folder))
    return asked


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # none of the usual places can be written; looking at one says why
        return Path("/tmp")


def _rasterio(outcome: Outcome | None, packages: Packages) -> Finding:
    name = "rasterio"
    if outcome is None:
        says = "not installed; needed for GeoTIFF and polygons"
        return Finding(AREA, name, "absent", says, {}, packages.install("large"))
    facts = {**outcome.facts, "works": not outcome.failure}
    if outcome.failure:
        remedy = f"{packages.pip} install --force-reinstall --no-deps rasterio"
        return Finding(AREA, name, "problem", f"does not work: {outcome.failure}", facts, remedy)
    says = f"{outcome.facts['version']}, GDAL {outcome.facts['gdal']}"
    return Finding(AREA, name, "ok", says, facts)


def _requirements(packages: Packages) -> list[Finding]:
    if not packages.requirements:
        says = "runs from a folder, and is not installed: what it needs is not known"
        remedy = f"{packages.pip} install -e {Path(__file__).parents[2]}"
        return [Finding(AREA, "fcn-deploy", "problem", says, {}, remedy)]
    return [
        Finding(
            AREA,
            need.name,
            "warning",
            f"{version} is installed, and fcn-deploy needs {need}",
            {"version": version, "needs": str(need)},
            f'{packages.pip} install --upgrade "{need}"',
        )
        for need, version in packages.too_old()
    ]


def _newest_run(outcome: Outcome | None) -> Finding | None:
    """Whether the artifacts of the newest run are of its checkpoint, where that can be told."""
    if outcome is None or outcome.failure:
        return None
    run, artifacts = outcome.facts["run"], outcome.facts["artifacts"]
    stale = [artifact for artifact in artifacts if artifact["problem"]]
    if stale:
        # The ONNX file first: plans are made of it.
        makes = "export" if stale[0]["name"].endswith(".onnx") else "build-engine --fp16"
        says, remedy = stale[0]["problem"], f"fcn-deploy {makes} {run}"
        return Finding("Machine", "newest run", "warning", says, outcome.facts, remedy)
    names = ", ".join(artifact["name"] for artifact in artifacts)
    says = f"{run}: {names} up to date" if names else f"{run}: not exported yet"
    return Finding("Machine", "newest run", "ok", says, outcome.facts)


def _no_backend(
    found: Sequence[Finding], abilities: Sequence[Ability], packages: Packages
) -> list[Finding]:
    """Said once, where nothing is broken and still no image can be segmented."""
    possible = any(a.possible for a in abilities if a.command.startswith("segment --backend"))
    if possible or any(finding.status == "problem" for finding in found):
        return []
    says = "none is installed that could segment an image"
    return [Finding(AREA, "backends", "problem", says, {}, packages.install("cpu"))]
