"""A typed ONNX graph to TensorRT plans and their passport; builds, never runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.backends.tensorrt_flavour import (
    Flavour,
    device_capability,
    find_builder,
    require_gpu,
)
from fcn_deploy.engine.configure import configure, require_offered
from fcn_deploy.engine.network import parse
from fcn_deploy.engine.proof import float32_head, prove, require_fp16
from fcn_deploy.engine.run_builder import run_builder
from fcn_deploy.engine.timing_cache import (
    keep_timing_cache,
    read_timing_cache,
    timing_cache_path,
)
from fcn_deploy.engine_files import part_path, write_engine
from fcn_deploy.errors import ModelError
from fcn_deploy.half_range import require_range
from fcn_deploy.onnx_file import OnnxModel, identity, read_onnx, to_half
from fcn_deploy.onnx_parts import GraphPart, parts_of, upsampling_bytes, upsampling_of_scores
from fcn_deploy.parity import ParityReport, compare
from fcn_deploy.passport import HEAD, UPSAMPLING, WHOLE, Part, Passport, Precision
from fcn_deploy.plan_name import PlanName
from fcn_deploy.receptive import exact_halo
from fcn_deploy.recipe import EngineOptions

OnProgress = Callable[[str, int, int], None]
"""Called with the part and phase, the step that is done, and the number of steps."""


@dataclass(frozen=True)
class _Built:
    content: bytes
    precision: Precision


def build_engine(
    source: Path,
    path: Path,
    options: EngineOptions,
    *,
    crops: Iterable[NDArray[np.uint8]] | None,
    cache: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Passport:
    """Build an engine from an exported ONNX file, and prove what it computes in.

    Args:
        source: A file of ``fcn-deploy export``; a float32 graph is turned into its FP16 twin
            where the options ask for it.
        path: Where the whole plan goes; its other parts and the passport go beside it.
        options: How to build it.
        crops: Batches (N, H, W, 3) uint8 on which the typed graph is compared with ``source`` in
            ONNX Runtime before it is built; ``None`` skips that.
        cache: Folder for measurements that shorten later builds; ``None``: keep none.
        on_progress: Told of the builder's phases.

    Raises:
        ModelError: The file is not usable, or TensorRT refuses it.
        ShapeError: The shapes contradict each other.
        UsageError: An option that the flavour does not have.
        CheckFailedError: The typed graph differs, or the engine is not what was asked for.
        EnvironmentFault: TensorRT is missing, needs a GPU, or the plan cannot be written.
    """
    model = read_onnx(source)
    options.check(model.spec.output_stride)
    flavour = find_builder(options.flavour)
    require_offered(flavour, options)
    typed = _typed(model, fp16=options.fp16)
    parity = None if crops is None else _verify(model, typed, crops)
    digest = identity(source)
    timing = None
    if cache is not None and options.timing_cache and not flavour.is_rtx:
        timing = timing_cache_path(cache, flavour, require_gpu())
    parts = parts_of(typed, options.profiles)
    contents: dict[str, bytes] = {}
    precisions: dict[str, Precision] = {}
    for part in parts:
        name = PlanName(part.role, typed.precision, digest, model.spec)
        built = _build(flavour, part, source, name, _for(part, options), timing, on_progress)
        if options.fp16 and not (part.role == HEAD and float32_head(part.proto)):
            require_fp16(built.precision, part.role)
        contents[part.role], precisions[part.role] = built.content, built.precision
    upsampling = upsampling_of_scores(typed)
    if HEAD in contents and upsampling is not None:
        contents[UPSAMPLING] = upsampling_bytes(upsampling)
    passport = Passport(
        parts=_described(path, parts, contents),
        source=source.name,
        source_sha256=digest,
        flavour=flavour.name,
        version=flavour.version,
        targets=options.targets or _own_targets(flavour),
        options=replace(options, flavour=flavour.name),
        precision=precisions[WHOLE],
        parity=None if parity is None else parity.as_dict(),
        spec=model.spec,
        halo=_halo(model),
        border="zeros" if upsampling is None else upsampling.border,
    )
    write_engine(path, contents, passport)
    return passport


def _build(
    flavour: Flavour,
    part: GraphPart,
    source: Path,
    name: PlanName,
    options: EngineOptions,
    timing: Path | None,
    on_progress: OnProgress | None,
) -> _Built:
    parsed = parse(flavour, part, f"the {part.role} of {source}", name.to_text())
    config = configure(flavour, parsed, part, options, read_timing_cache(timing))

    def on_step(phase: str, step: int, steps: int) -> None:
        if on_progress is not None:
            on_progress(f"{part.role}: {phase}", step, steps)

    plan = run_builder(flavour, parsed, config, on_step)
    keep_timing_cache(timing, config)
    return _Built(plan, prove(flavour, parsed, part, plan))


def _for(part: GraphPart, options: EngineOptions) -> EngineOptions:
    """Options of one part: a head multiplies and compares, which no accelerator but the GPU can."""
    return replace(options, dla_core=None) if part.role == HEAD else options


def _described(
    path: Path, parts: tuple[GraphPart, ...], contents: dict[str, bytes]
) -> dict[str, Part]:
    profiles = {part.role: part.profiles for part in parts}
    return {
        role: Part(
            part_path(path, role).name, hashlib.sha256(content).hexdigest(), profiles.get(role, ())
        )
        for role, content in contents.items()
    }


def _halo(model: OnnxModel) -> int | None:
    try:
        return exact_halo(model.proto, model.spec)
    except ModelError:  # a layer whose reach is not known
        return None


def _own_targets(flavour: Flavour) -> tuple[str, ...]:
    """What a plan runs on if nobody named targets: RTX chooses several, TensorRT this GPU alone."""
    return ("portable",) if flavour.is_rtx else (device_capability(require_gpu()),)


def _typed(model: OnnxModel, *, fp16: bool) -> OnnxModel:
    """The graph with the types that the engine is to compute in: they are the graph's alone."""
    if fp16 and model.precision == "fp32":
        return OnnxModel(to_half(model.proto), model.spec, model.outputs, "fp16")
    return model


def _verify(
    source: OnnxModel, typed: OnnxModel, crops: Iterable[NDArray[np.uint8]]
) -> ParityReport | None:
    if typed is source or "logits" not in source.outputs:
        return None  # nothing was changed, or nothing can be compared
    crops = list(crops)
    require_range(source.proto, crops)
    from fcn_deploy.backends.ort import OrtBackend  # a build without comparison does not need it

    with (
        OrtBackend(source, Path("the source"), "CPUExecutionProvider") as reference,
        OrtBackend(typed, Path("its FP16 twin"), "CPUExecutionProvider") as candidate,
    ):
        report = compare(reference, candidate, crops)
    report.require()
    return report
