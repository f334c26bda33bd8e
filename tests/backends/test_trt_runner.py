"""The runner on a FAKE of TensorRT and CUDA: its logic, on real networks, without a GPU.

What comes out is compared with ONNX Runtime on the same graph. Streams of the fake do nothing until
someone waits for them, and then in any order that is legal: results that are read too early, or
buffers that are filled again too early, show as wrong labels. No time is taken from it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_cuda import FakeCuda
from fake_engines import SMALL, install_fake, model_of, write_fake_engine
from fcn_deploy.backends.ort import OrtBackend
from fcn_deploy.backends.trt import TrtBackend, open_trt
from fcn_deploy.errors import CheckFailedError, DeviceError, DeviceMemoryError, ShapeError
from fcn_deploy.recipe import Shapes
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling_options import Tiling
from small_models import photos, small_model

PROTO = small_model(1, classes=5, stride=8, learned=0.05)
RELEASES = [("tensorrt", "10.3.0"), ("tensorrt", "10.16.1.11"), ("tensorrt", "11.4.0"), ("rtx", "")]


@pytest.fixture(scope="module")
def oracle() -> Iterator[OrtBackend]:
    with OrtBackend(model_of(PROTO), Path("oracle"), "CPUExecutionProvider") as backend:
        yield backend


@pytest.fixture(params=RELEASES, ids=lambda release: "-".join(release).strip("-"))
def release(request: pytest.FixtureRequest) -> tuple[str, str]:
    chosen: tuple[str, str] = request.param
    return chosen


@pytest.fixture
def device() -> FakeCuda:
    return FakeCuda(seed=7)


def opened(
    device: FakeCuda,
    folder: Path,
    patch: pytest.MonkeyPatch,
    release: tuple[str, str] = RELEASES[1],
    *,
    profiles: tuple[Shapes, ...] = (SMALL,),
) -> TrtBackend:
    flavour, version = release
    install_fake(patch, device, flavour=flavour, version=version)
    plan = folder / "model.plan"
    write_fake_engine(plan, PROTO, flavour=flavour, version=version, profiles=profiles)
    return open_trt(plan)


def equal_but_for_ties(labels: NDArray[np.uint8], logits: NDArray[np.float32]) -> bool:
    """Whether labels are those of logits wherever two classes are not as good as equal."""
    first, second = np.sort(logits, 1)[:, -1], np.sort(logits, 1)[:, -2]
    clear = first - second > 1e-4
    return bool((labels == logits.argmax(1))[clear].all()) and bool(clear.mean() > 0.99)


def test_every_output_is_that_of_onnx_runtime(
    release: tuple[str, str],
    device: FakeCuda,
    oracle: OrtBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with opened(device, tmp_path, monkeypatch, release) as engine:
        # Shapes come and go, so that contexts, buffers and graphs are made, kept and dropped.
        for seed, shape in enumerate([(1, 64, 96), (3, 32, 32), (1, 128, 160), (2, 64, 96)] * 3):
            crops = photos(seed, *shape)
            logits = oracle.logits(crops)
            assert equal_but_for_ties(engine.labels(crops), logits)
            np.testing.assert_array_equal(engine.scores(crops), oracle.scores(crops))
            np.testing.assert_allclose(engine.logits(crops), logits, atol=1e-4)


@pytest.mark.parametrize("image_hw", [(200, 300), (129, 161), (500, 70)])
@pytest.mark.parametrize("halo", [None, 32])
def test_tiled_masks_are_those_of_onnx_runtime(
    release: tuple[str, str],
    image_hw: tuple[int, int],
    halo: int | None,
    device: FakeCuda,
    oracle: OrtBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = photos(3, 1, *image_hw)[0]
    tiling = Tiling((96, 128), 32 if halo is None else 64, halo)
    expected = Segmenter(oracle).segment(image, tile=(96, 128), overlap=tiling.overlap, halo=halo)
    with opened(device, tmp_path, monkeypatch, release) as engine:
        assert engine.upsampling is not None
        for _ in range(3):
            assert (Segmenter(engine).predict(image, tiling).labels == expected).mean() > 0.9999


def test_confidence_and_blends_come_from_the_same_scores(
    device: FakeCuda, oracle: OrtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photos(4, 1, 150, 220)[0]
    tiling = Tiling((96, 128), 32, blend="gaussian")
    expected = Segmenter(oracle).predict(image, tiling, confidence=True, probabilities=True)
    with opened(device, tmp_path, monkeypatch) as engine:
        found = Segmenter(engine).predict(image, tiling, confidence=True, probabilities=True)
    assert found.confidence is not None
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.confidence, expected.confidence)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)


def test_scores_arrive_in_order_whatever_the_batches(
    device: FakeCuda, oracle: OrtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = photos(5, 11, 64, 64)
    with opened(device, tmp_path, monkeypatch) as engine:
        for count in (1, 2, 3, 4, 7, 11):
            streamed = list(engine.stream_scores(crops[:count]))
            np.testing.assert_array_equal(np.stack(streamed), oracle.scores(crops[:count]))


def test_results_are_the_callers(
    device: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = photos(1, 1, 64, 64), photos(2, 1, 64, 64)
    with opened(device, tmp_path, monkeypatch) as engine:
        before = engine.scores(first)
        kept = before.copy()
        assert not np.array_equal(engine.scores(second), kept)
        np.testing.assert_array_equal(before, kept)


def test_everything_is_given_back(
    release: tuple[str, str], device: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photos(6, 1, 200, 300)[0]
    engine = opened(device, tmp_path, monkeypatch, release)
    segmenter = Segmenter(engine)
    for _ in range(3):
        segmenter.predict(image, Tiling((96, 128), 32))
        segmenter.predict(image[:100, :100])
    held = device.live_allocations
    for _ in range(5):
        segmenter.predict(image, Tiling((96, 128), 32))
    assert len(device.live_allocations) == len(held)
    engine.close()
    assert not device.live_allocations
    assert not device.live_streams
    assert not device.live_graphs
    engine.close()  # twice is no fault


def test_a_stream_that_is_left_early_leaves_usable_lanes(
    device: FakeCuda, oracle: OrtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = photos(7, 12, 64, 64)
    with opened(device, tmp_path, monkeypatch) as engine:
        streamed = engine.stream_scores(crops)
        next(streamed)
        streamed.close()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(
            np.stack(list(engine.stream_scores(crops))), oracle.scores(crops)
        )


@pytest.mark.parametrize("share", [1.0, 0.7, 0.4, 0.3])
def test_a_small_device_is_answered_by_smaller_batches(
    share: float,
    oracle: OrtBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    crops = photos(8, 9, 96, 128)
    roomy = FakeCuda()
    with opened(roomy, tmp_path, monkeypatch) as engine:
        list(engine.stream_scores(crops))
        _, free, total = roomy.cudaMemGetInfo()
    device = FakeCuda(memory_bytes=int(share * (total - free)))
    with opened(device, tmp_path, monkeypatch) as engine, caplog.at_level(logging.WARNING):
        streamed = np.stack(list(engine.stream_scores(crops)))
        np.testing.assert_array_equal(streamed, oracle.scores(crops))
        assert ("too little" in caplog.text) == (share < 1)
        caplog.clear()
        list(engine.stream_scores(crops))
        assert not caplog.text  # said once, and remembered


def test_a_device_without_room_for_one_crop_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeCuda(memory_bytes=150_000)  # weights, and next to nothing else
    with opened(device, tmp_path, monkeypatch) as engine:
        before = device.cudaMemGetInfo()[1]
        with pytest.raises(DeviceMemoryError, match="too little free memory") as caught:
            list(engine.stream_scores(photos(8, 3, 96, 128)))
        assert "--tile" in caught.value.remedy
        with pytest.raises(DeviceMemoryError):
            engine.labels(photos(8, 1, 96, 128))
        assert device.cudaMemGetInfo()[1] == before  # nothing is held on to


def test_profiles_are_chosen_by_shape(
    device: FakeCuda, oracle: OrtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = (
        Shapes((64, 64), (64, 64), (64, 64), 4),
        Shapes((32, 32), (192, 320), (192, 320), 1),
    )
    with opened(device, tmp_path, monkeypatch, profiles=profiles) as engine:
        for shape in ((4, 64, 64), (1, 192, 320), (1, 32, 64)):
            crops = photos(2, *shape)
            assert equal_but_for_ties(engine.labels(crops), oracle.logits(crops))
        for shape in ((5, 64, 64), (2, 192, 320), (1, 224, 320)):
            with pytest.raises(ShapeError):
                engine.labels(photos(2, *shape))
        segmenter = Segmenter(engine)
        assert len(segmenter.plan((190, 300))) == 1
        assert segmenter.plan((200, 300)).crop_hw == (64, 64)


def test_a_run_that_fails_is_an_error_in_words(
    device: FakeCuda, oracle: OrtBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = photos(9, 1, 64, 64)
    with opened(device, tmp_path, monkeypatch) as engine:
        engine.labels(crops)
        device.fail_next("execute_async_v3", log="a kernel is missing", times=2)
        # Once while the run is recorded, once when it is queued call by call instead.
        with pytest.raises(DeviceError, match=r"failed to run: .*a kernel is missing"):
            engine.labels(crops)
        assert equal_but_for_ties(engine.labels(crops), oracle.logits(crops))  # it goes on


@pytest.mark.parametrize("name", ["execute_async_v3", "cudaGraphLaunch", "cudaMemcpyAsync"])
@pytest.mark.parametrize("after", range(0, 12, 3))
def test_a_failure_anywhere_leaves_lanes_that_work(
    name: str,
    after: int,
    device: FakeCuda,
    oracle: OrtBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = photos(3, 1, 200, 300)[0]
    expected = Segmenter(oracle).segment(image, tile=(96, 128), overlap=32)
    with opened(device, tmp_path, monkeypatch) as engine:
        segmenter = Segmenter(engine)
        device.fail_next(name, after=after, times=2)
        failures = 0
        for _ in range(6):
            try:
                found = segmenter.segment(image, tile=(96, 128), overlap=32)
            except DeviceError:
                failures += 1
                continue
            assert (found == expected).mean() > 0.9999
        assert failures < 4
        assert (segmenter.segment(image, tile=(96, 128), overlap=32) == expected).mean() > 0.9999


def test_values_that_are_not_finite_stop_it(
    device: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = small_model(1, classes=5, stride=8)
    for weight in broken.graph.initializer:
        if weight.name == "weight_bias":
            weight.raw_data = np.full(5, np.nan, np.float32).tobytes()
    install_fake(monkeypatch, device)
    write_fake_engine(tmp_path / "nan.plan", broken)
    with (
        open_trt(tmp_path / "nan.plan") as engine,
        pytest.raises(CheckFailedError, match="not finite"),
    ):
        list(engine.stream_scores(photos(9, 2, 64, 64)))


def test_compiled_kernels_are_kept_in_the_users_cache_not_beside_the_plan(
    device: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(monkeypatch, device, flavour="rtx")
    folder, cache = tmp_path / "model", tmp_path / "cache"
    folder.mkdir()
    write_fake_engine(folder / "model.plan", PROTO, flavour="rtx")
    before = sorted(folder.iterdir())
    for _ in range(2):
        with open_trt(folder / "model.plan", cache=cache) as engine:
            engine.labels(photos(1, 1, 64, 64))
            list(engine.stream_scores(photos(1, 2, 64, 64)))
    assert sorted(folder.iterdir()) == before
    assert len(list((cache / "kernels").iterdir())) == 3
    (cache / "kernels").rename(tmp_path / "gone")
    cache.rmdir()
    cache.write_bytes(b"")  # no folder, and none can be made: that costs time, no more
    with open_trt(folder / "model.plan", cache=cache) as engine:
        engine.labels(photos(1, 1, 64, 64))
