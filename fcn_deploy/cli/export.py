"""``fcn-deploy export``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.artifacts import ONNX, ONNX_FP16, find_model
from fcn_deploy.cli.console import named, note, placed, recorded_data, relative
from fcn_deploy.spec import OUTPUTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VERIFIED_IMAGES = 6


def export(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Checkpoint or run folder.  [default: the newest run]", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="ONNX file.  [default: model.onnx beside the checkpoint]"),
    ] = None,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Compute in half precision after normalisation.")
    ] = False,
    outputs: Annotated[
        str, typer.Option(help="Comma-separated: labels, logits, scores.")
    ] = ",".join(OUTPUTS),
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 18,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of images to verify on.  [default: validation images of the run]",
            show_default=False,
        ),
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not compare with eager PyTorch.")
    ] = False,
) -> None:
    """Write a checkpoint as one self-describing ONNX file, verified against eager PyTorch.

    Takes uint8 RGB images (N, H, W, 3), H and W multiples of 32; returns labels, logits and scores.
    Normalisation and arg-max are inside, the model's description is in the metadata. If the
    comparison fails, nothing is written and the exit code is 6.
    """
    from fcn_deploy.training.to_onnx import export_onnx

    source = find_model(checkpoint, suffixes=(".safetensors",))
    name = ONNX_FP16 if fp16 else ONNX
    target = placed(out, source.with_name(name))
    note(f"Exporting {relative(source)}")
    report = export_onnx(
        source,
        target,
        crops=None if no_verify else crops_to_verify_on(source, images),
        fp16=fp16,
        outputs=named(outputs, OUTPUTS, "--outputs"),
        opset=opset,
    )
    note(report.summary() if report else "Not verified, as asked.")
    note(f"Wrote {relative(target)}. Next: fcn-deploy build-engine --fp16")


def crops_to_verify_on(model: Path, images: Path | None) -> Iterator[NDArray[np.uint8]]:
    """Crops of the named images, else of the run's validation images, else generated ones."""
    from fcn_deploy.dataset import open_dataset
    from fcn_deploy.items import list_items
    from fcn_deploy.parity import crops_of_images, generated_crops

    if images is not None:
        paths = [item.source for item in list_items([images])]
    elif (data := recorded_data(model)) is not None:
        paths = [pair.image for pair in open_dataset(data).pairs("val")]
    else:
        note("The data set of this model is not at hand: verifying on generated textures.")
        return generated_crops()
    # Spread over the set: neighbours in a video look alike.
    return crops_of_images(paths[:: max(1, len(paths) // VERIFIED_IMAGES)][:VERIFIED_IMAGES])
