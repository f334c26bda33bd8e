"""Every network that we train builds as an engine, in both precisions, for all GPUs of RTX."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from fcn_deploy.engine import build_engine
from fcn_deploy.engine_files import part_path
from fcn_deploy.passport import TRUNK, WHOLE, Passport
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


@dataclass(frozen=True)
class Built:
    """What came of one network: passports in float32 and FP16, and bytes of plans."""

    fp32: Passport
    fp16: Passport
    sizes: list[tuple[int, int]]


def build(head: str, backbone: str, folder: Path) -> Built:
    """Export one network and build it in both precisions; in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names = tuple(f"class{number}" for number in range(CLASSES))
    stride = SCORE_STRIDE[head]
    spec = ModelSpec(names, voc_palette(CLASSES), head, backbone, score_stride=stride)
    checkpoint, source = folder / "best.safetensors", folder / "model.onnx"
    save_checkpoint(checkpoint, Checkpoint(spec, build_network(spec).state_dict(), {}, {}))
    export_onnx(checkpoint, source, crops=None)
    options = EngineOptions(flavour="rtx", targets=TARGETS, profiles=(Shapes(max_batch=2),))
    plain, half = folder / "model.plan", folder / "model.fp16.plan"
    fp32 = build_engine(source, plain, options, crops=None)
    fp16 = build_engine(source, half, replace(options, fp16=True), crops=None)
    roles = (WHOLE, TRUNK)
    sizes = [[part_path(plan, role).stat().st_size for role in roles] for plan in (plain, half)]
    return Built(fp32, fp16, list(zip(*sizes, strict=True)))


# Each head and each body once; the rest with `make test-slow`.
NETWORKS = [
    pytest.param(head, backbone, marks=[] if number == other else pytest.mark.slow)
    for number, head in enumerate(HEADS)
    for other, backbone in enumerate(reversed(BACKBONES))
]


@pytest.fixture(scope="module")
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Built]]]:
    """All networks that are asked for, as many at a time as there are cores."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    asked = [
        (str(item.callspec.params["head"]), str(item.callspec.params["backbone"]))
        for item in items
        if item.originalname == "test_engines_of_every_network"
    ]
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 4), processes) as pool:
        yield {
            f"{head}-{backbone}": pool.submit(build, head, backbone, tmp_path_factory.mktemp(head))
            for head, backbone in asked
        }


@pytest.mark.parametrize(("head", "backbone"), NETWORKS)
def test_engines_of_every_network(
    head: str, backbone: str, built: dict[str, Future[Built]]
) -> None:
    result = built[f"{head}-{backbone}"].result()
    assert (result.fp32.precision.computes, result.fp16.precision.computes) == ("fp32", "fp16")
    assert (result.fp32.precision.fp16_arithmetic, result.fp16.precision.fp16_arithmetic) == (0, 1)
    assert result.fp16.precision.fp32_weights == 0
    assert result.fp16.targets == TARGETS
    for plain, half in result.sizes:
        assert half <= 0.55 * plain


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
