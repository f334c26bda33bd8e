"""``fcn-deploy export --int8``."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_deploy.artifacts import ONNX_INT8, find_model
from fcn_deploy.cli.console import note, one_of, placed, progress, recorded_data, relative

if TYPE_CHECKING:
    from fcn_deploy.spec import ModelSpec
    from fcn_deploy.verify.whole_images import Images

MOST_JUDGED = 100


@dataclass(frozen=True)
class Int8Settings:
    """Options of the command.

    Attributes:
        runtime: ``ort`` or ``tensorrt``.
        calibrate: Folder of images that ranges are observed on.
        images: Folder of images that the budget is judged on.
        max_miou_drop: The budget.
        opset: Of the float32 file it is made from.
    """

    runtime: str
    calibrate: Path | None
    images: Path | None
    max_miou_drop: float
    opset: int


def export_int8(model: Path | None, out: Path | None, settings: Int8Settings) -> None:
    """Write INT8 beside a checkpoint or ONNX file, by way of its float32 graph."""
    from fcn_deploy.int8 import quantise_file
    from fcn_deploy.onnx_file import read_onnx
    from fcn_deploy.verify.inputs import calibration_crops
    from fcn_deploy.verify.limits import USUAL, Limits

    runtime = one_of(settings.runtime, ONNX_INT8, "--for")
    source = find_model(model, suffixes=(".safetensors", ".onnx"))
    target = placed(out, source.with_name(ONNX_INT8[runtime]))
    note(f"Exporting {relative(source)}")
    with tempfile.TemporaryDirectory() as folder:
        graph = source if source.suffix == ".onnx" else _float32(source, Path(folder), settings)
        spec = read_onnx(graph).spec
        judged = _judged(source, settings.images, spec)
        crops = calibration_crops(_calibration(source, settings, judged), spec.output_stride)
        with progress() as bar:
            task = bar.add_task("INT8", total=None, facts="")
            report = quantise_file(
                graph,
                target,
                crops,
                judged,
                runtime=runtime,
                limits=Limits(USUAL["int8"].min_agreement, settings.max_miou_drop),
                tell=lambda what: bar.update(task, advance=1, facts=what),
            )
    note(report.summary())
    note(f"Wrote {relative(target)}. Next: fcn-deploy verify {relative(target)}")


def _float32(checkpoint: Path, folder: Path, settings: Int8Settings) -> Path:
    from fcn_deploy.cli.export import crops_to_verify_on
    from fcn_deploy.training.to_onnx import export_onnx

    path = folder / "float32.onnx"
    crops = crops_to_verify_on(checkpoint, settings.images)
    report = export_onnx(checkpoint, path, crops=crops, opset=settings.opset)
    if report is not None:
        note(report.summary())
    return path


def _judged(source: Path, images: Path | None, spec: ModelSpec) -> Images:
    """What the budget is judged on: labelled images of the run, or those that were named."""
    from fcn_deploy.dataset import open_dataset
    from fcn_deploy.evaluate import require_same_classes
    from fcn_deploy.items import list_items
    from fcn_deploy.verify.whole_images import Images, spread

    data = recorded_data(source)
    if images is not None:
        return Images(spread(list_items([images]), MOST_JUDGED), None, str(images))
    if data is None:
        return Images()
    dataset = open_dataset(data)
    require_same_classes(spec, dataset)
    return Images(spread(dataset.pairs("val"), MOST_JUDGED), dataset, str(data), "val")


def _calibration(source: Path, settings: Int8Settings, judged: Images) -> list[Path]:
    from fcn_deploy.dataset import open_dataset
    from fcn_deploy.items import list_items

    if settings.calibrate is not None:
        return [item.source for item in list_items([settings.calibrate])]
    data = recorded_data(source)
    if data is not None:
        return [pair.image for pair in open_dataset(data).pairs("train")]
    return judged.files()
