"""Examples: image and mask change alike, whatever is drawn; decoded once, and shared."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn_deploy.dataset import Dataset, Pair, open_dataset, read_pair
from fcn_deploy.training.augment import PADDING, Augmentation
from fcn_deploy.training.decoded import DecodedPairs
from fcn_deploy.training.examples import Draw, Examples

FULL = Augmentation((64, 96), (0.5, 2.0), 1.5, 0.3)


def ramp(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image whose channels are its own mask: four large fields of one colour each."""
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2] += 50
    labels[:, : width // 2] += 100
    return np.repeat(labels[..., None], 3, 2), labels


@given(
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    seed=st.integers(0, 10**6),
    low=st.sampled_from([0.3, 0.75, 1.0]),
)
def test_any_image_gives_a_crop_of_the_size_whose_mask_fits(
    height: int, width: int, seed: int, low: float
) -> None:
    image, labels = ramp(height, width)
    augmentation = replace(FULL, color=0.0, scale=(low, 2.0))
    crop, mask = augmentation(image, labels, np.random.default_rng(seed))
    assert crop.shape == (64, 96, 3)
    assert mask.shape == (64, 96)
    assert crop.dtype == mask.dtype == torch.uint8
    beyond = mask == 255
    assert (crop[beyond] == torch.tensor(PADDING, dtype=torch.uint8)).all()
    inside = ~beyond
    assert inside.any()
    assert set(mask[inside].tolist()) <= {0, 50, 100, 150}
    # Only along the borders between fields does interpolation differ from the nearest pixel.
    apart = (crop[..., 1].int() - mask.int()).abs() > 8
    assert (apart & inside).sum() <= 14 * (64 + 96)


def test_what_is_not_wanted_does_not_happen() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 255, (64, 96, 3), np.uint8)
    labels = random.integers(0, 11, (64, 96), np.uint8)
    crop, mask = Augmentation((64, 96), flip=False)(image, labels, random)
    assert np.array_equal(crop.numpy(), image)
    assert np.array_equal(mask.numpy(), labels)
    crop += 1  # its own memory
    assert not np.array_equal(crop.numpy(), image)


def test_flips_scales_places_and_colours_all_occur() -> None:
    image, labels = ramp(90, 130)
    seen = [FULL(image, labels, np.random.default_rng(seed)) for seed in range(40)]
    corners = [int(mask[0, 0]) for _, mask in seen]
    assert len(set(corners)) > 2
    assert len({int((mask == 255).sum()) for _, mask in seen}) > 5
    assert len({int(crop.max()) for crop, _ in seen}) > 10


def test_an_enlargement_of_two_shows_half_the_image() -> None:
    image, labels = ramp(64, 96)
    twice = Augmentation((64, 96), (2.0, 2.0))
    masks = [twice(image, labels, np.random.default_rng(seed))[1] for seed in range(20)]
    assert all((mask != 255).all() for mask in masks)
    # A field as wide as half the image fills half of it only if the crop lies just so.
    widths = {int((mask[0] == mask[0, 0]).sum()) for mask in masks}
    assert max(widths) > 48


@pytest.fixture
def pairs(tmp_path: Path) -> DecodedPairs:
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    sizes = [(10, 20), (30, 7), (25, 25)]
    for number, hw in enumerate(sizes):
        image = random.integers(0, 255, (*hw, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "train" / "images" / f"{number}.png")
        mask = random.integers(0, 3, hw, np.uint8)
        Image.fromarray(mask).save(tmp_path / "train" / "masks" / f"{number}.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc")
    dataset = open_dataset(tmp_path)
    # The third does not fit any more.
    limited = DecodedPairs(dataset, dataset.pairs("train"), sizes, 1)
    limited._size = 3 + 4 * (10 * 20 + 30 * 7)
    return limited


def test_images_are_decoded_once_and_the_rest_each_time(
    pairs: DecodedPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    def counted(dataset: Dataset, pair: Pair) -> object:
        reads.append(pair.name)
        return read_pair(dataset, pair)

    monkeypatch.setattr("fcn_deploy.training.decoded.read_pair", counted)
    first = [[part.copy() for part in pairs.read(index)] for index in range(3)]
    again = [pairs.read(index) for index in range(3)]
    assert reads == ["0", "1", "2", "2"]
    for old, new in zip(first, again, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))


def test_another_process_decodes_for_itself(pairs: DecodedPairs) -> None:
    pairs.read(0)
    other = pickle.loads(pickle.dumps(pairs))
    assert all(np.array_equal(a, b) for a, b in zip(other.read(0), pairs.read(0), strict=True))


def test_an_example_follows_from_seed_epoch_and_index(pairs: DecodedPairs) -> None:
    def example(seed: int, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        found = Examples(pairs, FULL, seed)[draw]
        assert isinstance(found, tuple)
        return found

    image, mask = example(1, Draw(0, 1))
    same = example(1, Draw(0, 1))
    assert torch.equal(image, same[0])
    assert torch.equal(mask, same[1])
    for other in (example(2, Draw(0, 1)), example(1, Draw(1, 1))):
        assert not torch.equal(image, other[0])
