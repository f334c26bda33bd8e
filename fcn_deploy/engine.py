"""A typed ONNX graph to a TensorRT plan and its passport; builds, never runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.numpy_helper
from numpy.typing import NDArray
from onnx import TensorProto

from fcn_deploy.artifacts import sha256
from fcn_deploy.backends.tensorrt_flavour import (
    Flavour,
    device_capability,
    find_builder,
    require_gpu,
)
from fcn_deploy.errors import CheckFailedError, EnvironmentFault, ModelError, UsageError
from fcn_deploy.onnx_file import WEIGHTED, OnnxModel, read_onnx, to_half
from fcn_deploy.parity import ParityReport, compare
from fcn_deploy.passport import Passport, Precision, Profile, write_plan
from fcn_deploy.receptive import halo_for, reach_of_scores
from fcn_deploy.recipe import Recipe
from fcn_deploy.spec import INPUT

OnProgress = Callable[[str, int, int], None]
"""Called with the phase, the step that is done, and the number of steps."""

_PROOF_BYTES = 4096
"""Weights are looked for in the plan by their first bytes: 2,048 halves do not occur by chance."""


def build_engine(
    source: Path,
    path: Path,
    recipe: Recipe,
    *,
    crops: Iterable[NDArray[np.uint8]] | None,
    on_progress: OnProgress | None = None,
) -> Passport:
    """Build a plan from an exported ONNX file, and prove what it computes in.

    Args:
        source: A file of ``fcn-deploy export``; a float32 graph is turned into its FP16 twin
            where the recipe asks for it.
        path: Where the plan goes; the passport goes beside it.
        recipe: What to build for.
        crops: Batches (N, H, W, 3) uint8 on which the typed graph is compared with ``source`` in
            ONNX Runtime before it is built; ``None`` skips that.
        on_progress: Told of the builder's phases.

    Raises:
        ModelError: The file is not usable, or TensorRT refuses it.
        ShapeError: The shapes of the recipe contradict each other.
        UsageError: A target that the flavour does not have.
        CheckFailedError: The typed graph differs, or the engine is not what was asked for.
        EnvironmentFault: TensorRT is missing, needs a GPU, or the plan cannot be written.
    """
    model = read_onnx(source)
    recipe.check(model.spec.output_stride)
    typed = _typed(model, fp16=recipe.fp16)
    parity = None if crops is None else _verify(model, typed, crops)
    flavour = find_builder(recipe.flavour)
    network, builder, keep = _parse(flavour, typed, source)
    config, profile = _configure(flavour, builder, recipe)
    plan = _build(flavour, builder, network, config, on_progress)
    del keep  # the network reads the parser's weights until it is built
    precision = _prove(flavour, network, typed, plan)
    if recipe.fp16 and precision.computes != "fp16":
        raise CheckFailedError(
            f"The engine was to compute in FP16, but {_evidence(precision)}.",
            "It was not written. Please report this with the TensorRT version.",
        )
    passport = Passport(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        source=source.name,
        source_sha256=sha256(source),
        flavour=flavour.name,
        version=flavour.version,
        targets=recipe.targets or _own_targets(flavour),
        profile=profile,
        precision=precision,
        parity=None if parity is None else parity.as_dict(),
        spec=model.spec,
        halo=_halo(model),
    )
    write_plan(path, plan, passport)
    return passport


def _halo(model: OnnxModel) -> int | None:
    try:
        stride = model.spec.score_stride
        return halo_for(reach_of_scores(model.proto, stride), stride, model.spec.output_stride)
    except ModelError:  # no scores, or a layer whose reach is not known
        return None


def _own_targets(flavour: Flavour) -> tuple[str, ...]:
    """What a plan runs on if nobody named targets: RTX chooses several, TensorRT this GPU alone."""
    return ("portable",) if flavour.name == "rtx" else (device_capability(require_gpu()),)


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
    from fcn_deploy.backends.ort import OrtBackend  # a build without comparison does not need it

    with (
        OrtBackend(source, Path("the source"), "CPUExecutionProvider") as reference,
        OrtBackend(typed, Path("its FP16 twin"), "CPUExecutionProvider") as candidate,
    ):
        report = compare(reference, candidate, crops)
    report.require()
    return report


def _parse(flavour: Flavour, model: OnnxModel, source: Path) -> tuple[Any, Any, Any]:
    trt = flavour.trt
    try:
        builder = trt.Builder(flavour.logger)
    except TypeError as error:  # pybind's "factory function returned nullptr"
        raise EnvironmentFault(
            f"{flavour.name} {flavour.version} cannot build here: {flavour.first_error}.",
            "TensorRT needs a GPU to build; --flavour rtx does not.",
        ) from error
    # Typed networks are the only ones that TensorRT 11 and RTX have; TensorRT 10 must be told.
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, flavour.logger)
    content = model.proto.SerializeToString()
    if not parser.parse(content):
        first = parser.get_error(0) if parser.num_errors else None
        cause = flavour.first_error if first is None else f"{first.node_operator()}: {first.desc()}"
        raise ModelError(f"{flavour.name} {flavour.version} refuses {source}: {cause}")
    return network, builder, (parser, content)


def _configure(flavour: Flavour, builder: Any, recipe: Recipe) -> tuple[Any, Profile]:
    config = builder.create_builder_config()
    profile = Profile((1, *recipe.min_hw), (1, *recipe.opt_hw), (recipe.max_batch, *recipe.max_hw))
    shapes = builder.create_optimization_profile()
    shapes.set_shape(INPUT, (*profile.min, 3), (*profile.opt, 3), (*profile.max, 3))
    if config.add_optimization_profile(shapes) < 0:
        raise ModelError(f"{flavour.name} refuses the shapes: {flavour.first_error}")
    _set_targets(flavour, config, recipe.targets)
    return config, profile


def _set_targets(flavour: Flavour, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    if not hasattr(config, "set_compute_capability"):
        raise UsageError(
            f"{flavour.name} {flavour.version} builds for the GPU it runs on, not for --target.",
            "Build on the device itself, or with --flavour rtx.",
        )
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


def _build(
    flavour: Flavour, builder: Any, network: Any, config: Any, on_progress: OnProgress | None
) -> bytes:
    if on_progress is not None:
        config.progress_monitor = _monitor(flavour.trt, on_progress)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EnvironmentFault(
            f"{flavour.name} {flavour.version} could not build the engine: {flavour.first_error}.",
            "If memory is short, pass a smaller --max-shape or --max-batch.",
        )
    return bytes(built)


def _monitor(trt: Any, on_progress: OnProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            on_progress(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            on_progress(phase, step + 1, self.steps.get(phase, 0))
            return True

        def phase_finish(self, phase: str) -> None:
            steps = self.steps.pop(phase, 0)
            on_progress(phase, steps, steps)

    return Monitor()


def _prove(flavour: Flavour, network: Any, model: OnnxModel, plan: bytes) -> Precision:
    """What the engine computes in, from two sides: the parsed network and the plan's own bytes."""
    trt = flavour.trt
    types = trt.LayerType
    kinds = (types.CONVOLUTION, types.DECONVOLUTION, types.MATRIX_MULTIPLY)
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    layers = [layer for layer in layers if layer.type in kinds]
    half = sum(
        layer.get_input(0).dtype == trt.DataType.HALF
        and layer.get_output(0).dtype == trt.DataType.HALF
        for layer in layers
    )
    fp16, fp32 = _weights_in(plan, model)
    # TensorRT may store weights in an order of its own, so that absence proves nothing; the
    # presence of float32 weights, or a plan too large for halves, would prove the contrary.
    total = sum(weight.size for weight in _kernels(model))
    sound = half == len(layers) and fp32 == 0 and len(plan) < 3 * total + (16 << 20)
    computes = "fp16" if sound and (fp16 > 0.5 or flavour.name != "rtx") else "fp32"
    return Precision(computes, int(half), len(layers), round(fp16, 4), round(fp32, 4))


def _kernels(model: OnnxModel, kinds: tuple[str, ...] = WEIGHTED) -> list[NDArray[np.float32]]:
    names = {node.input[1] for node in model.proto.graph.node if node.op_type in kinds}
    return [
        np.asarray(onnx.numpy_helper.to_array(weight), np.float32)
        for weight in model.proto.graph.initializer
        if weight.name in names and weight.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
    ]


def _weights_in(plan: bytes, model: OnnxModel) -> tuple[float, float]:
    """Share of the convolutions' weights that lie in the plan as FP16, and as float32.

    The upsampling is left out: TensorRT-RTX stores its weights rearranged, and of 150 classes they
    are nine tenths of an FCN-32s. The size of the plan speaks for them.
    """
    found = {np.float16: 0, np.float32: 0}
    total = 0
    for weight in _kernels(model, ("Conv",)):
        # KRSC, as engines keep them for tensor cores, or KCRS as in ONNX.
        orders = (weight.transpose(0, 2, 3, 1), weight)
        heads = {
            kind: [np.ascontiguousarray(order, kind).tobytes()[:_PROOF_BYTES] for order in orders]
            for kind in found
        }
        # Zeros, such as skip scores that were never trained, look the same in both types.
        if not all(any(head) for pair in heads.values() for head in pair):
            continue
        total += weight.size
        for kind, pair in heads.items():
            found[kind] += weight.size * any(head in plan for head in pair)
    return found[np.float16] / max(total, 1), found[np.float32] / max(total, 1)


def _evidence(precision: Precision) -> str:
    return (
        f"{precision.fp16_layers} of {precision.layers} layers with weights are typed FP16, "
        f"{precision.fp16_weights:.0%} of the convolutions' weights lie in the plan as FP16, "
        f"{precision.fp32_weights:.0%} as float32"
    )
