"""Building an engine with a progress bar: for ``build-engine``, and for ``segment --rebuild``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_deploy.artifacts import BEST, ONNX, find_model, require_writable
from fcn_deploy.cli.console import note, progress, relative
from fcn_deploy.cli.export import crops_to_verify_on
from fcn_deploy.errors import EngineError

if TYPE_CHECKING:
    from fcn_deploy.engine import OnProgress
    from fcn_deploy.passport import Passport
    from fcn_deploy.recipe import EngineOptions
    from fcn_deploy.segment import Segmenter


def build(source: Path, plan: Path, options: EngineOptions, *, verify: bool = True) -> Passport:
    """Build an engine, show how far it is, and say what came of it."""
    from fcn_deploy.engine import build_engine
    from fcn_deploy.onnx_file import read_onnx

    note(f"Building {relative(plan)} from {relative(source)}")
    step = read_onnx(source).spec.output_stride
    with _phases() as on_progress:
        passport = build_engine(
            source,
            plan,
            options,
            crops=crops_to_verify_on(source, None, step=step) if verify else None,
            cache=cache_folder(),
            on_progress=on_progress,
        )
    _report(passport, fp16=options.fp16)
    return passport


@contextmanager
def _phases() -> Iterator[OnProgress]:
    """A bar for each phase of the builder that is under way."""
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def on_progress(phase: str, step: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=steps, facts="")
            bar.update(tasks[phase], completed=step)
            if step >= steps:
                bar.remove_task(tasks.pop(phase))

        yield on_progress


def _report(passport: Passport, *, fp16: bool) -> None:
    if passport.parity is not None:
        agreement = passport.parity["label_agreement"]
        note(f"FP16 graph against its source: labels {agreement:.4%} equal")
    elif fp16:
        note("Not compared: as asked, or the file was FP16 already, or it has no logits.")
    proof = passport.precision
    if proof.computes == "int8":
        note(
            f"{passport.flavour} {passport.version} for {', '.join(passport.targets)}: "
            f"{proof.int8_weights:.1%} of the 8-bit weights lie in the plan; what it multiplies "
            "them as, only a GPU can tell"
        )
        return
    note(
        f"{passport.flavour} {passport.version} for {', '.join(passport.targets)}: "
        f"{proof.fp16_arithmetic:.1%} of the arithmetic is FP16 ({proof.fp16_layers} of "
        f"{proof.layers} layers with weights; {proof.fp16_weights:.1%} of the convolutions' "
        f"weights found as FP16 in the plan)"
    )


def open_model(
    model: Path | None,
    backend: str,
    provider: str,
    *,
    recipe: Path | None,
    rebuild: bool,
    trust_engine: bool,
) -> tuple[Path, Segmenter]:
    """Load a model; with ``rebuild``, after its engine was built again if that was at fault.

    Args:
        model: What the user named.
        backend: As in :func:`fcn_deploy.loading.load`.
        provider: The same.
        recipe: How to build an engine of which no passport tells.
        rebuild: Build instead of refusing.
        trust_engine: As in :func:`fcn_deploy.loading.load`.

    Raises:
        FcnDeployError: As :func:`fcn_deploy.loading.load`, or as a build.
    """
    from fcn_deploy.loading import load, locate

    try:
        path = locate(model, backend)
        opened = load(
            path,
            backend=backend,
            provider=provider,
            trust_engine=trust_engine,
            cache=cache_folder(),
        )
        return path, opened
    except EngineError as error:
        if not rebuild:
            raise
        note(f"{error.problem} Building it again.")
    path = _rebuilt(model, recipe)
    return path, load(path, backend=backend, provider=provider, cache=cache_folder())


def _rebuilt(model: Path | None, recipe: Path | None) -> Path:
    """The engine meant by ``model``, built again as it was built before."""
    from fcn_deploy.engine_files import last_passport, source_of
    from fcn_deploy.freshness import require_fresh
    from fcn_deploy.recipe import EngineOptions
    from fcn_deploy.recipe_file import read_recipe

    if model is not None and model.suffix == ".plan":
        plan, source = model, source_of(model)
    else:
        source = find_model(model, suffixes=(".onnx",))
        plan = beside(source, fp16=True)
        with suppress(EngineError):  # none yet
            plan = find_model(source.parent, suffixes=(".plan",))
            source = source_of(plan)
    require_fresh(source)
    options = read_recipe(recipe).engine if recipe is not None else None
    if options is None and (earlier := last_passport(plan)) is not None:
        # For this machine, with what is installed here: the plan may have come from another.
        options = replace(earlier.options, flavour="auto", targets=())
    build(source, plan, options or EngineOptions(fp16=".fp16" in plan.name))
    return plan


def onnx_of(model: Path) -> Path:
    """The ONNX file of a model, whether or not it has been exported yet."""
    if model.suffix != ".safetensors":
        return model
    # Of another checkpoint than the best, under its own name: model.onnx is the best one's.
    return model.with_name(ONNX if model.name == BEST else f"{model.stem}.onnx")


def exported(model: Path, *, verify: bool) -> Path:
    """The ONNX file of a model, exported first where there is only a checkpoint."""
    target = onnx_of(model)
    if target == model:
        return model
    from fcn_deploy.training.to_onnx import export_onnx

    require_writable(target.parent)
    note(f"Exporting {relative(model)} to {relative(target)} first")
    crops = crops_to_verify_on(model, None) if verify else None
    report = export_onnx(model, target, crops=crops)
    note(report.summary() if report else "Not verified, as asked.")
    return target


def beside(source: Path, *, fp16: bool) -> Path:
    """Where the plan of an ONNX file goes if nobody says."""
    stem = source.stem if not fp16 or source.stem.endswith(".fp16") else f"{source.stem}.fp16"
    return source.with_name(f"{stem}.plan")


def cache_folder() -> Path:
    """Where measurements are kept from one build to the next."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "fcn-deploy"
