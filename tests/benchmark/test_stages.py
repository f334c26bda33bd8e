"""Whole images: that the stages are told apart, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fakes import Coded, CodedBackend
from fcn_deploy.backends import Backend
from fcn_deploy.benchmark.result import Spread
from fcn_deploy.benchmark.stages import Stages, end_to_end, segment_timed
from fcn_deploy.benchmark.timed_backend import TimedBackend
from fcn_deploy.errors import DeviceError, InputError
from fcn_deploy.items import Item, list_items
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling_options import Tiling


class Ticking(CodedBackend):
    """A backend on which each crop takes a second of a clock that nothing else moves."""

    now = 0.0

    def clock(self) -> float:
        return self.now

    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.now += len(crops)
        return super().scores(crops)

    def stream_scores(self, crops: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        for crop in crops:
            yield self.scores(crop[None])[0]


class Broken(CodedBackend):
    def scores(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise DeviceError(f"{len(crops)} crops are too many.")


def network() -> Coded:
    return Coded(3, classes=4, stride=8)


@pytest.fixture
def photos(tmp_path: Path) -> list[Item]:
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, hw in enumerate([(64, 96), (64, 96), (50, 70)]):
        pixels = random.integers(0, 256, (*hw, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return list_items([folder])


def test_a_timed_backend_answers_as_the_one_within(photos: list[Item]) -> None:
    inner: Backend = CodedBackend(network())
    image = np.asarray(Image.open(photos[0].source))
    for tiling in (Tiling(tile=None), Tiling(tile=(64, 64), overlap=32)):
        expected = Segmenter(inner).predict(image, tiling).labels
        found = Segmenter(TimedBackend(inner)).predict(image, tiling).labels
        np.testing.assert_array_equal(found, expected)


def test_only_calls_of_the_network_count_as_network() -> None:
    inner = Ticking(network())
    timed = TimedBackend(inner, inner.clock)
    crops = np.zeros((3, 32, 32, 3), np.uint8)
    timed.scores(crops)
    assert timed.seconds == 3
    inner.now += 100  # somebody else's work
    scores = timed.stream_scores(iter(crops))
    assert timed.seconds == 6  # all at once, before the first one is merged
    inner.now += 100
    assert len(list(scores)) == 3
    timed.logits(crops[:2])
    assert timed.seconds == 8


def test_stages_of_an_image_add_up(photos: list[Item], tmp_path: Path) -> None:
    inner = Ticking(network())
    stages = Stages()
    segment_timed(inner, photos[0], tmp_path / "out", stages, inner.clock)
    assert stages.network == [stages.crops]  # a second each; files and merging move no clock
    assert (stages.decode, stages.merge, stages.encode) == ([0], [0], [0])
    assert stages.total == stages.network
    mask = np.asarray(Image.open(tmp_path / "out" / "mask" / "0.png"))
    image = np.asarray(Image.open(photos[0].source))
    np.testing.assert_array_equal(mask, Segmenter(inner).segment(image))


def test_the_total_is_the_sum_of_its_stages() -> None:
    stages = Stages([1, 2], [10, 20], [100, 200], [1000, 2000])
    assert stages.total == [1111, 2222]


def test_backends_take_turns_and_who_fails_is_left_out(photos: list[Item], tmp_path: Path) -> None:
    damaged = photos[0].source.with_name("damaged.png")
    damaged.write_bytes(photos[0].source.read_bytes()[:100])
    items = [*photos, Item(damaged, "damaged")]
    done: list[tuple[int, int]] = []
    backends: dict[str, Backend] = {n: CodedBackend(network()) for n in ("one", "two")}
    backends["broken"] = Broken(network())
    found, failed = end_to_end(backends, items, lambda *told: done.append(told))
    assert list(found) == ["one", "two"]
    assert [(name, str(error)) for name, error in failed.items()] == [
        ("broken", "1 crops are too many.")
    ]
    assert done == [(number, 9) for number in range(1, 10)]  # three images, three times
    for result in found.values():
        assert (result.images, result.failed, result.passes, result.crops) == (4, 1, 3, 3)
        assert result.megapixels == pytest.approx((2 * 64 * 96 + 50 * 70) / 1e6, abs=1e-4)
        stages = (result.decode_ms, result.network_ms, result.merge_ms, result.encode_ms)
        assert all(isinstance(stage, Spread) and stage.mean >= 0 for stage in stages)
        assert result.total_ms.mean == pytest.approx(sum(s.mean for s in stages), abs=1e-3)
        assert result.host_overhead >= 1
        assert result.images_s > 0
        assert result.pipelined_images_s > 0


def test_no_image_that_can_be_read(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"bad\.png"):
        end_to_end({"one": CodedBackend(network())}, [Item(bad, "bad")])
