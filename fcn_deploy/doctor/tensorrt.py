"""TensorRT and TensorRT-RTX: whether they load and build here, and whether this GPU is theirs."""

from __future__ import annotations

import platform

from fcn_deploy.doctor.child import Outcome
from fcn_deploy.doctor.gpu import capability
from fcn_deploy.doctor.packages import Packages
from fcn_deploy.doctor.report import Finding

AREA = "Libraries"
RTX, STANDARD = "TensorRT-RTX", "TensorRT"
WHEELS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9))
"""GPUs that TensorRT-RTX runs on, besides all of 12.x: not Orin (8.7), Hopper, B200, Thor."""
RTX_NAMED = ((7, 5), (8, 0))
"""Those of them that an engine has to be built for by name."""


def rtx_supports(gpu: tuple[int, int]) -> bool:
    """Whether engines of TensorRT-RTX run on GPUs of that compute capability."""
    return gpu[0] == 12 or gpu in RTX_CAPABILITIES


def look_at_rtx(outcome: Outcome | None, packages: Packages, gpu: Finding) -> Finding:
    """TensorRT-RTX, which builds anywhere.

    Args:
        outcome: Of the question ``tensorrt`` for it; ``None`` if it is not installed.
        packages: What is installed.
        gpu: What was found of the GPU.
    """
    mine = capability(gpu)
    supported = None if mine is None else rtx_supports(mine)
    if outcome is None:
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        if x86:
            says = "not installed; builds engines without a GPU, too"
            return Finding(AREA, RTX, "absent", says, {}, packages.install("rtx"))
        return Finding(AREA, RTX, "absent", "there are only packages for x86-64")
    facts = {**outcome.facts, "gpu_supported": supported, "works": not outcome.failure}
    installed = outcome.facts.get("version") or packages.version("tensorrt-rtx") or ""
    if outcome.failure:
        says = f"{installed} does not build: {outcome.failure}"
        names = [name for name in packages.versions if name.startswith("tensorrt-rtx")]
        remedy = f"{packages.pip} install --force-reinstall {' '.join(names) or 'tensorrt-rtx'}"
        return Finding(AREA, RTX, "problem", says, facts, remedy)
    says = f"{installed}, builds engines here"
    if supported is False and mine is not None:
        # Built here for other machines they are as good as anywhere.
        says += f"; they do not run on this GPU (sm{mine[0]}{mine[1]})"
    elif mine in RTX_NAMED and mine is not None:
        says += f"; for this GPU with --target sm{mine[0]}{mine[1]}"
    return Finding(AREA, RTX, "ok", says, facts)


def look_at_tensorrt(
    outcome: Outcome | None, packages: Packages, gpu: Finding, *, jetson: bool
) -> Finding:
    """TensorRT, which builds on the GPU that an engine is for.

    Args:
        outcome: Of the question ``tensorrt`` for it; ``None`` if there is no such module.
        packages: What is installed.
        gpu: What was found of the GPU.
        jetson: Whether it comes with JetPack, by apt.
    """
    installed = packages.version(*WHEELS)
    if outcome is None and installed is None:
        return _absent(packages, gpu, jetson=jetson)
    facts = {"version": installed, "works": False, **(outcome.facts if outcome else {})}
    failure = outcome.failure if outcome else "there is no module tensorrt"
    if failure and not jetson and _is_stub(packages, failure):
        says = f"{installed}: the package is there, its libraries are not"
        remedy = (
            f"{packages.pip} install --force-reinstall --no-cache-dir tensorrt "
            "--extra-index-url https://pypi.nvidia.com"
        )
        return Finding(AREA, STANDARD, "problem", says, {**facts, "stub": True}, remedy)
    if failure:
        says = f"{installed or 'it'} does not load: {failure}"
        remedy = (
            "sudo apt install --reinstall python3-libnvinfer libnvinfer10"
            if jetson
            else f"{packages.pip} install --force-reinstall --no-cache-dir tensorrt"
        )
        return Finding(AREA, STANDARD, "problem", says, facts, remedy)
    facts["works"] = True
    says = f"{facts['version']}, loads"
    if facts.get("builder"):
        says = f"{facts['version']}, can build for this GPU"
    elif not gpu.facts["devices"]:
        says += "; needs a GPU to build and to run"
    return Finding(AREA, STANDARD, "ok", says, facts)


def _absent(packages: Packages, gpu: Finding, *, jetson: bool) -> Finding:
    if jetson:
        # JetPack's bindings lie in the system's Python, where a plain environment does not look.
        remedy = (
            "sudo apt install python3-libnvinfer && python3 -m venv --system-site-packages .venv"
        )
        says = "not seen by this Python; JetPack has it"
        return Finding(AREA, STANDARD, "warning", says, {}, remedy)
    if not gpu.facts["devices"]:
        says = "not installed; needs an NVIDIA GPU"
        return Finding(AREA, STANDARD, "absent", says)
    says = "not installed; builds engines for this GPU"
    return Finding(AREA, STANDARD, "absent", says, {}, packages.install("trt"))


def _is_stub(packages: Packages, failure: str) -> bool:
    """Whether pip got the package that fetches TensorRT, but not what it was to fetch."""
    names = packages.versions
    libraries = any(
        name.startswith("tensorrt-") and name.endswith("-libs") and "rtx" not in name
        for name in names
    )
    not_found = failure.startswith(("ModuleNotFoundError", "ImportError", "OSError", "there is no"))
    return not_found and not libraries and any(name in names for name in WHEELS)
