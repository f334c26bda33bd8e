"""ONNX Runtime: which packages bring it, and which execution provider really computes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fcn_deploy.doctor.child import Ask, Outcome
from fcn_deploy.doctor.gpu import DRIVERS
from fcn_deploy.doctor.packages import Packages
from fcn_deploy.doctor.probe import RTX_PROVIDER
from fcn_deploy.doctor.report import Finding

AREA = "Libraries"
NAME = "ONNX Runtime"
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SUPPORTED = {CPU: "CPU", CUDA: "CUDA", TENSORRT: "TensorRT", RTX_PROVIDER: "RTX"}
PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx"


@dataclass(frozen=True)
class OnnxRuntime:
    """What became of its questions.

    Attributes:
        listed: Outcome of ``providers``.
        tried: Outcome of ``provider`` for each that is listed and known here.
    """

    listed: Outcome
    tried: dict[str, Outcome] = field(default_factory=dict)


def ask_onnx_runtime(ask: Ask, packages: Packages) -> OnnxRuntime | None:
    """Try the one-node model on every provider; ``None`` if ONNX Runtime is not installed."""
    if not packages.onnx_runtimes() and not packages.has_module("onnxruntime"):
        return None
    listed = ask("providers")
    there = [name for name in SUPPORTED if name in listed.facts.get("providers", ())]
    if PLUGIN in packages.versions and not listed.failure:
        there.append(RTX_PROVIDER)
    with ThreadPoolExecutor(len(there) or 1) as pool:
        outcomes = pool.map(lambda name: ask("provider", name), there)
        return OnnxRuntime(listed, dict(zip(there, outcomes, strict=True)))


def look_at_onnx_runtime(
    runtime: OnnxRuntime | None, packages: Packages, gpu: Finding
) -> list[Finding]:
    """The packages, and one finding for each provider.

    Args:
        runtime: What :func:`ask_onnx_runtime` returned.
        packages: What is installed.
        gpu: What was found of the GPU.
    """
    if runtime is None:
        has_gpu = bool(gpu.facts["devices"])
        remedy = packages.install("gpu" if has_gpu else "cpu")
        return [Finding(AREA, NAME, "absent", "not installed; --backend ort needs it", {}, remedy)]
    found = [_packages(runtime.listed, packages)]
    for provider, outcome in runtime.tried.items():
        found.append(_provider(provider, outcome, packages, gpu))
    return found


def _packages(listed: Outcome, packages: Packages) -> Finding:
    names = packages.onnx_runtimes()
    facts = {"packages": {name: packages.versions[name] for name in names}, **listed.facts}
    wanted = "gpu" if "onnxruntime-gpu" in names else "cpu"
    if len(names) > 1:
        # Each wrote its files over those of the other; uninstalling one takes them from both.
        says = f"{' and '.join(names)} overwrite each other's files"
        remedy = f"{packages.pip} uninstall -y {' '.join(names)} && {packages.install(wanted)}"
        return Finding(AREA, NAME, "problem", says, facts, remedy)
    if listed.failure:
        name = names[0] if names else "onnxruntime"
        says = f"{name} does not work: {listed.failure}"
        remedy = f"{packages.pip} install --force-reinstall --no-deps {name}"
        return Finding(AREA, NAME, "problem", says, facts, remedy)
    cuda = f", built for CUDA {listed.facts['cuda']}" if listed.facts["cuda"] else ""
    says = f"{listed.facts['version']}{cuda}" + (f" ({names[0]})" if names else "")
    return Finding(AREA, NAME, "ok", says, facts)


def _provider(provider: str, outcome: Outcome, packages: Packages, gpu: Finding) -> Finding:
    name = f"{SUPPORTED[provider]} provider"
    active = outcome.facts.get("active", "")
    cause = _cause(provider, outcome)
    facts = {"provider": provider, "active": active, "works": not cause, "cause": cause}
    if not cause:
        return Finding(AREA, name, "ok", "computes; result checked", facts)
    if provider == TENSORRT and _lacks_tensorrt(cause, packages):
        # Every onnxruntime-gpu lists it, whether anybody wants it or not.
        wheels = "cu12" if _is_cuda_12(packages, cause) else "cu13"
        says = f"optional; needs TensorRT 10: {cause}"
        remedy = f'{packages.pip} install "tensorrt-{wheels}==10.16.*"'
        return Finding(AREA, name, "absent", says, facts, remedy)
    remedy = _remedy(provider, cause, packages, gpu)
    return Finding(AREA, name, "problem", f"listed, but does not work: {cause}", facts, remedy)


def _cause(provider: str, outcome: Outcome) -> str:
    """Why a provider does not work, in one line; empty if it does."""
    if not outcome.failure and outcome.facts.get("active") == provider:
        return "" if outcome.facts.get("right") else "it computes wrong numbers"
    # ONNX Runtime says it on the terminal and goes on with the CPU, or fails for want of that.
    said = f"{outcome.said}\n{outcome.failure}"
    missing = re.search(r"(lib[\w.+-]+): cannot open shared object", said)
    if missing:
        driver = " (the NVIDIA driver)" if missing[1].startswith("libcuda.so") else ""
        return f"{missing[1]}{driver} is missing"
    if of_cuda := re.search(r"CUDA (?:failure|error)[^:]*: *([^;\n]+)", said):
        return of_cuda[1].strip()
    if outcome.failure:
        return re.sub(r"^\w+: \[ONNXRuntimeError\] : \d+ : \w+ : ", "", outcome.failure)
    return f"the session computes on {outcome.facts.get('active')}"


def _lacks_tensorrt(cause: str, packages: Packages) -> bool:
    installed = packages.version("tensorrt", "tensorrt-cu13", "tensorrt-cu12") or ""
    return "libnvinfer" in cause or not installed.startswith("10.")


def _is_cuda_12(packages: Packages, cause: str) -> bool:
    return ".so.12" in cause or "nvidia-cuda-runtime-cu12" in packages.versions


def _remedy(provider: str, cause: str, packages: Packages, gpu: Finding) -> str:
    names = packages.onnx_runtimes() or ("onnxruntime",)
    if provider == CPU:
        return f"{packages.pip} install --force-reinstall --no-deps {names[0]}"
    if gpu.status == "ok":
        if provider == RTX_PROVIDER:
            return f"{packages.pip} install --upgrade {PLUGIN}"
        return packages.install("gpu")
    if gpu.remedy:
        return gpu.remedy
    if provider == RTX_PROVIDER:
        return f"{packages.pip} uninstall -y {PLUGIN}"
    if "libcuda.so" in cause and gpu.facts["devices"]:
        return DRIVERS
    # No GPU that this could run on.
    return f"{packages.pip} uninstall -y {' '.join(names)} && {packages.install('cpu')}"
