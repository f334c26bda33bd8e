"""ONNX Runtime: the provider that was asked for, and no file that it should not open."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from fcn_deploy.backends.ort import open_ort
from fcn_deploy.errors import DeviceError, ModelError, ShapeError
from fcn_deploy.onnx_file import keep_outputs, read_onnx
from fcn_deploy.spec import SPEC_KEY

without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="CUDA is installed"
)


@without_cuda
def test_auto_says_where_it_runs(toy_onnx: Path) -> None:
    with open_ort(toy_onnx) as model:
        assert model.provider == "CPUExecutionProvider"
        assert model.precision == "fp32"


@without_cuda
def test_a_provider_that_is_not_there_is_refused(toy_onnx: Path) -> None:
    with pytest.raises(DeviceError, match="no execution provider 'cuda'"):
        open_ort(toy_onnx, "cuda")
    with pytest.raises(DeviceError, match="no execution provider 'AzureExecutionProvider'"):
        open_ort(toy_onnx, "AzureExecutionProvider")


def test_labels_are_made_of_logits_where_the_file_has_no_others(
    toy_onnx: Path, tmp_path: Path
) -> None:
    onnx.save_model(keep_outputs(onnx.load_model(toy_onnx), ("logits",)), tmp_path / "logits.onnx")
    crops = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    with open_ort(toy_onnx) as whole, open_ort(tmp_path / "logits.onnx") as part:
        labels = part.labels(crops)
        np.testing.assert_array_equal(labels, whole.labels(crops))
    assert labels.dtype == np.uint8


def test_a_description_of_fewer_classes_is_refused(toy_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load_model(toy_onnx)
    spec = next(prop for prop in model.metadata_props if prop.key == SPEC_KEY)
    content = json.loads(spec.value)
    del content["classes"][2:], content["palette"][2:]
    spec.value = json.dumps(content)
    onnx.save_model(model, tmp_path / "few.onnx")
    with pytest.raises(ModelError, match="does not fit its description"):
        read_onnx(tmp_path / "few.onnx")


@without_cuda
def test_a_silent_fall_back_to_the_cpu_is_an_error(
    toy_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # onnxruntime-gpu without a driver lists CUDA, and computes on the CPU.
    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    real = onnxruntime.InferenceSession

    def fall_back(content: bytes, options: object, **_: object) -> object:
        return real(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(DeviceError, match="loaded on CPUExecutionProvider, not on CUDA"):
        open_ort(toy_onnx, "cuda")
    with open_ort(toy_onnx, "auto") as model:
        assert model.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("shape", [(1, 33, 32, 3), (1, 32, 48, 3), (1, 32, 32, 1), (0, 32, 32, 3)])
def test_shapes_that_the_runtime_would_change_are_refused(
    toy_onnx: Path, shape: tuple[int, ...]
) -> None:
    with open_ort(toy_onnx) as model, pytest.raises(ShapeError):
        model.labels(np.zeros(shape, np.uint8))


def external_weight(model: onnx.ModelProto) -> None:
    weight = model.graph.initializer[0]
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", ["image"], ["x"], domain="com.evil"))


def engine_inside(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("EPContext", ["image"], ["x"]))


def branch_inside(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([], "g", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["x"], then_branch=graph))


def no_description(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


def other_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "data"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (external_weight, "outside of its graph"),
        (custom_operator, "com.evil:Run, not standard"),
        (engine_inside, "EPContext, not standard"),
        (branch_inside, "a If with a graph inside"),
        (no_description, "no fcn-deploy description"),
        (other_input, "does not take 'image'"),
    ],
)
def test_unsafe_or_foreign_files_are_refused_before_a_session(
    toy_onnx: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    model = onnx.load(toy_onnx)
    change(model)
    path = tmp_path / "changed.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=words):
        read_onnx(path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"<html>", None])
def test_damaged_files_are_refused(toy_onnx: Path, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(toy_onnx.read_bytes()[:100_000] if content is None else content)
    with pytest.raises(ModelError):
        open_ort(path)
