"""An exported graph as whole, trunk and head: what they take, and that the cut changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx.numpy_helper
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import ModelProto

from fake_engines import model_of
from fakes import bilinear
from fcn_deploy.onnx_file import OnnxModel, keep_outputs, to_half
from fcn_deploy.onnx_parts import (
    GraphPart,
    head_profile,
    parts_of,
    read_upsampling,
    upsampling_bytes,
    upsampling_of_scores,
)
from fcn_deploy.onnx_upsampling import head_of
from fcn_deploy.passport import HEAD, TRUNK, WHOLE, Profile
from fcn_deploy.recipe import Shapes
from fcn_deploy.upsample import Upsampling, as_pixels, window_matrix
from small_models import photos, small_model

SHAPES = (
    Shapes((32, 64), (352, 480), (512, 1024), 4),
    Shapes((512, 512), (512, 512), (512, 512), 8),
)


def run(proto: ModelProto, values: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    results: list[NDArray[np.generic]] = session.run(None, {session.get_inputs()[0].name: values})
    return results


def halved(model: OnnxModel) -> OnnxModel:
    return replace(model, proto=to_half(model.proto), precision="fp16")


def names(part: GraphPart) -> tuple[list[str], list[str]]:
    graph = part.proto.graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def test_a_model_with_scores_has_three_parts() -> None:
    whole, trunk, head = parts_of(model_of(small_model(stride=8)), SHAPES)
    assert [part.role for part in (whole, trunk, head)] == [WHOLE, TRUNK, HEAD]
    assert names(whole) == (["image"], ["labels"])
    assert names(trunk) == (["image"], ["scores"])
    assert names(head) == (["scores"], ["labels"])
    assert [part.input for part in (whole, trunk, head)] == ["image", "image", "scores"]
    assert [part.step for part in (whole, trunk, head)] == [32, 32, 1]


def test_whole_images_come_one_by_one_and_crops_as_many_as_may_be() -> None:
    whole, trunk, head = parts_of(model_of(small_model(stride=8)), SHAPES)
    assert whole.profiles == (
        Profile((1, 32, 64), (1, 352, 480), (4, 512, 1024)),
        Profile((1, 512, 512), (1, 512, 512), (8, 512, 512)),
    )
    assert trunk.profiles == (
        Profile((1, 32, 64), (4, 352, 480), (4, 512, 1024)),
        Profile((1, 512, 512), (8, 512, 512), (8, 512, 512)),
    )
    assert len(head.profiles) == 1
    assert whole.dims((2, 64, 96)) == (2, 64, 96, 3)
    assert head.dims((1, 17, 40)) == (1, 17, 40, 3)  # three classes
    assert parts_of(model_of(small_model(classes=7)), SHAPES)[2].dims((1, 2, 2))[3] == 7


@pytest.mark.parametrize(
    "changes",
    [{"scores": "hidden"}, {"group": 3}, {"kernel": 12}, {"between": "Relu"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_model_that_cannot_be_cut_stays_whole(changes: dict[str, int]) -> None:
    model = model_of(small_model(**changes))  # type: ignore[arg-type]
    assert upsampling_of_scores(model) is None
    (whole,) = parts_of(model, SHAPES)
    assert (whole.role, whole.input, whole.step) == (WHOLE, "image", 32)
    assert names(whole)[1] == list(model.outputs)


def test_a_model_without_labels_stays_whole() -> None:
    proto = keep_outputs(small_model(), ("logits", "scores"))
    (whole,) = parts_of(replace(model_of(small_model()), proto=proto, outputs=("logits",)), SHAPES)
    assert whole.role == WHOLE


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_head_after_trunk_gives_the_labels_of_the_whole(half: bool, stride: int) -> None:
    model = model_of(small_model(4, classes=6, stride=stride, learned=0.02))
    typed = halved(model) if half else model
    whole, trunk, head = (part.proto for part in parts_of(typed, SHAPES))
    image = photos(2, 1, 128, 192)
    (scores,) = run(trunk, image)
    assert scores.dtype == np.float32
    # Around an image there is nothing, which is what the padding of the whole adds there.
    cells = np.pad(scores, ((0, 0), (0, 0), (1, 1), (1, 1))).transpose(0, 2, 3, 1)
    (windows,) = run(head, np.ascontiguousarray(cells))
    cut = slice(stride // 2, -(stride // 2))
    (labels,) = run(whole, image)
    assert labels.shape == (1, 128, 192)
    assert len(np.unique(labels)) > 1
    assert (windows[:, cut, cut] == labels).mean() > 0.999  # but for ties


@st.composite
def layers(draw: st.DrawFn) -> tuple[Upsampling, NDArray[np.float32]]:
    """Any transposed convolution that is cut at, and cells around its windows."""
    stride, classes = draw(st.sampled_from([8, 16, 32])), draw(st.sampled_from([1, 2, 3, 21]))
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    # From the bilinear kernel alone to one that has nothing of it.
    own, learned = draw(st.sampled_from([(1, 0), (1, 0.01), (1, 0.3), (0, 1)]))
    shape = (classes, classes, 2 * stride, 2 * stride)
    kernel = own * bilinear(classes, stride) + learned * random.standard_normal(shape)
    bias = draw(st.sampled_from([0, 1, 30])) * random.standard_normal(classes)
    upsampling = Upsampling(
        window_matrix(kernel.astype(np.float32), bias.astype(np.float32)), classes
    )
    rows, columns = draw(st.integers(2, 6)), draw(st.integers(2, 9))
    scale = draw(st.sampled_from([0.1, 3, 40]))
    cells = scale * random.standard_normal((rows, columns, classes))
    return upsampling, cells.astype(np.float32)


def logits_of(upsampling: Upsampling, cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of all windows between neighbours: (C, rows * s, columns * s)."""
    windows = upsampling.logits(cells, np.arange(cells.shape[1] - 1))
    return np.concatenate([as_pixels(part) for _, part in windows], 1)


@settings(max_examples=40, deadline=None)
@given(layers(), st.booleans())
def test_the_head_decides_as_the_host_does(
    layer: tuple[Upsampling, NDArray[np.float32]], half: bool
) -> None:
    upsampling, cells = layer
    host = as_pixels(upsampling.labels(cells, np.arange(cells.shape[1] - 1)))
    (found,) = run(head_of(upsampling, half=half), cells[None])
    assert found.dtype == np.uint8
    assert found.shape == (1, *host.shape)
    logits = logits_of(upsampling, cells)
    # What is added up to a logit, by size: FP16 knows each cell, weight and sum to 1 in 2,048.
    sizes = logits_of(Upsampling(np.abs(upsampling.matrix), len(logits)), np.abs(cells))
    picks = [label[None].astype(np.intp) for label in (host, found[0])]
    right, chosen = (np.take_along_axis(logits, pick, 0) for pick in picks)
    error = sum(np.take_along_axis(sizes, pick, 0) for pick in picks)
    assert (right - chosen <= error * (3 / 2048 if half else 1e-6)).all()
    assert (found[0] == host).mean() > (0.9 if half else 0.999)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("stride", "classes"), [(8, 60), (16, 3), (32, 1)])
def test_the_weights_of_the_head_read_back_equal(stride: int, classes: int, half: bool) -> None:
    model = model_of(small_model(stride, classes=classes, stride=stride))
    upsampling = upsampling_of_scores(halved(model) if half else model)
    assert upsampling is not None
    again = read_upsampling(upsampling_bytes(upsampling), classes)
    np.testing.assert_array_equal(again.matrix, upsampling.matrix)
    assert (again.stride, again.num_classes) == (stride, classes)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"\x80\x04N.", bytes(200)])
def test_other_bytes_are_no_weights(content: bytes) -> None:
    with pytest.raises((ValueError, EOFError)):
        read_upsampling(content, 3)


def test_weights_of_other_classes_are_refused() -> None:
    upsampling = upsampling_of_scores(model_of(small_model(classes=3)))
    assert upsampling is not None
    with pytest.raises(ValueError, match="not of 4 classes"):
        read_upsampling(upsampling_bytes(upsampling), 4)


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32, 64])
def test_a_head_takes_bands_of_a_megapixel_and_single_windows(stride: int) -> None:
    profile = head_profile(stride)
    assert profile.min == (1, 2, 2)  # four cells are the least that a window lies between
    batch, rows, columns = profile.max
    assert batch == 1
    assert (rows - 1) * stride == 256
    assert (rows - 1) * (columns - 1) * stride**2 == 1 << 20
    assert all(
        low <= best <= high
        for low, best, high in zip(profile.min, profile.opt, profile.max, strict=True)
    )


def test_the_typed_head_multiplies_in_the_models_type() -> None:
    for half in (False, True):
        model = model_of(small_model())
        head = parts_of(halved(model) if half else model, SHAPES)[2].proto
        (matrix,) = (w for w in head.graph.initializer if len(w.dims) == 2 and w.dims[0] > 4)
        kind = np.float16 if half else np.float32
        assert onnx.numpy_helper.to_array(matrix).dtype == kind
