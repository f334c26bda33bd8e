"""``fcn-deploy build-engine``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcn_deploy.artifacts import find_model
from fcn_deploy.cli.building import beside, build, exported, onnx_of
from fcn_deploy.cli.console import RecipeOption, note, parse_hw, placed, relative
from fcn_deploy.errors import UsageError

if TYPE_CHECKING:
    from fcn_deploy.recipe import EngineOptions, Shapes


def build_engine(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="ONNX file, checkpoint, or run folder.  [default: the newest run]",
            show_default=False,
        ),
    ] = None,
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Compute in FP16 after normalisation; proven after the build."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Plan file.  [default: beside the model]"),
    ] = None,
    recipe: RecipeOption = None,
    flavour: Annotated[
        str | None,
        typer.Option(help="tensorrt, rtx, or auto for what can build on this machine."),
    ] = None,
    min_shape: Annotated[
        str | None, typer.Option(metavar="HxW", help="Smallest crop.  [default: 32x32]")
    ] = None,
    opt_shape: Annotated[
        str | None, typer.Option(metavar="HxW", help="Crop it is fastest at.  [default: 512x512]")
    ] = None,
    max_shape: Annotated[
        str | None, typer.Option(metavar="HxW", help="Largest crop.  [default: 1024x1024]")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Most crops at once; costs memory.  [default: 4]")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MIN,OPT,MAX,BATCH",
            help="A further optimization profile, such as 1088x1920,1088x1920,1088x1920,1; may be "
            "repeated.",
        ),
    ] = None,
    plan_for: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Look at the images of a folder, and choose shapes and batch for them.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="sm86,sm89", help="GPUs to build for (rtx).  [default: all it supports]"
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(
            metavar="MIB", help="Most memory for activations.  [default: the library's own]"
        ),
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(metavar="0-5", help="0 builds fastest, 5 runs fastest (tensorrt)."),
    ] = None,
    hardware_compatibility: Annotated[
        str | None,
        typer.Option(
            metavar="LEVEL",
            help="ampere-plus or same-compute-capability: run on other GPUs, too, at some cost "
            "(tensorrt).",
        ),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Load in later releases, too (tensorrt)."),
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="Let weights be exchanged later (tensorrt).")
    ] = False,
    dla_core: Annotated[
        int | None,
        typer.Option(help="Run what can on this deep-learning accelerator (tensorrt, Orin)."),
    ] = None,
    no_timing_cache: Annotated[
        bool,
        typer.Option("--no-timing-cache", help="Measure all kernels again (tensorrt)."),
    ] = False,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the FP16 graph with its source.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be built, and build nothing.")
    ] = False,
) -> None:
    """Build a TensorRT engine and its passport.

    TensorRT needs the GPU that the engine is for; TensorRT-RTX builds without one. With --fp16 a
    float32 graph is turned into its FP16 twin, compared with it, built, and the built plan is
    examined: one that does not hold FP16 weights is not written (exit 6). PLAN takes an image and
    returns its labels; for images in crops, a trunk and a head lie beside it. The passport
    (PLAN.json) says what they are, and is checked before they are ever loaded. --recipe takes
    all of this from a file made for a device; what is given besides it counts more.
    """
    from fcn_deploy.freshness import require_fresh
    from fcn_deploy.recipe import EngineOptions

    options = _of_recipe(recipe)
    shapes = _shapes(options, (min_shape, opt_shape, max_shape), max_batch, profile or [])
    given: dict[str, Any] = {
        "flavour": flavour,
        "targets": None if target is None else _names(target),
        "workspace_mib": workspace,
        "optimization_level": optimization_level,
        "hardware_compatibility": hardware_compatibility,
        "version_compatible": version_compatible or None,
        "refit": refit or None,
        "dla_core": dla_core,
        "timing_cache": False if no_timing_cache else None,
        "fp16": fp16 or None,
    }
    named = {name: value for name, value in given.items() if value is not None}
    options = replace(options or EngineOptions(), profiles=shapes, **named)
    found = find_model(model, suffixes=(".onnx", ".safetensors"))
    if model is None or model.is_dir():
        require_fresh(found)
    if plan_for is not None:
        if min_shape or opt_shape or max_shape or max_batch or profile:
            raise UsageError("--plan-for chooses the shapes and the batch; do not name them, too.")
        if dry_run and onnx_of(found) != found:
            raise UsageError(
                "--plan-for reckons with the exported graph, and --dry-run exports none.",
                "Export it first: fcn-deploy export",
            )
        found = exported(found, verify=not no_verify)
        options = replace(options, profiles=(_planned(found, plan_for, fp16=options.fp16),))
    if dry_run:
        plan = placed(out, beside(onnx_of(found), fp16=options.fp16))
        _describe(found, plan, options)
        return
    source = exported(found, verify=not no_verify)
    plan = placed(out, beside(source, fp16=options.fp16))
    build(source, plan, options, verify=not no_verify)
    note(f"Wrote {relative(plan)} and its passport. Next: fcn-deploy segment DIR --backend trt")


def _of_recipe(path: Path | None) -> EngineOptions | None:
    if path is None:
        return None
    from fcn_deploy.recipe_file import read_recipe

    recipe = read_recipe(path)
    note(f"For {recipe.device}, by {relative(path)}")
    if recipe.engine is None:
        raise UsageError(
            f"{recipe.device} runs the ONNX file, not an engine.",
            f"Run there: fcn-deploy segment DIR --recipe {relative(path)}",
        )
    return recipe.engine


def _shapes(
    options: EngineOptions | None,
    named: tuple[str | None, str | None, str | None],
    max_batch: int | None,
    more: list[str],
) -> tuple[Shapes, ...]:
    """Profiles: those of the recipe, or the named one; and all that were added."""
    from fcn_deploy.recipe import Shapes, fit_shapes

    first = options.profiles if options else (Shapes(),)
    if any(named):
        names = ("--min-shape", "--opt-shape", "--max-shape")
        low, best, high = (
            parse_hw(text, name) if text else None for text, name in zip(named, names, strict=True)
        )
        first = (Shapes(**fit_shapes(low, best, high), max_batch=first[0].max_batch),)
    if max_batch is not None:
        first = (replace(first[0], max_batch=max_batch), *first[1:])
    return (*first, *(_profile(text) for text in more))


def _profile(text: str) -> Shapes:
    from fcn_deploy.recipe import Shapes

    parts = _names(text)
    if len(parts) != 4 or not parts[3].isdecimal():
        raise UsageError(
            f"--profile takes MIN,OPT,MAX,BATCH, not {text!r}.",
            "For example: --profile 512x512,512x512,512x512,8",
        )
    low, best, high = (parse_hw(part, "--profile") for part in parts[:3])
    return Shapes(low, best, high, int(parts[3]))


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _planned(source: Path, folder: Path, *, fp16: bool) -> Shapes:
    from fcn_deploy.profile_planner import plan_for_folder

    proposal = plan_for_folder(source, folder, fp16=fp16)
    for line in proposal.lines():
        note(line)
    return proposal.shapes


def _describe(source: Path, plan: Path, options: EngineOptions) -> None:
    from fcn_deploy.onnx_file import read_onnx

    options.check(read_onnx(source).spec.output_stride if source.suffix == ".onnx" else 32)
    precision = "FP16" if options.fp16 else "the precision of the file"
    targets = ", ".join(options.targets) or "its own targets"
    note(f"Would build {relative(plan)} from {relative(source)}")
    note(f"Flavour {options.flavour}, {targets}, {precision}")
    for shapes in options.profiles:
        low, best, high = (f"{h}x{w}" for h, w in (shapes.min_hw, shapes.opt_hw, shapes.max_hw))
        note(f"Crops of {low} to {high}, fastest at {best}, {shapes.max_batch} at once")
