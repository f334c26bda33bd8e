"""``fcn-deploy export``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.artifacts import ONNX, ONNX_FP16, find_model
from fcn_deploy.cli.console import named, note, placed, recorded_data, relative
from fcn_deploy.cli.int8 import Int8Settings, export_int8
from fcn_deploy.errors import UsageError
from fcn_deploy.spec import OUTPUTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERIFIED_IMAGES = 6


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Checkpoint or run folder, or plain weights (.pth, .safetensors).  "
            "[default: the newest run]",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="ONNX file.  [default: model.onnx beside the checkpoint]"),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Compute in half precision after normalisation.")
    ] = False,
    fp32_head: Annotated[
        bool,
        typer.Option(
            "--fp32-head", help="With --fp16: keep the upsampling and arg-max in float32."
        ),
    ] = False,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Quantise the body to INT8; layers that hurt stay in float32."),
    ] = False,
    runtime: Annotated[
        str,
        typer.Option("--for", help="With --int8: ort (fast on CPUs), or tensorrt (experimental)."),
    ] = "ort",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="With --int8: images to observe ranges on.  [default: training images of the run]",
            show_default=False,
        ),
    ] = None,
    max_miou_drop: Annotated[
        float,
        typer.Option(
            "--max-miou-drop", min=0, max=1, help="With --int8: most that the mean IoU may fall by."
        ),
    ] = 0.005,
    outputs: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: labels, logits, scores.  [default: all that there are]"
        ),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 18,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images to verify on.  [default: validation images of the run]",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Classes of plain weights: classes.txt or classes.toml."),
    ] = None,
    torchvision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="fcn_resnet50 or fcn_resnet101: with torchvision's own weights, or with those of "
            "the file that is named.",
        ),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare with eager PyTorch.")
    ] = False,
) -> None:
    """Write a checkpoint as one self-describing ONNX file, verified against eager PyTorch.

    Takes uint8 RGB images (N, H, W, 3), H and W multiples of 32; returns labels, logits and scores.
    Normalisation and arg-max are inside, the model's description is in the metadata. If the
    comparison fails, nothing is written and the exit code is 6. Weights without a description are
    recognised by their names and shapes: of our own networks, and of torchvision's FCNs (multiples
    of 8).

    INT8 is judged on the validation images of the run, or on --images: layers are kept in float32,
    those that hurt most first, until the mean IoU falls by no more than --max-miou-drop (without
    masks: until 97% of the labels are those of float32). It takes an ONNX file as well.
    """
    if int8:
        if fp16 or fp32_head or outputs is not None or no_verify:
            raise UsageError(
                "--int8 does not go with --fp16, --fp32-head, --outputs or --no-verify.",
                "INT8 keeps its head in float32, has all outputs, and is always verified.",
            )
        settings = Int8Settings(runtime, calibrate, images, max_miou_drop, opset)
        export_int8(checkpoint, out, settings)
        return
    if fp32_head and not fp16:
        raise UsageError("--fp32-head is for --fp16: without it, everything is float32.")
    from fcn_deploy.classes import read_class_file
    from fcn_deploy.training.to_onnx import export_onnx

    source = None
    if torchvision is None or checkpoint is not None:
        source = find_model(checkpoint, suffixes=(".safetensors",))
    target = placed(out, default_onnx(source or Path(torchvision or ""), fp16=fp16))
    note(f"Exporting {relative(source) if source else torchvision}")
    report = export_onnx(
        source,
        target,
        crops=None if no_verify else crops_to_verify_on(source, images),
        fp16=fp16,
        fp32_head=fp32_head,
        outputs=None if outputs is None else named(outputs, OUTPUTS, "--outputs"),
        opset=opset,
        classes=None if classes is None else read_class_file(classes),
        torchvision_name=torchvision,
    )
    note(report.summary() if report else "Not verified, as asked.")
    ours = torchvision is None and target.name in (ONNX, ONNX_FP16)
    model = "" if ours else f"{relative(target)} "
    note(f"Wrote {relative(target)}. Next: fcn-deploy build-engine {model}--fp16")


def default_onnx(source: Path, *, fp16: bool) -> Path:
    """Where the ONNX file of a checkpoint goes if nobody says; of plain weights by their name."""
    if source.suffix == ".safetensors":
        return source.with_name(ONNX_FP16 if fp16 else ONNX)
    return source.with_name(f"{source.stem}.fp16.onnx" if fp16 else f"{source.stem}.onnx")


def crops_to_verify_on(
    model: Path | None, images: Path | None, *, step: int = 32
) -> Iterator[NDArray[np.uint8]]:
    """Crops of the named images, else of the run's validation images, else generated ones.

    Args:
        model: A file of the run; ``None`` for a model without one.
        images: A folder, or ``None``.
        step: Output stride of the model, in pixels.
    """
    from fcn_deploy.dataset import open_dataset
    from fcn_deploy.items import list_items
    from fcn_deploy.parity import crops_of_images, generated_crops

    if images is not None:
        paths = [item.source for item in list_items([images])]
    elif model is not None and (data := recorded_data(model)) is not None:
        paths = [pair.image for pair in open_dataset(data).pairs("val")]
    else:
        note("The data set of this model is not at hand: verifying on generated textures.")
        return generated_crops(step=step)
    # Spread over the set: neighbours in a video look alike.
    some = paths[:: max(1, len(paths) // VERIFIED_IMAGES)][:VERIFIED_IMAGES]
    return crops_of_images(some, step=step)
