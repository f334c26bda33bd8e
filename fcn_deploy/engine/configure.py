"""Options of a build as a TensorRT configuration; what a flavour does not have is refused."""

from __future__ import annotations

from typing import Any

from fcn_deploy.backends.tensorrt_flavour import Flavour
from fcn_deploy.engine.network import Network
from fcn_deploy.errors import ModelError, UsageError
from fcn_deploy.onnx_parts import GraphPart
from fcn_deploy.recipe import EngineOptions

_RESIZE = "RUNTIME_ACTIVATION_RESIZE_10_10"
_LEVELS = {
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}


def require_offered(flavour: Flavour, options: EngineOptions) -> None:
    """Refuse options that the flavour does not have, before anything is built.

    Raises:
        UsageError: Names the option and what to do without it.
    """
    who = f"{flavour.name} {flavour.version}"
    if options.targets and not flavour.is_rtx:
        raise UsageError(
            f"{who} builds for the GPU it runs on, not for --target.",
            "Build on the device itself, or with --flavour rtx.",
        )
    if not flavour.is_rtx:
        return
    asked = {
        "--optimization-level": options.optimization_level is not None,
        "--hardware-compatibility": options.hardware_compatibility != "none",
        "--version-compatible": options.version_compatible,
        "--refit": options.refit,
        "--dla-core": options.dla_core is not None,
    }
    for name, wanted in asked.items():
        if wanted:
            raise UsageError(
                f"{who} has no {name}: it compiles kernels where the engine is loaded.",
                "Leave it out, name GPUs with --target, or build with --flavour tensorrt.",
            )


def configure(
    flavour: Flavour,
    parsed: Network,
    part: GraphPart,
    options: EngineOptions,
    timing_cache: bytes | None,
) -> Any:
    """The library's configuration of one build.

    Args:
        flavour: The library.
        parsed: What is to be built.
        part: Whence it came.
        options: Offered by the flavour, see :func:`require_offered`.
        timing_cache: Measurements of earlier builds, maybe none yet; ``None``: keep none.

    Raises:
        ModelError: The library refuses the shapes.
        UsageError: A value that this release of the library, or this device, does not have.
    """
    trt = flavour.trt
    config = parsed.builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # read back after the build
    # With it a context takes memory for the shape at hand instead of the largest (10.10 and later).
    if hasattr(trt.PreviewFeature, _RESIZE):
        config.set_preview_feature(getattr(trt.PreviewFeature, _RESIZE), True)
    for profile in part.profiles:
        shapes = parsed.builder.create_optimization_profile()
        shapes.set_shape(part.input, *map(part.dims, (profile.min, profile.opt, profile.max)))
        if config.add_optimization_profile(shapes) < 0:
            raise ModelError(f"{flavour.name} refuses the shapes: {flavour.first_error}")
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if flavour.is_rtx:
        _set_targets(flavour, config, options.targets)
        return config
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatibility != "none":
        level = _LEVELS[options.hardware_compatibility]
        if not hasattr(trt.HardwareCompatibilityLevel, level):
            raise UsageError(
                f"{flavour.name} {flavour.version} has no hardware compatibility "
                f"{options.hardware_compatibility}.",
                "Leave it out, or install TensorRT 10.16 or later.",
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.refit:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.dla_core is not None:
        _use_dla(flavour, parsed, config, options.dla_core)
    if timing_cache is not None:
        config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False)
    return config


def _use_dla(flavour: Flavour, parsed: Network, config: Any, core: int) -> None:
    trt, there = flavour.trt, parsed.builder.num_DLA_cores
    if core >= there:
        raise UsageError(
            f"There is no DLA core {core} here: {flavour.name} {flavour.version} finds {there}.",
            "Orin NX and AGX Orin have two, under TensorRT 10 up to 10.7, or 11.4.1 and later.",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    # Neither uint8, nor arg-max, nor large transposed convolutions run there.
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _set_targets(flavour: Flavour, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    known = flavour.trt.ComputeCapability
    names = [target.upper() for target in targets]
    for name in names:
        if not name.startswith("SM") or not hasattr(known, name):
            there = ", ".join(sorted(n.lower() for n in dir(known) if n.startswith("SM")))
            raise UsageError(
                f"{flavour.name} {flavour.version} cannot build for {name.lower()}.",
                f"Targets: {there}.",
            )
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        if not config.set_compute_capability(getattr(known, name), index):
            raise UsageError(f"{flavour.name} refuses the target {name}: {flavour.first_error}.")
