"""PyTorch: which build it is, whether it computes, and whether torchvision fits it."""

from __future__ import annotations

from fcn_deploy.doctor.child import Outcome
from fcn_deploy.doctor.gpu import DRIVERS
from fcn_deploy.doctor.packages import Packages
from fcn_deploy.doctor.report import Finding

AREA = "Libraries"
_WHEELS = "https://download.pytorch.org/whl"


def look_at_pytorch(torch: Outcome | None, packages: Packages, gpu: Finding) -> list[Finding]:
    """PyTorch, torchvision where it does not fit, and cuDNN where something needs it.

    Args:
        torch: Outcome of the question ``pytorch``; ``None`` if it is not installed.
        packages: What is installed.
        gpu: What was found of the GPU.
    """
    if torch is None:
        says = "not installed; needed to train and to export"
        return [Finding(AREA, "PyTorch", "absent", says, remedy=packages.install("train"))]
    found = [_pytorch(torch, packages, gpu)]
    unfit = _torchvision(torch, packages)
    return [*found, *([unfit] if unfit else [])]


def _pytorch(torch: Outcome, packages: Packages, gpu: Finding) -> Finding:
    facts = {**torch.facts, "works": not torch.failure}
    if torch.failure:
        installed = packages.version("torch") or "?"
        says = f"{installed} does not work: {torch.failure}"
        remedy = f"{packages.pip} install --force-reinstall --no-cache-dir torch torchvision"
        return Finding(AREA, "PyTorch", "problem", says, facts, remedy)
    version, cuda = facts["version"], facts["built_for_cuda"]
    if facts["device"] != "cpu":
        says = f"{version}, computes on {facts['device']}"
        return Finding(AREA, "PyTorch", "ok", says, facts)
    if not gpu.facts["devices"]:
        build = "CPU build" if cuda is None else f"built for CUDA {cuda}"
        return Finding(AREA, "PyTorch", "ok", f"{version}, {build}; computes on the CPU", facts)
    if cuda is None:
        says = f"{version} is a CPU build, and leaves the GPU idle"
        remedy = f"{packages.pip} install --force-reinstall torch torchvision"
        remedy += f" --index-url {_WHEELS}/cu{_newest_cuda(gpu)}"
        return Finding(AREA, "PyTorch", "warning", says, facts, remedy)
    says = f"{version} computes on the CPU only: {facts['why_not_cuda']}"
    return Finding(AREA, "PyTorch", "problem", says, facts, DRIVERS)


def _newest_cuda(gpu: Finding) -> str:
    """Of the wheels that PyTorch offers, those that this driver can take for sure."""
    driver = str(gpu.facts["driver_cuda"] or "13.0")
    return "130" if int(driver.partition(".")[0]) >= 13 else "126"


def _torchvision(torch: Outcome, packages: Packages) -> Finding | None:
    need, installed = packages.of_torchvision, packages.version("torchvision")
    version = str(torch.facts.get("version") or packages.version("torch") or "")
    if need is None or installed is None or not version or need.met_by(version):
        return None
    says = f"{installed} needs {need}, and torch is {version}"
    exact = "==" in dict(need.clauses)
    # With an exact need the older torch comes along; else pip finds the pair that fits.
    what = f'"{need}"' if exact else "--upgrade torch torchvision"
    _, _, build = version.partition("+")
    wheels = f" --index-url {_WHEELS}/{build}" if build == "cpu" else ""
    remedy = f"{packages.pip} install {what}{wheels}"
    facts = {"version": installed, "needs": str(need), "torch": version}
    return Finding(AREA, "torchvision", "problem", says, facts, remedy)


def look_at_cudnn(torch: Outcome | None, packages: Packages) -> Finding | None:
    """CuDNN, where a library is installed that computes with it; else nothing to say."""
    from_torch = torch.facts.get("cudnn") if torch else None
    with_gpu = "onnxruntime-gpu" in packages.onnx_runtimes()
    if not with_gpu and not (torch and torch.facts.get("built_for_cuda")):
        return None
    wheel = packages.version("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
    facts = {"wheel": wheel, "torch": from_torch}
    if wheel is None and from_torch is None:
        says = "no wheel of it; CUDA in ONNX Runtime needs libcudnn.so.9"
        return Finding(AREA, "cuDNN", "absent", says, facts, packages.install("gpu"))
    version = wheel or _release(int(from_torch or 0))
    return Finding(AREA, "cuDNN", "ok", version, facts)


def _release(number: int) -> str:
    """9.26.0 of 92600: since cuDNN 9, five digits."""
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"
