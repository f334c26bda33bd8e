"""What follows from the findings: which commands can do their work here, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fcn_deploy.doctor.gpu import capability
from fcn_deploy.doctor.onnx_runtime import SUPPORTED
from fcn_deploy.doctor.packages import Packages
from fcn_deploy.doctor.report import Ability, Finding
from fcn_deploy.doctor.tensorrt import RTX, STANDARD, rtx_supports

Found = Mapping[str, Finding]


def follow(findings: Sequence[Finding], packages: Packages) -> tuple[Ability, ...]:
    """One ability for each command, and for each backend of ``segment``."""
    found = {finding.name: finding for finding in findings}
    return (
        _eager("train", found, packages),
        _export(found, packages),
        _build_rtx(found, packages),
        _build_standard(found, packages),
        _eager("segment --backend eager", found, packages),
        _onnx_runtime("segment --backend ort", found, packages),
        _engine(found),
        _rasters(found),
    )


def works(found: Found, name: str) -> bool:
    """Whether a library is there and did what was asked of it."""
    return name in found and bool(found[name].facts.get("works"))


def _lacking(command: str, extra: str, packages: Packages) -> Ability | None:
    missing = packages.missing(extra)
    if not missing:
        return None
    # All of them would be half a line of names that pip knows better.
    what = ", ".join(missing) if len(missing) < 3 else f"the {len(missing)} packages of [{extra}]"
    return Ability(command, False, f"needs {what}", packages.install(extra))


def _broken(command: str, name: str) -> Ability:
    return Ability(command, False, f"{name} does not work; see below")


def _eager(command: str, found: Found, packages: Packages) -> Ability:
    if lacking := _lacking(command, "train", packages):
        return lacking
    for name in ("PyTorch", "torchvision"):
        if name in found and not works(found, name):
            return _broken(command, name)
    device = found["PyTorch"].facts["device"]
    return Ability(command, True, "on the CPU" if device == "cpu" else f"on {device}")


def _export(found: Found, packages: Packages) -> Ability:
    torch = _eager("export", found, packages)
    runtime = _onnx_runtime("export", found, packages)
    if torch.possible and runtime.possible:
        return Ability("export", True, "and compare with PyTorch")
    if torch.possible:
        says = "with --no-verify: comparing needs ONNX Runtime"
        return Ability("export", True, says, runtime.remedy)
    return torch


def _onnx_runtime(command: str, found: Found, packages: Packages) -> Ability:
    if lacking := _lacking(command, "cpu", packages):
        return lacking
    usable = [name.lower() for name in SUPPORTED.values() if works(found, f"{name} provider")]
    if not usable:
        return _broken(command, "ONNX Runtime")
    only_cpu = usable == ["cpu"]
    says = "on the CPU" if only_cpu else f"with --provider {', '.join(sorted(usable))}"
    return Ability(command, True, says)


def _build_rtx(found: Found, packages: Packages) -> Ability:
    command = "build-engine --flavour rtx"
    if found[RTX].status == "absent":
        says = f"needs {RTX}" if found[RTX].remedy else f"no {RTX} for this processor"
        return Ability(command, False, says, found[RTX].remedy)
    if not works(found, RTX):
        return _broken(command, RTX)
    if lacking := _lacking(command, "rtx", packages):
        return lacking
    return Ability(command, True, "also for GPUs that are not here")


def _build_standard(found: Found, packages: Packages) -> Ability:
    command = "build-engine --flavour tensorrt"
    if not found["GPU"].facts["devices"]:
        return Ability(command, False, "needs the GPU that the engine is for")
    if found[STANDARD].status == "absent":
        return Ability(command, False, f"needs {STANDARD}", found[STANDARD].remedy)
    if not works(found, STANDARD):
        return _broken(command, STANDARD)
    if lacking := _lacking(command, "trt", packages):
        return lacking
    return Ability(command, True, "for this GPU")


def _engine(found: Found) -> Ability:
    command, gpu = "segment --backend trt", found["GPU"]
    if not gpu.facts["devices"]:
        return Ability(command, False, "needs an NVIDIA GPU and its driver")
    if gpu.status != "ok":
        return _broken(command, "CUDA")
    mine = capability(gpu)
    flavours = [STANDARD] if works(found, STANDARD) else []
    if works(found, RTX) and (mine is None or rtx_supports(mine)):
        flavours.append(RTX)
    if flavours:
        return Ability(command, True, f"engines of {' and '.join(flavours)}")
    wanted = RTX if mine and rtx_supports(mine) and found[RTX].remedy else STANDARD
    return Ability(command, False, f"needs {wanted} for this GPU", found[wanted].remedy)


def _rasters(found: Found) -> Ability:
    command = "segment GeoTIFF, --save polygons"
    rasterio = found["rasterio"]
    if works(found, "rasterio"):
        return Ability(command, True, "rasterio is there")
    if rasterio.status == "absent":
        return Ability(command, False, "needs rasterio", rasterio.remedy)
    return _broken(command, "rasterio")
