"""``fcn-deploy build-engine``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fcn_deploy.artifacts import BEST, ONNX, find_model, require_writable
from fcn_deploy.cli.console import note, parse_hw, placed, progress, relative
from fcn_deploy.cli.export import crops_to_verify_on


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
    flavour: Annotated[
        str,
        typer.Option(help="tensorrt, rtx, or auto for what can build on this machine."),
    ] = "auto",
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
    target: Annotated[
        str,
        typer.Option(
            metavar="sm86,sm89", help="GPUs to build for (rtx).  [default: all it supports]"
        ),
    ] = "",
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare the FP16 graph with its source.")
    ] = False,
) -> None:
    """Build a TensorRT engine and its passport.

    TensorRT needs the GPU that the engine is for; TensorRT-RTX builds without one. With --fp16 a
    float32 graph is turned into its FP16 twin, compared with it, built, and the built plan is
    examined: one that does not hold FP16 weights is not written (exit 6). The passport
    (PLAN.json) says what the plan is, and is checked before it is ever loaded.
    """
    from fcn_deploy.engine import build_engine as build
    from fcn_deploy.freshness import require_fresh
    from fcn_deploy.recipe import Recipe, fit_shapes

    shapes = {"min": min_shape, "opt": opt_shape, "max": max_shape}
    given: dict[str, Any] = fit_shapes(
        *(parse_hw(text, f"--{name}-shape") if text else None for name, text in shapes.items())
    )
    if max_batch is not None:
        given["max_batch"] = max_batch
    targets = tuple(name.strip() for name in target.split(",") if name.strip())
    recipe = Recipe(fp16=fp16, flavour=flavour, targets=targets, **given)
    found = find_model(model, suffixes=(".onnx", ".safetensors"))
    if model is None or model.is_dir():
        require_fresh(found)
    source = _exported(found, verify=not no_verify)
    plan = placed(out, _beside(source, fp16=fp16))
    note(f"Building {relative(plan)} from {relative(source)}")
    with progress() as bar:
        tasks: dict[str, Any] = {}

        def on_progress(phase: str, step: int, steps: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=steps, facts="")
            bar.update(tasks[phase], completed=step)

        passport = build(
            source,
            plan,
            recipe,
            crops=None if no_verify else crops_to_verify_on(source, None),
            on_progress=on_progress,
        )
    if passport.parity is None and fp16:
        note("Not compared: as asked, or the file was FP16 already, or it has no logits.")
    elif passport.parity is not None:
        note(
            f"FP16 graph against its source: labels {passport.parity['label_agreement']:.4%} equal"
        )
    proof = passport.precision
    note(
        f"{passport.flavour} {passport.version}, {proof.computes}: {proof.fp16_layers} of "
        f"{proof.layers} convolutions in FP16, {proof.fp16_weights:.1%} of the weights found as "
        f"FP16 in the plan"
    )
    note(f"Wrote {relative(plan)} and its passport. Next: fcn-deploy segment DIR --backend trt")


def _exported(model: Path, *, verify: bool) -> Path:
    """The ONNX file of a model, exported first where there is only a checkpoint."""
    if model.suffix != ".safetensors":
        return model
    from fcn_deploy.training.to_onnx import export_onnx

    # Of another checkpoint than the best, under its own name: model.onnx is the best one's.
    target = model.with_name(ONNX if model.name == BEST else f"{model.stem}.onnx")
    require_writable(target.parent)
    note(f"Exporting {relative(model)} to {relative(target)} first")
    crops = crops_to_verify_on(model, None) if verify else None
    report = export_onnx(model, target, crops=crops)
    note(report.summary() if report else "Not verified, as asked.")
    return target


def _beside(source: Path, *, fp16: bool) -> Path:
    stem = source.stem if not fp16 or source.stem.endswith(".fp16") else f"{source.stem}.fp16"
    return source.with_name(f"{stem}.plan")
