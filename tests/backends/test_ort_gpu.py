"""ONNX Runtime on a GPU: for `make test-gpu`, once for each provider that works there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from fcn_deploy.backends import ort_options
from fcn_deploy.backends.eager import open_eager
from fcn_deploy.backends.ort import OrtBackend, open_ort
from fcn_deploy.backends.ort_options import GpuSettings
from fcn_deploy.backends.ort_providers import PROVIDERS, Provider, find_provider
from fcn_deploy.backends.tensorrt_flavour import require_gpu
from fcn_deploy.errors import DeviceError, DeviceMemoryError
from fcn_deploy.onnx_file import read_onnx, to_half
from fcn_deploy.parity import TOLERANCES, compare
from fcn_deploy.recipe import Shapes
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling_options import Tiling
from small_models import photos

pytestmark = pytest.mark.gpu

SETTINGS = GpuSettings(batch=3, shapes=Shapes((32, 32), (64, 96), (256, 256), 4))
"""Small, since TensorRT measures for as long as crops are large."""


def found(name: str) -> Provider:
    try:
        return find_provider(name)
    except DeviceError as error:
        pytest.skip(error.problem)


@pytest.fixture(scope="module", params=["cuda", "tensorrt", "rtx"])
def provider(request: pytest.FixtureRequest) -> str:
    found(request.param)
    return str(request.param)


@pytest.fixture(scope="module")
def backend(toy_onnx: Path, provider: str) -> Iterator[OrtBackend]:
    with open_ort(toy_onnx, provider, SETTINGS) as opened:
        yield opened


def batches() -> Iterator[NDArray[np.uint8]]:
    for height, width in ((32, 32), (64, 256), (256, 64), (160, 224), (256, 256)):
        for count in (1, 2, 4):
            yield photos(height + count, count, height, width)


def test_it_really_computes_there(backend: OrtBackend, provider: str) -> None:
    assert backend.provider == PROVIDERS[provider]
    assert backend.labels_on_device


def test_it_agrees_with_eager(backend: OrtBackend, provider: str, toy_checkpoint: Path) -> None:
    # TensorRT and TensorRT-RTX may round float32 to TF32, which has the mantissa of FP16.
    tolerance = TOLERANCES["fp32" if provider == "cuda" else "fp16"]
    with open_eager(toy_checkpoint, "cpu") as eager:
        compare(eager, backend, batches(), tolerance).require()


def test_its_fp16_agrees_with_eager(
    toy_onnx: Path, toy_checkpoint: Path, provider: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.fp16.onnx"
    onnx.save_model(to_half(onnx.load_model(toy_onnx)), path)
    with open_eager(toy_checkpoint, "cpu") as eager, open_ort(path, provider, SETTINGS) as half:
        assert half.precision == "fp16"
        compare(eager, half, batches()).require()


def test_bound_buffers_change_nothing(backend: OrtBackend, toy_onnx: Path, provider: str) -> None:
    plain = replace(found(provider), buffers=())
    with OrtBackend(read_onnx(toy_onnx), toy_onnx, plain, settings=SETTINGS) as unbound:
        for crops in batches():
            np.testing.assert_array_equal(backend.labels(crops), unbound.labels(crops))
            np.testing.assert_array_equal(backend.scores(crops), unbound.scores(crops))


def test_results_are_the_callers(backend: OrtBackend) -> None:
    first = backend.scores(photos(1, 1, 64, 64))
    kept = first.copy()
    backend.scores(photos(2, 1, 64, 64))
    np.testing.assert_array_equal(first, kept)


def test_large_images_are_those_of_the_cpu(backend: OrtBackend, toy_onnx: Path) -> None:
    image = photos(7, 1, 700, 530)[0]
    with open_ort(toy_onnx, "cpu") as reference:
        for tiling in (Tiling((128, 96), 32), Tiling((96, 96), halo=32)):
            wanted = Segmenter(reference).predict(image, tiling).labels
            got = Segmenter(backend).predict(image, tiling).labels
            assert (got == wanted).mean() > 0.999


def test_no_memory_is_lost_over_many_runs(backend: OrtBackend) -> None:
    cuda, crops = require_gpu(), photos(0, 2, 128, 128)
    for _ in range(3):
        backend.labels(crops)
        list(backend.stream_scores(crops))
    before = cuda.cudaMemGetInfo()[1]
    for _ in range(1000):
        backend.labels(crops)
    for _ in range(100):
        list(backend.stream_scores(crops))
    assert cuda.cudaMemGetInfo()[1] == before


def test_short_memory_is_answered(
    toy_onnx: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    provider = found("cuda")
    limited = {**ort_options.CUDA_OPTIONS, "gpu_mem_limit": str(400 << 20)}
    monkeypatch.setattr(ort_options, "CUDA_OPTIONS", limited)
    images = photos(0, 64, 256, 256)
    settings = GpuSettings(batch=64)
    with (
        open_ort(toy_onnx, "cpu") as reference,
        OrtBackend(read_onnx(toy_onnx), toy_onnx, provider, settings=settings) as backend,
    ):
        span = float(np.ptp(reference.scores(images[:1])))
        for got, image in zip(backend.stream_scores(images), images, strict=True):
            wanted = reference.scores(image[None])[0]
            np.testing.assert_allclose(got, wanted, atol=1e-4 * span)
        assert "Memory is too short for 64 crops of 256x256 at once" in caplog.text
        with pytest.raises(DeviceMemoryError, match="too little memory for crops of 1x4096x4096x3"):
            backend.scores(photos(0, 1, 4096, 4096))
        backend.scores(images[:1])  # and it goes on


def test_auto_takes_it(toy_onnx: Path) -> None:
    found("cuda")
    with open_ort(toy_onnx) as model:
        assert model.provider == PROVIDERS["cuda"]
