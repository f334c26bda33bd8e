"""Real builds through TensorRT-RTX, which needs no GPU for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from fcn_deploy.artifacts import sha256
from fcn_deploy.engine import build, build_engine
from fcn_deploy.engine_files import read_passport
from fcn_deploy.errors import CheckFailedError, ModelError, ShapeError, UsageError
from fcn_deploy.onnx_file import OnnxModel, read_onnx
from fcn_deploy.parity import generated_crops
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.training.checkpoint import Checkpoint, save_checkpoint
from fcn_deploy.training.network import SCORE_STRIDE, build_network
from fcn_deploy.training.to_onnx import export_onnx

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

SMALL = Shapes(max_hw=(512, 512), max_batch=2)
RTX = EngineOptions(fp16=True, flavour="rtx", profiles=(SMALL,))


def test_fp16_engine_is_built_proven_and_documented(toy_onnx: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.plan"
    phases: list[tuple[str, int, int]] = []
    passport = build_engine(
        toy_onnx, path, RTX, crops=generated_crops(), on_progress=lambda *step: phases.append(step)
    )
    assert passport.precision.computes == "fp16"
    assert passport.precision.fp16_layers == passport.precision.layers == 24
    assert passport.precision.fp16_arithmetic == 1
    assert passport.precision.fp16_weights > 0.9
    assert passport.precision.fp32_weights == 0
    assert passport.parity is not None
    assert passport.parity["passed"]
    assert [part.profiles[0].max for part in passport.parts.values() if part.profiles] == [
        (2, 512, 512),
        (2, 512, 512),
        (1, 17, 257),
    ]
    assert passport.source_sha256 == sha256(toy_onnx)
    assert read_passport(path) == passport
    assert path.read_bytes()[:4] == b"vtrt"
    assert any(step == steps > 0 for _, step, steps in phases)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.fp16.head.plan",
        "model.fp16.plan",
        "model.fp16.plan.json",
        "model.fp16.trunk.plan",
        "model.fp16.upsampling.npy",
    ]
    assert {phase.split(":")[0] for phase, _, _ in phases} == {"whole", "trunk", "head"}


def test_many_classes_are_proven_too(tmp_path: Path) -> None:
    # Upsampling of many classes outweighs all else, and is stored rearranged. Fresh networks of
    # every head, whose skip scores are zeros, are in test_networks.py.
    names = tuple(f"class{number}" for number in range(40))
    spec = ModelSpec(names, voc_palette(40), head="fcn32s", score_stride=SCORE_STRIDE["fcn32s"])
    checkpoint, model = tmp_path / "best.safetensors", tmp_path / "model.onnx"
    save_checkpoint(checkpoint, Checkpoint(spec, build_network(spec).state_dict(), {}, {}))
    export_onnx(checkpoint, model, crops=None)
    shapes = Shapes(opt_hw=(64, 64), max_hw=(128, 128), max_batch=1)
    options = EngineOptions(fp16=True, flavour="rtx", profiles=(shapes,))
    passport = build_engine(model, tmp_path / "model.fp16.plan", options, crops=None)
    assert passport.precision.computes == "fp16"
    assert passport.precision.fp16_weights > 0.9


def test_fp32_engine_says_that_it_is_fp32(toy_onnx: Path, tmp_path: Path) -> None:
    options = EngineOptions(flavour="rtx", profiles=(SMALL,))
    passport = build_engine(toy_onnx, tmp_path / "model.plan", options, crops=None)
    assert passport.precision.fp16_arithmetic == 0
    assert passport.precision.computes == "fp32"
    assert passport.precision.fp32_weights > 0.9
    assert passport.precision.fp16_weights == 0


def test_fp16_that_is_not_is_never_written(
    toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What rf-detr and others did on TensorRT 11: FP16 asked for, a float32 graph built.
    def unchanged(model: OnnxModel, *, fp16: bool) -> OnnxModel:
        return model

    monkeypatch.setattr(build, "_typed", unchanged)
    with pytest.raises(CheckFailedError, match="0 of 24 layers with weights are typed FP16"):
        build_engine(toy_onnx, tmp_path / "model.plan", RTX, crops=None)
    assert list(tmp_path.iterdir()) == []


def test_one_float32_layer_is_found(
    toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = build._typed

    def one_left_out(model: OnnxModel, *, fp16: bool) -> OnnxModel:
        typed = right(model, fp16=fp16)
        graph = typed.proto.graph
        node = next(n for n in graph.node if n.op_type == "Conv" and "7.1.conv2" in n.input[1])
        for name in node.input[1:]:
            weight = next(w for w in graph.initializer if w.name == name)
            values = onnx.numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, name))
        position = list(graph.node).index(node)
        up = onnx.helper.make_node("Cast", [node.input[0]], ["up"], to=onnx.TensorProto.FLOAT)
        down = onnx.helper.make_node(
            "Cast", ["down"], [node.output[0]], to=onnx.TensorProto.FLOAT16
        )
        node.input[0], node.output[0] = "up", "down"
        graph.node.insert(position + 1, down)
        graph.node.insert(position, up)
        return typed

    monkeypatch.setattr(build, "_typed", one_left_out)
    with pytest.raises(CheckFailedError, match="23 of 24 layers with weights are typed FP16"):
        build_engine(toy_onnx, tmp_path / "model.plan", RTX, crops=None)


def test_targets_are_the_flavours_own(toy_onnx: Path, tmp_path: Path) -> None:
    options = replace(RTX, targets=("sm86", "sm89"))
    passport = build_engine(toy_onnx, tmp_path / "model.plan", options, crops=None)
    assert passport.targets == ("sm86", "sm89")
    portable = build_engine(toy_onnx, tmp_path / "all.plan", RTX, crops=None)
    assert portable.targets == ("portable",)
    sizes = [(tmp_path / name).stat().st_size for name in ("model.plan", "all.plan")]
    assert sizes[0] != sizes[1]
    with pytest.raises(UsageError, match="cannot build for sm42"):
        build_engine(toy_onnx, tmp_path / "x.plan", replace(RTX, targets=("sm42",)), crops=None)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (Shapes(min_hw=(33, 32)), "--min-shape 33x32 is not a multiple of 32"),
        (Shapes(opt_hw=(2048, 512)), "not in order"),
        (Shapes(max_batch=0), "--max-batch 0"),
    ],
)
def test_shapes_that_cannot_be_are_refused(
    toy_onnx: Path, tmp_path: Path, shapes: Shapes, words: str
) -> None:
    options = replace(RTX, profiles=(SMALL, shapes))
    with pytest.raises(ShapeError, match=words):
        build_engine(toy_onnx, tmp_path / "model.plan", options, crops=None)


@pytest.mark.parametrize("fp16", [False, True])
def test_what_cannot_be_parsed_is_named(toy_onnx: Path, tmp_path: Path, fp16: bool) -> None:
    model = read_onnx(toy_onnx).proto
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Det"
    path = tmp_path / "det.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="turned into FP16" if fp16 else r"refuses .*: Det \("):
        build_engine(path, tmp_path / "det.plan", replace(RTX, fp16=fp16), crops=None)
    assert not list(tmp_path.glob("*.plan*"))
