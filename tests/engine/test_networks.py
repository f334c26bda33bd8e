"""Every network that we train builds as an engine, in both precisions, for all GPUs of RTX."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcn_deploy.engine import build_engine
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.checkpoint import Checkpoint, save_checkpoint
from fcn_deploy.training.network import SCORE_STRIDE, build_network
from fcn_deploy.training.to_onnx import export_onnx

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

HEADS = ("fcn32s", "fcn16s", "fcn8s")
BACKBONES = ("resnet18", "resnet34", "resnet50")
TARGETS = ("sm86", "sm89", "sm120")
CLASSES = 21


def exported(folder: Path, head: str, backbone: str) -> Path:
    names = tuple(f"class{number}" for number in range(CLASSES))
    stride = SCORE_STRIDE[head]
    spec = ModelSpec(names, voc_palette(CLASSES), head, backbone, score_stride=stride)
    torch.manual_seed(0)
    checkpoint, model = folder / "best.safetensors", folder / "model.onnx"
    save_checkpoint(checkpoint, Checkpoint(spec, build_network(spec).state_dict(), {}, {}))
    export_onnx(checkpoint, model, crops=None)
    return model


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", HEADS)
def test_engines_of_every_network(head: str, backbone: str, tmp_path: Path) -> None:
    source = exported(tmp_path, head, backbone)
    options = EngineOptions(flavour="rtx", targets=TARGETS, profiles=(Shapes(max_batch=2),))
    plain, half = tmp_path / "model.plan", tmp_path / "model.fp16.plan"
    fp32 = build_engine(source, plain, options, crops=None)
    fp16 = build_engine(source, half, replace(options, fp16=True), crops=None)
    assert (fp32.precision.computes, fp16.precision.computes) == ("fp32", "fp16")
    assert (fp32.precision.fp16_arithmetic, fp16.precision.fp16_arithmetic) == (0, 1)
    assert fp16.targets == TARGETS
    assert half.stat().st_size <= 0.55 * plain.stat().st_size
    trunks = [path.with_name(f"{path.stem}.trunk.plan").stat().st_size for path in (half, plain)]
    assert trunks[0] <= 0.55 * trunks[1]


def test_polygraphy_accepts_what_we_export(toy_onnx: Path, tmp_path: Path) -> None:
    # NVIDIA's own tool, as users have it: it knows nothing of us.
    program = Path(sys.executable).with_name("polygraphy")
    if not program.exists():
        pytest.skip("polygraphy is not installed")
    environment = {**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    inspected = subprocess.run(
        [program, "inspect", "model", toy_onnx, "--show", "layers"],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert "image [dtype=uint8" in inspected.stdout
    assert "labels [dtype=uint8" in inspected.stdout
    plan = tmp_path / "polygraphy.plan"
    shapes = [f"--trt-{name}-shapes" for name in ("min", "opt", "max")]
    sizes = ["image:[1,32,32,3]", "image:[1,256,256,3]", "image:[2,512,512,3]"]
    arguments = [item for pair in zip(shapes, sizes, strict=True) for item in pair]
    subprocess.run(
        [program, "convert", toy_onnx, "--convert-to", "trt", "-o", plan, *arguments],
        check=True,
        capture_output=True,
        env=environment,
    )
    assert plan.read_bytes()[:4] == b"vtrt"
