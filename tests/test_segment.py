"""Whole images through real backends, and through a fake one where geometry must show."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fcn_deploy
from fakes import WithoutScores
from fcn_deploy.backends import ShapeLimits, open_backend, ort
from fcn_deploy.errors import CheckFailedError, DeviceError, ModelError, ShapeError, UsageError
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.tiling_options import Tiling


class Pointwise(WithoutScores):
    """A network that looks at single pixels: whatever the crops, the answer must be the same.

    Fakes the Backend seam. Pixels outside the image would show, as would a misplaced crop.
    """

    name, provider, precision = "fake", "numpy", "fp32"

    def __init__(self, limits: ShapeLimits | None = None) -> None:
        self.spec = ModelSpec(tuple("abcd"), voc_palette(4))
        self.limits = limits or ShapeLimits()
        self.shapes: list[tuple[int, ...]] = []

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.limits.check(crops.shape)
        self.shapes.append(crops.shape)
        values = crops.astype(np.float32)
        extra = values.sum(-1, keepdims=True) / 3.1
        return np.concatenate([values, extra], -1).transpose(0, 3, 1, 2)

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.asarray(self.logits(crops).argmax(1), np.uint8)


def photo(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 4), st.data())
@settings(max_examples=60, deadline=None)
def test_property_4_pointwise_model_gives_the_whole_image_answer(
    height: int, width: int, cells: int, data: st.DataObject
) -> None:
    image = photo(height, height, width)
    model = Segmenter(Pointwise())
    wanted = Pointwise().labels(np.pad(image, ((0, -height % 32), (0, -width % 32), (0, 0)))[None])
    tile = 32 * cells
    overlap = data.draw(st.integers(0, tile - 32))
    got = model.predict(image, Tiling((tile, tile), overlap), confidence=True)
    np.testing.assert_array_equal(got.labels, wanted[0, :height, :width])
    assert got.confidence is not None
    assert got.confidence.shape == (height, width)
    np.testing.assert_array_equal(model.segment(image, tile=None), got.labels)


def test_confidence_is_the_softmax_maximum() -> None:
    image = photo(0, 40, 50) // 40
    got = Segmenter(Pointwise()).predict(image, confidence=True)
    logits = Pointwise().logits(np.pad(image, ((0, 24), (0, 14), (0, 0)))[None])[0, :, :40, :50]
    softmax = np.exp(logits.astype(np.float64))
    wanted = (softmax / softmax.sum(0)).max(0)
    assert got.confidence is not None
    assert np.abs(got.confidence / 255 - wanted).max() <= 0.5 / 255 + 1e-6


def test_crops_respect_what_an_engine_takes() -> None:
    limits = ShapeLimits(max_batch=3, min_hw=(64, 64), opt_hw=(128, 128), max_hw=(160, 160))
    backend = Pointwise(limits)
    model = Segmenter(backend)
    for hw in ((1, 1), (130, 150), (161, 20), (700, 500)):
        image = photo(1, *hw)
        labels = model.segment(image)
        np.testing.assert_array_equal(labels, Segmenter(Pointwise()).segment(image, tile=None))
    assert max(shape[0] for shape in backend.shapes) == 3
    with pytest.raises(ShapeError, match="outside of the engine's 64x64 to 160x160"):
        model.segment(photo(1, 700, 500), tile=(512, 512))


def test_auto_takes_whole_images_until_they_are_large() -> None:
    model = Segmenter(Pointwise())
    assert len(model.plan((2000, 2000))) == 1
    grid = model.plan((3000, 2000))
    assert len(grid) > 1
    assert model.backend.footprint.of(grid) <= 512 * 2**20
    assert len(model.plan((3000, 2000), Tiling(max_memory_mib=700))) == 1


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
    ],
)
def test_what_is_no_rgb_image_is_refused(image: NDArray[Any]) -> None:
    with pytest.raises(UsageError, match=r"RGB uint8 \(H, W, 3\)"):
        Segmenter(Pointwise()).segment(image)


def test_an_empty_image_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to segment"):
        Segmenter(Pointwise()).segment(np.zeros((0, 5, 3), np.uint8))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (31, 33), (90, 200), (160, 96)])
def test_onnx_runtime_equals_eager_tile_for_tile(
    toy_onnx: Path, toy_checkpoint: Path, height: int, width: int
) -> None:
    image = photo(2, height, width)
    with fcn_deploy.load(toy_onnx) as exported, fcn_deploy.load(toy_checkpoint) as eager:
        for tile, overlap in ((None, 0), ((64, 96), 32), ((64, 64), 0)):
            grid = eager.plan((height, width), Tiling(tile, overlap))
            pairs = zip(
                eager.logit_bands(image, grid), exported.logit_bands(image, grid), strict=True
            )
            for (top, wanted), (other, got) in pairs:
                assert top == other
                np.testing.assert_allclose(got, wanted, atol=1e-4 * float(np.ptp(wanted)))
            left = eager.segment(image, tile=tile, overlap=overlap)
            right = exported.segment(image, tile=tile, overlap=overlap)
            assert (left == right).mean() > 0.999


def test_tiled_prediction_is_the_average_of_the_networks_own_logits(toy_onnx: Path) -> None:
    image = photo(3, 100, 150)
    with fcn_deploy.load(toy_onnx) as model:
        grid = model.plan((100, 150), Tiling((64, 64), 32))
        padded = np.pad(image, ((0, 28), (0, 10), (0, 0)), mode="symmetric")
        total = np.zeros((3, 128, 160))
        count = np.zeros((128, 160))
        for top, left in grid.corners:
            window = (slice(top, top + 64), slice(left, left + 64))
            total[(slice(None), *window)] += model.backend.logits(padded[window][None])[0]
            count[window] += 1
        wanted = (total / count)[:, :100, :150]
        got = np.concatenate([band for _, band in model.logit_bands(image, grid)], 1)
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_property_7_a_translated_image_gives_a_translated_mask(toy_onnx: Path) -> None:
    image = photo(4, 64 + 32, 96)
    with fcn_deploy.load(toy_onnx) as model:
        moved = model.segment(image[32:], tile=(32, 32), overlap=0)
        np.testing.assert_array_equal(model.segment(image, tile=(32, 32), overlap=0)[32:], moved)


def test_property_9_cores_change_no_label(toy_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(5, 230, 310)
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(ort, "_cores", lambda cores=cores: cores)
        with fcn_deploy.load(toy_onnx) as model:
            found.append(model.segment(image, tile=(96, 64), overlap=32))
    np.testing.assert_array_equal(found[1], found[2])
    assert (found[0] == found[1]).mean() > 0.9999  # another session, whose kernels may differ


@pytest.mark.parametrize("after", [0, 1, 7])
def test_a_crop_that_fails_ends_all_threads(
    toy_onnx: Path, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    run_session, count = ort.OrtBackend._run_session, 0

    def broken(self: ort.OrtBackend, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > after:
            raise DeviceError("out of memory")
        return run_session(self, *arguments)

    monkeypatch.setattr(ort.OrtBackend, "_run_session", broken)
    monkeypatch.setattr(ort, "_cores", lambda: 3)
    with fcn_deploy.load(toy_onnx) as model, pytest.raises(DeviceError, match="out of memory"):
        model.segment(photo(6, 230, 310), tile=(64, 64), overlap=0)
    gc.collect()
    assert set(threading.enumerate()) <= before


def test_values_that_are_not_finite_stop_the_run(toy_onnx: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(toy_onnx)
    weight = next(w for w in model.graph.initializer if w.name == "network.score.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] = np.nan
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with (
        fcn_deploy.load(tmp_path / "nan.onnx") as broken,
        pytest.raises(CheckFailedError, match="not finite"),
    ):
        broken.segment(photo(0, 40, 40))


def test_files_run_on_the_backend_they_are_made_for(toy_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="runs on the backend ort, not on eager"):
        open_backend(toy_onnx, "eager")
    with pytest.raises(ModelError, match="There is no"):
        open_backend(tmp_path / "none.onnx")
    (tmp_path / "model.pt").touch()
    with pytest.raises(ModelError, match="is no model"):
        open_backend(tmp_path / "model.pt")
    with pytest.raises(UsageError, match="no backend 'tvm'"):
        fcn_deploy.load(toy_onnx, backend="tvm")
