"""Streams of crops: order, overlap, and what happens when memory is short."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fcn_deploy.backends.ort_batches import BatchLimit, stream_batches
from fcn_deploy.errors import DeviceError, DeviceMemoryError


def sums(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(batch.sum((1, 2, 3), np.float32).reshape(-1, 1, 1, 1), np.float32)


def crops(count: int, height: int = 8, width: int = 8) -> NDArray[np.uint8]:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3), np.uint8)


class Small:
    """A device with room for some pixels; it allocates them for real, as far as they fit."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.tried: list[int] = []

    def __call__(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.tried.append(len(batch))
        if batch.size // 3 > self.pixels:
            raise DeviceMemoryError(f"too little memory for {batch.shape}")
        return sums(batch)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 17])
@pytest.mark.parametrize("at_once", [1, 4])
def test_all_crops_come_back_in_order(count: int, at_once: int) -> None:
    images = crops(count)
    results = list(stream_batches(iter(images), sums, BatchLimit(at_once)))
    np.testing.assert_array_equal(np.array(results).ravel(), sums(images).ravel())


def test_a_crop_may_be_overwritten_as_soon_as_the_next_one_is_asked_for() -> None:
    images = crops(9)

    def reused() -> Iterator[NDArray[np.uint8]]:
        place = np.empty_like(images[0])
        for image in images:
            place[:] = image
            yield place

    results = list(stream_batches(reused(), sums, BatchLimit(4)))
    np.testing.assert_array_equal(np.array(results).ravel(), sums(images).ravel())


def test_half_is_tried_until_it_fits_and_that_is_remembered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    images, device, limit = crops(20), Small(3 * 64), BatchLimit(8)
    with caplog.at_level(logging.WARNING, "fcn_deploy"):
        results = list(stream_batches(iter(images), device, limit))
    np.testing.assert_array_equal(np.array(results).ravel(), sums(images).ravel())
    assert device.tried[:3] == [8, 4, 2]
    assert max(device.tried[3:]) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "Memory is too short for 8 crops of 8x8 at once; from now on it is 4.",
        "Memory is too short for 4 crops of 8x8 at once; from now on it is 2.",
    ]
    device.tried.clear()
    list(stream_batches(iter(images), device, limit))
    assert max(device.tried) == 2


def test_what_was_short_for_large_crops_leaves_small_ones_alone() -> None:
    limit = BatchLimit(8)
    limit.halve((8, 64, 64, 3))
    assert limit.of(64, 64) == 4
    assert limit.of(128, 128) == 1
    assert limit.of(512, 512) == 1
    assert limit.of(8, 8) == 8


def test_if_not_even_one_crop_fits_that_is_the_answer() -> None:
    before = set(threading.enumerate())
    device = Small(60)
    with pytest.raises(DeviceMemoryError, match=r"\(1, 8, 8, 3\)"):
        list(stream_batches(iter(crops(9)), device, BatchLimit(8)))
    assert device.tried[:4] == [8, 4, 2, 1]
    assert device.tried[4:] in ([], [1])  # the next batch may have been on its way
    assert set(threading.enumerate()) <= before


def test_other_failures_are_not_tried_again() -> None:
    tried = 0

    def broken(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal tried
        tried += 1
        raise DeviceError("lost")

    with pytest.raises(DeviceError, match="lost"):
        list(stream_batches(iter(crops(4)), broken, BatchLimit(4)))
    assert tried == 1


def test_the_next_batch_is_stacked_while_one_is_computed() -> None:
    images, stacked = crops(12), threading.Event()

    def counted() -> Iterator[NDArray[np.uint8]]:
        for number, image in enumerate(images):
            if number == 7:
                stacked.set()
            yield image

    def waits(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        # The first batch is not ready before the last crop of the second one was asked for.
        assert stacked.wait(20)
        return sums(batch)

    results = list(stream_batches(counted(), waits, BatchLimit(4)))
    np.testing.assert_array_equal(np.array(results).ravel(), sums(images).ravel())


def test_a_consumer_that_stops_early_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    stream = stream_batches(iter(crops(40)), sums, BatchLimit(4))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before


_SHORT_OF_MEMORY = """
import logging, resource, sys
from pathlib import Path
import numpy as np
from fcn_deploy.backends.ort import OrtBackend
from fcn_deploy.backends.ort_binding import host_buffer
from fcn_deploy.backends.ort_options import GpuSettings
from fcn_deploy.backends.ort_providers import Provider
from fcn_deploy.errors import DeviceMemoryError
from fcn_deploy.onnx_file import read_onnx

path = Path(sys.argv[1])
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
provider = Provider("CPUExecutionProvider", buffers=(host_buffer,))
backend = OrtBackend(read_onnx(path), path, provider, settings=GpuSettings(batch=32))
images = np.random.default_rng(0).integers(0, 256, (32, 256, 256, 3), np.uint8)
large = np.zeros((1, 4096, 4096, 3), np.uint8)
wanted = [backend.scores(image[None])[0] for image in images[:4]]
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmSize")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (used + (150 << 20), resource.RLIM_INFINITY))
got = list(backend.stream_scores(iter(images)))
assert len(got) == 32
for one, two in zip(wanted, got):
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
print("limit", backend._batch.of(256, 256))
try:
    backend.scores(large)
except DeviceMemoryError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS does not limit memory elsewhere")
def test_onnx_runtime_really_short_of_memory(toy_onnx: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _SHORT_OF_MEMORY, toy_onnx], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING Memory is too short for 32 crops of 256x256 at once" in run.stdout
    assert 1 <= int(run.stdout.split("limit ")[1].split()[0]) < 32
    assert "CPUExecutionProvider has too little memory for crops of 1x4096x4096x3: a piece of " in (
        run.stdout
    )
    assert "Pass a smaller --tile" in run.stdout
    assert "onnxruntime" not in run.stderr
