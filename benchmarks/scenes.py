"""Images drawn from noise, whose classes can be told by colour and texture; seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = 21
_BLOB = 384
"""Pixels from one random value of a class's field to the next: the size of its blobs."""

FloatArray = NDArray[np.float32]


def draw_scene(image_hw: tuple[int, int], seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image RGB uint8 (H, W, 3), and the class of each of its pixels, uint8 (H, W)."""
    random = np.random.default_rng(seed)
    labels = np.zeros(image_hw, np.uint8)
    best = np.full(image_hw, -np.inf, np.float32)
    for label in range(CLASSES):
        field = _smooth(random, image_hw, _BLOB) + 0.3 * _smooth(random, image_hw, _BLOB // 6)
        labels[field > best] = label
        np.maximum(best, field, out=best)
    # The same in every scene: what a class looks like is what there is to learn.
    looks = np.random.default_rng(2015)
    colors = looks.uniform(40, 215, (CLASSES, 3)).astype(np.float32)
    strengths = looks.uniform(0, 30, (3, CLASSES)).astype(np.float32)
    image = np.empty((*image_hw, 3), np.uint8)
    texture = sum(
        strength[labels] * _smooth(random, image_hw, size)
        for strength, size in zip(strengths, (1, 4, 16), strict=True)
    )
    for channel in range(3):
        light = 12 * _smooth(random, image_hw, 300)
        shade = colors[labels, channel] + texture + light
        image[:, :, channel] = np.clip(shade, 0, 255).astype(np.uint8)
    return image, labels


def _smooth(random: np.random.Generator, hw: tuple[int, int], size: int) -> FloatArray:
    """Noise of unit variance at its nodes, ``size`` pixels apart: float32 (H, W)."""
    coarse = random.standard_normal([-(-n // size) + 1 for n in hw]).astype(np.float32)
    if size == 1:
        return coarse[: hw[0], : hw[1]]
    fine = Image.fromarray(coarse).resize((hw[1], hw[0]), Image.Resampling.BICUBIC)
    return np.asarray(fine)


def saved_scene(folder: Path, image_hw: tuple[int, int]) -> Path:
    """The scene of that size as ``.npy``, drawn if it is not there yet."""
    path = folder / f"scene-{image_hw[0]}x{image_hw[1]}.npy"
    if not path.exists():
        np.save(path, draw_scene(image_hw, seed=image_hw[0])[0])
    return path
