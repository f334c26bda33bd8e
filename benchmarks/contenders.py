"""Ways to segment a large image by overlapping crops, each as its own documentation shows it.

All place the same crops and average logits. Peers are fed the logits of one and the same plain
session; each is handed the image in the form that it wants, and that is not timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peak import Peak
from plain import OVERLAP, STRIDE, TILE, TINY, Labels, Model, Plain, crop_at, grid_of
from scenes import CLASSES

import fcn_deploy


def _as_it_is(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return image


@dataclass(frozen=True)
class Contender:
    """One way to segment.

    Attributes:
        warm: Loads what there is to load, on crops of 64x64 pixels.
        segment: Labels (H, W) of a prepared image; or ``None`` where nothing is merged.
        prepare: Brings an image RGB uint8 (H, W, 3) into the form that it wants.
    """

    warm: Callable[[], object]
    segment: Callable[[Any], Labels | None]
    prepare: Callable[[NDArray[np.uint8]], Any] = _as_it_is


def ours(model: Model, _: Plain | None = None) -> Contender:
    """`Segmenter.segment`."""
    segmenter = fcn_deploy.load(model.ours, provider="cpu")
    return Contender(
        # Two crops, so that the session that is for several ones is open.
        lambda: segmenter.segment(TINY, tile=(64, 64), overlap=0),
        lambda image: segmenter.segment(image, tile=(TILE, TILE), overlap=OVERLAP),
    )


def limit(_: Model, plain: Plain) -> Contender:
    """Every crop through the whole plain network, to labels; nothing is merged."""

    def segment(image: NDArray[np.uint8]) -> None:
        for top, left in grid_of(image).corners:
            plain.labels(crop_at(image, top, left))

    return Contender(lambda: plain.labels(TINY[None, :64]), segment)


def _on_logits(
    plain: Plain,
    segment: Callable[[Any], Labels],
    prepare: Callable[[NDArray[np.uint8]], Any] = _as_it_is,
) -> Contender:
    return Contender(lambda: plain.logits(TINY[None, :64]), segment, prepare)


def numpy_sum(_: Model, plain: Plain) -> Contender:
    """The sum of logits, the count of crops, and arg-max: what people write themselves."""

    def segment(image: NDArray[np.uint8]) -> Labels:
        total = np.zeros((CLASSES, *image.shape[:2]), np.float32)
        count = np.zeros(image.shape[:2], np.float32)
        for top, left in grid_of(image).corners:
            rows, columns = slice(top, top + TILE), slice(left, left + TILE)
            total[:, rows, columns] += plain.logits(crop_at(image, top, left))[0]
            count[rows, columns] += 1
        total /= count
        return np.asarray(total.argmax(0))

    return _on_logits(plain, segment)


def monai(_: Model, plain: Plain, *, buffered: bool = False) -> Contender:
    """MONAI's `sliding_window_inference`, one crop a call."""
    torch = importlib.import_module("torch")
    infer = importlib.import_module("monai.inferers").sliding_window_inference
    buffer = {"buffer_steps": 1, "buffer_dim": 0} if buffered else {}

    def prepare(image: NDArray[np.uint8]) -> Any:
        # Float, because the type of the image is the one that it adds logits up in.
        return torch.from_numpy(image).permute(2, 0, 1)[None].float()

    def predict(crops: Any) -> Any:
        raw = crops.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()
        return torch.from_numpy(plain.logits(raw))

    def segment(image: Any) -> Labels:
        size, share = (TILE, TILE), OVERLAP / TILE
        logits = infer(image, size, 1, predict, overlap=share, mode="constant", **buffer)
        return np.asarray(logits.argmax(1)[0])

    return _on_logits(plain, segment, prepare)


def monai_buffered(model: Model, plain: Plain) -> Contender:
    """The same, by slabs of one row of crops."""
    return monai(model, plain, buffered=True)


def patchly(_: Model, plain: Plain) -> Contender:
    """Patchly by chunks of twice the crop, with arg-max chunk by chunk: its lean form."""
    package = importlib.import_module("patchly")
    mode = importlib.import_module("patchly.sampler").SamplingMode.SAMPLE_EDGE

    def segment(image: NDArray[np.uint8]) -> Labels:
        hw = (image.shape[0], image.shape[1])
        sampler = package.GridSampler(
            image=image,
            spatial_size=hw,
            patch_size=(TILE, TILE),
            step_size=(STRIDE, STRIDE),
            chunk_size=(min(2 * TILE, hw[0]), min(2 * TILE, hw[1])),
            mode=mode,
        )
        labels = np.zeros(hw, np.uint8)
        merger = package.Aggregator(
            sampler=sampler, output=labels, softmax_dim=0, spatial_first=False
        )
        for crop, box in sampler:
            merger.append(plain.logits(np.ascontiguousarray(crop[None]))[0], box)
        return np.asarray(merger.get_output())

    return _on_logits(plain, segment)


def toolbelt(_: Model, plain: Plain) -> Contender:
    """pytorch-toolbelt's `ImageSlicer` and `TileMerger`."""
    torch = importlib.import_module("torch")
    tiles = importlib.import_module("pytorch_toolbelt.inference.tiles")

    def segment(image: NDArray[np.uint8]) -> Labels:
        slicer = tiles.ImageSlicer(image.shape, TILE, STRIDE)
        merger = tiles.TileMerger(slicer.target_shape, CLASSES, slicer.weight)
        for crop, corner in slicer.iter_split(image):
            logits = plain.logits(np.ascontiguousarray(crop[None]))
            merger.integrate_batch(torch.from_numpy(logits), [corner])
        labels = np.asarray(merger.merge_().argmax(0))
        return np.asarray(slicer.crop_to_orignal_size(labels))

    return _on_logits(plain, segment)


OURS, LIMIT, MONAI = "fcn-deploy", "the limit", "MONAI"
CONTENDERS: dict[str, Callable[[Model, Plain], Contender]] = {
    LIMIT: limit,
    OURS: ours,
    "NumPy": numpy_sum,
    MONAI: monai,
    "MONAI buffered": monai_buffered,
    "patchly": patchly,
    "pytorch-toolbelt": toolbelt,
}


def open_contenders(model: Model) -> tuple[dict[str, Contender], dict[str, str]]:
    """All that are installed, warm, by name; and why the others are not there."""
    plain = Plain(model.plain)
    there: dict[str, Contender] = {}
    missing: dict[str, str] = {}
    for name, open_contender in CONTENDERS.items():
        try:
            there[name] = open_contender(model, plain)
        except ImportError as error:
            missing[name] = str(error)
    for contender in there.values():
        contender.warm()
    return there, missing


def extra_memory(model: Model, name: str, scene: Path) -> int:
    """Peak of resident bytes beyond the loaded and warm session and the image.

    To be called in a process of its own.
    """
    contender = CONTENDERS[name](model, Plain(model.plain))
    contender.warm()
    image = contender.prepare(np.load(scene))
    with Peak() as peak:
        contender.segment(image)
    return peak.extra
