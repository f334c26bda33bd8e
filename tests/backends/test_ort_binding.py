"""Runs with bound buffers equal plain runs; the code for GPUs, on the CPU's memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import DTypeLike

import fcn_deploy
from fcn_deploy.backends.ort import OrtBackend
from fcn_deploy.backends.ort_binding import Buffer, host_buffer
from fcn_deploy.backends.ort_options import GpuSettings
from fcn_deploy.backends.ort_providers import Provider
from fcn_deploy.errors import DeviceError, DeviceMemoryError, ShapeError
from fcn_deploy.onnx_file import OnnxModel, read_onnx
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling_options import Tiling
from small_models import photos

AS_IF_GPU = Provider("CPUExecutionProvider", buffers=(host_buffer,))
"""All that happens on a GPU but the GPU: the small crop, bound buffers, batches."""


@pytest.fixture(scope="module")
def model(toy_onnx: Path) -> OnnxModel:
    return read_onnx(toy_onnx)


@pytest.fixture(scope="module")
def plain(toy_onnx: Path) -> Iterator[OrtBackend]:
    with fcn_deploy.load(toy_onnx, provider="cpu") as segmenter:
        assert isinstance(segmenter.backend, OrtBackend)
        yield segmenter.backend


@pytest.fixture(scope="module")
def bound(model: OnnxModel, toy_onnx: Path) -> Iterator[OrtBackend]:
    with OrtBackend(model, toy_onnx, AS_IF_GPU) as backend:
        yield backend


def test_every_output_is_that_of_a_plain_run(plain: OrtBackend, bound: OrtBackend) -> None:
    assert bound.labels_on_device
    for shape in ((1, 64, 96), (3, 32, 64), (1, 32, 32), (3, 32, 64), (1, 64, 96)):
        crops = photos(sum(shape), *shape)
        np.testing.assert_array_equal(bound.labels(crops), plain.labels(crops))
        np.testing.assert_array_equal(bound.scores(crops), plain.scores(crops))
        np.testing.assert_array_equal(bound.logits(crops), plain.logits(crops))


def test_crops_that_lie_apart_in_memory_are_read_right(
    plain: OrtBackend, bound: OrtBackend
) -> None:
    image = photos(0, 1, 128, 128)[0]
    view = image[None, 32:96:1, 64:, ::-1]
    np.testing.assert_array_equal(bound.scores(view), plain.scores(view.copy()))


def test_the_next_run_leaves_results_alone(bound: OrtBackend) -> None:
    first = bound.scores(photos(1, 1, 64, 64))
    kept = first.copy()
    second = bound.scores(photos(2, 1, 64, 64))
    np.testing.assert_array_equal(first, kept)
    assert np.abs(second - kept).max() > 0
    first[:] = 0  # and the caller may do with them what it likes
    np.testing.assert_array_equal(bound.scores(photos(2, 1, 64, 64)), second)


def test_buffers_are_made_once_a_shape_and_at_most_two_shapes_are_kept(
    model: OnnxModel, toy_onnx: Path
) -> None:
    made: list[tuple[int, ...]] = []

    def counted(shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        made.append(shape)
        return host_buffer(shape, dtype)

    with OrtBackend(model, toy_onnx, replace(AS_IF_GPU, buffers=(counted,))) as backend:
        for _ in range(3):
            backend.scores(photos(0, 4, 32, 32))
            backend.scores(photos(0, 3, 32, 32))
        crops = [shape for shape in made if shape[-1] == 3]
        assert crops == [(1, 32, 32, 3), (4, 32, 32, 3), (3, 32, 32, 3)]
        backend.scores(photos(0, 1, 64, 32))
        backend.scores(photos(0, 4, 32, 32))
        assert [shape for shape in made if shape[-1] == 3][3:] == [(1, 64, 32, 3), (4, 32, 32, 3)]


@pytest.mark.parametrize("crops", [1, 3, 4, 5, 9])
def test_a_stream_in_batches_is_the_crops_one_by_one(
    plain: OrtBackend, bound: OrtBackend, crops: int
) -> None:
    images = photos(crops, crops, 64, 96)
    streamed = list(bound.stream_scores(iter(images)))
    assert len(streamed) == crops
    for got, image in zip(streamed, images, strict=True):
        np.testing.assert_allclose(got, plain.scores(image[None])[0], rtol=1e-5, atol=1e-5)


def test_whole_images_and_tiled_ones_are_those_of_the_cpu(
    plain: OrtBackend, bound: OrtBackend
) -> None:
    image = photos(7, 1, 230, 310)[0]
    for tiling in (Tiling(None), Tiling((96, 64), 32), Tiling((96, 96), halo=32)):
        one = Segmenter(plain).predict(image, tiling, confidence=True)
        two = Segmenter(bound).predict(image, tiling, confidence=True)
        assert (one.labels == two.labels).mean() > 0.9999


def test_buffers_that_do_not_work_are_replaced_by_others(
    model: OnnxModel, toy_onnx: Path, plain: OrtBackend
) -> None:
    def broken(shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        raise RuntimeError("this build has no such memory")

    crops = photos(3, 2, 32, 64)
    with OrtBackend(model, toy_onnx, replace(AS_IF_GPU, buffers=(broken, host_buffer))) as other:
        np.testing.assert_array_equal(other.labels(crops), plain.labels(crops))
    with pytest.raises(DeviceError, match="no such memory"):
        OrtBackend(model, toy_onnx, replace(AS_IF_GPU, buffers=(broken,)))


def test_after_a_failure_the_next_run_is_right(model: OnnxModel, toy_onnx: Path) -> None:
    fails = False

    def sometimes(shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        if fails:
            # As ONNX Runtime raises it.
            host_memory = onnxruntime.OrtValue.ortvalue_from_shape_and_type
            host_memory([1 << 20, 1 << 20, 1 << 20], np.float32, "cpu", 0)
        return host_buffer(shape, dtype)

    with OrtBackend(model, toy_onnx, replace(AS_IF_GPU, buffers=(sometimes,))) as backend:
        wanted = backend.scores(photos(0, 1, 64, 64))
        fails = True
        with pytest.raises(DeviceMemoryError, match=r"too little memory for crops of 2x64x64x3"):
            backend.scores(photos(0, 2, 64, 64))
        fails = False
        np.testing.assert_array_equal(backend.scores(photos(0, 1, 64, 64)), wanted)


def test_shapes_are_checked_in_a_stream(bound: OrtBackend) -> None:
    with pytest.raises(ShapeError, match="multiples of 32"):
        list(bound.stream_scores(iter(photos(0, 5, 48, 64))))


def test_a_batch_of_one_is_no_batch(
    model: OnnxModel, toy_onnx: Path, plain: OrtBackend, caplog: pytest.LogCaptureFixture
) -> None:
    images = photos(4, 3, 32, 64)
    with (
        caplog.at_level(logging.WARNING, "fcn_deploy"),
        OrtBackend(model, toy_onnx, AS_IF_GPU, settings=GpuSettings(batch=1)) as backend,
    ):
        for got, image in zip(backend.stream_scores(images), images, strict=True):
            np.testing.assert_array_equal(got, plain.scores(image[None])[0])
    assert not caplog.records
