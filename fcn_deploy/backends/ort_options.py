"""What each execution provider on NVIDIA GPUs is told, in its own words."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.backends import ShapeLimits
from fcn_deploy.errors import EnvironmentFault
from fcn_deploy.recipe import Shapes
from fcn_deploy.spec import INPUT

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"

BUILDERS = (TENSORRT, RTX)
"""Providers that make an engine for certain shapes before they compute."""

CUDA_OPTIONS = {
    "device_id": "0",
    # Float32 is promised to be within 1e-4 of the range; TF32 has the mantissa of FP16.
    "use_tf32": "0",
    # An exhaustive search times all algorithms for each new shape, which takes seconds where
    # images differ in size; and from run to run it may choose others, and so give another mask.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Doubling would take up to twice the memory that the largest crop needs.
    "arena_extend_strategy": "kSameAsRequested",
}

_TENSORRT_OPTIONS = {
    "device_id": "0",
    # The types of the graph decide, as everywhere else.
    "trt_fp16_enable": "0",
    "trt_int8_enable": "0",
}


@dataclass(frozen=True)
class GpuSettings:
    """How a model is run on GPUs; of no effect on CPUs.

    Attributes:
        batch: Crops that are computed at once, as long as memory lasts.
        shapes: Crops that TensorRT and TensorRT-RTX make an engine for; others are refused.
        cache: Folder for engines and kernels that these two have built, to be found again by later
            processes. They are loaded as code: it must not be a folder that others write to, and
            none that came with a model. ``None``: build anew in each process.
    """

    batch: int = 4
    shapes: Shapes = Shapes()
    cache: Path | None = None

    def limits(self, provider: str, step: int) -> ShapeLimits:
        """Crops that a session on a provider will take.

        Args:
            provider: In ONNX Runtime's spelling.
            step: Output stride of the network, in pixels.

        Raises:
            ShapeError: No engine can be made for these shapes.
        """
        if provider not in BUILDERS:
            return ShapeLimits(step=step)
        shapes = self.shapes
        shapes.check(step)
        return ShapeLimits(shapes.max_batch, shapes.min_hw, shapes.opt_hw, shapes.max_hw, step)

    def at_once(self, provider: str) -> int:
        """Crops to compute at once on a provider, in ONNX Runtime's spelling."""
        return min(self.batch, self.shapes.max_batch) if provider in BUILDERS else self.batch


Chain = list[tuple[str, dict[str, str]]]
"""Execution providers with their options, in the order of their precedence."""


def chain_of(provider: str, settings: GpuSettings, content: bytes) -> Chain:
    """What to open a session with.

    Args:
        provider: In ONNX Runtime's spelling.
        settings: Of the user.
        content: The serialised graph, with its weights.

    Raises:
        EnvironmentFault: The folder for engines cannot be written.
    """
    if provider == CUDA:
        return [(CUDA, dict(CUDA_OPTIONS))]
    if provider not in BUILDERS:
        return [(provider, {})]
    folder = None if settings.cache is None else str(_folder_of(settings.cache, content))
    if provider == RTX:
        options = _profile("nv", settings.shapes)
        if folder:
            options["nv_runtime_cache_path"] = folder
        return [(RTX, options)]
    options = {**_TENSORRT_OPTIONS, **_profile("trt", settings.shapes)}
    if folder:
        options.update(trt_engine_cache_enable="1", trt_engine_cache_path=folder)
        options.update(trt_timing_cache_enable="1", trt_timing_cache_path=folder)
    # What TensorRT leaves aside would otherwise be computed on the CPU.
    return [(TENSORRT, options), (CUDA, dict(CUDA_OPTIONS))]


def _profile(prefix: str, shapes: Shapes) -> dict[str, str]:
    def crops(count: int, height_width: tuple[int, int]) -> str:
        return f"{INPUT}:{count}x{height_width[0]}x{height_width[1]}x3"

    return {
        f"{prefix}_profile_min_shapes": crops(1, shapes.min_hw),
        f"{prefix}_profile_opt_shapes": crops(shapes.max_batch, shapes.opt_hw),
        f"{prefix}_profile_max_shapes": crops(shapes.max_batch, shapes.max_hw),
    }


def _folder_of(cache: Path, content: bytes) -> Path:
    """A folder for one graph with its weights.

    The TensorRT provider names its files by the form of a graph. An engine with the weights of an
    earlier training would be taken for this one's, and nobody would notice.
    """
    folder = cache / hashlib.sha256(content).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise EnvironmentFault(
            f"Engines cannot be kept in {folder}: {error.strerror}.",
            "Name a folder that can be written, or none.",
        ) from error
    return folder
