"""TensorRT: what is refused without a GPU; what runs with one is marked ``gpu``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcn_deploy.backends.eager import open_eager
from fcn_deploy.backends.tensorrt_flavour import has_gpu, import_flavour, require_gpu
from fcn_deploy.backends.trt import open_trt
from fcn_deploy.engine import build_engine
from fcn_deploy.errors import DeviceError, MissingExtraError, ModelError, ShapeError, UsageError
from fcn_deploy.parity import TOLERANCES, compare, generated_crops
from fcn_deploy.passport import passport_path, read_passport
from fcn_deploy.recipe import Recipe

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


@pytest.fixture(scope="module")
def plan(toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "model.fp16.plan"
    recipe = Recipe(fp16=True, flavour="rtx", max_hw=(512, 512))
    build_engine(toy_onnx, path, recipe, crops=None)
    return path


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_three_lines(plan: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        open_trt(plan)
    assert len(str(caught.value).splitlines()) == 3
    assert "no NVIDIA GPU or driver" in str(caught.value)
    assert "--backend ort" in str(caught.value)


def test_engines_run_on_no_cpu(plan: Path) -> None:
    with pytest.raises(UsageError, match="run on a GPU"):
        open_trt(plan, "cpu")


def test_the_passport_is_read_before_the_gpu_is_asked(plan: Path, tmp_path: Path) -> None:
    changed = tmp_path / plan.name
    changed.write_bytes(plan.read_bytes() + b"\0")
    passport_path(changed).write_bytes(passport_path(plan).read_bytes())
    with pytest.raises(ModelError, match="not the file that its passport speaks of"):
        open_trt(changed)


def test_missing_flavours_name_the_install_command() -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"fcn-deploy\[trt\]"):
            import_flavour("tensorrt")


@pytest.mark.gpu
def test_engine_agrees_with_eager(plan: Path, toy_checkpoint: Path) -> None:
    with open_eager(toy_checkpoint, "cpu") as eager, open_trt(plan) as engine:
        report = compare(eager, engine, generated_crops(), TOLERANCES["fp16"])
    report.require()


@pytest.mark.gpu
def test_engine_takes_every_shape_of_its_profile(plan: Path, toy_checkpoint: Path) -> None:
    random = np.random.default_rng(0)
    batches = (
        random.integers(0, 256, (batch, height, width, 3), np.uint8)
        for height, width in ((32, 32), (64, 512), (512, 64), (256, 320), (512, 512), (96, 96))
        for batch in (1, 2, 4)
    )
    with open_eager(toy_checkpoint, "cpu") as eager, open_trt(plan) as engine:
        compare(eager, engine, batches).require()
        with pytest.raises(ShapeError, match="batch of 5"):
            engine.labels(np.zeros((5, 32, 32, 3), np.uint8))


@pytest.mark.gpu
def test_no_memory_is_lost_over_many_runs(plan: Path) -> None:
    cuda = require_gpu()
    crops = np.zeros((1, 128, 128, 3), np.uint8)
    with open_trt(plan) as engine:
        engine.labels(crops)
        before = cuda.cudaMemGetInfo()[1]
        for _ in range(1000):
            engine.labels(crops)
        assert cuda.cudaMemGetInfo()[1] == before


@pytest.mark.gpu
def test_a_plan_of_another_version_is_refused(plan: Path, tmp_path: Path) -> None:
    foreign = tmp_path / plan.name
    foreign.write_bytes(plan.read_bytes())
    passport = replace(read_passport(plan), version="0.1")
    passport_path(foreign).write_text(passport.to_json())
    with pytest.raises(ModelError, match=r"was built by rtx 0\.1"):
        open_trt(foreign)
