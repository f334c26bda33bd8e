"""Folders of labelled images, in the plain and the Pascal VOC layout; no torch.

Plain::

    data/classes.toml                      (or classes.txt: one name a line)
    data/{train,val}/images/NAME.jpg
    data/{train,val}/masks/NAME.png        class ids (palette or gray), or RGB colours

Pascal VOC (``data`` itself, or anywhere up to two folders below it)::

    data/JPEGImages/NAME.jpg
    data/SegmentationClass/NAME.png        palette or RGB colours
    data/ImageSets/Segmentation/{train,val}.txt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_deploy.classes import lines, read_classes, voc_classes
from fcn_deploy.errors import DataError, InputError
from fcn_deploy.image import SUFFIXES, image_hw, read_image, read_mask
from fcn_deploy.spec import IGNORE, Color

VOC_BORDER: Color = (224, 224, 192)
_UNKNOWN = -1  # beyond what a label can be: all of 0 to 255 may be in use


@dataclass(frozen=True)
class Pair:
    """One labelled image: a name for messages and outputs, and its two files."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """A folder of labelled images, indexed but not read.

    Attributes:
        root: Where it lies.
        classes: Class names; the position is the label.
        palette: One RGB colour per class.
        ignore_value: The mask value of pixels that do not count; read as 255.
        layout: ``plain`` or ``voc``.
    """

    root: Path
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_value: int
    layout: str

    def pairs(self, split: str) -> list[Pair]:
        """Labelled images of a split, by name. A missing mask is found by :func:`check`.

        Raises:
            DataError: There is no such split, or it is empty.
        """
        found = _voc_pairs(self.root, split) if self.layout == "voc" else _plain(self.root, split)
        if not found:
            raise DataError(f"{self.root} has no images in its split {split!r}.")
        return found

    def labels(self, mask: Path) -> NDArray[np.uint8]:
        """Read a mask as labels (H, W) uint8, 255 where it does not count.

        Raises:
            DataError: Not readable, or a value or colour that is no class.
        """
        stored = read_mask(mask)
        if stored.ndim == 3:
            return self._from_colors(stored, mask)
        if self.ignore_value == IGNORE and stored.dtype == np.uint8:
            labels = stored.astype(np.uint8, copy=False)
        else:
            labels = np.where(stored == self.ignore_value, IGNORE, stored).astype(np.uint8)
        strange = np.unique(stored[(stored != self.ignore_value) & (stored >= len(self.classes))])
        if strange.size:
            listed = ", ".join(str(value) for value in strange[:5])
            raise DataError(f"{mask} has id {listed}, but there are {len(self.classes)} classes.")
        return labels

    def _from_colors(
        self, colors: NDArray[np.uint8] | NDArray[np.uint16], mask: Path
    ) -> NDArray[np.uint8]:
        if len(set(self.palette)) < len(self.palette):
            raise DataError(f"{mask} has colours, but two classes share a colour.")
        codes = (colors.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(2)
        codes = codes.astype(np.uint32)
        labels = np.full(codes.shape, _UNKNOWN, np.int16)
        labels[codes == _code((255, 255, 255))] = IGNORE
        labels[codes == _code(VOC_BORDER)] = IGNORE
        for label, color in enumerate(self.palette):
            labels[codes == _code(color)] = label
        if (labels == _UNKNOWN).any():
            code = int(codes[labels == _UNKNOWN][0])
            rgb = (code >> 16, code >> 8 & 255, code & 255)
            raise DataError(f"{mask} has the colour {rgb}, which is no class of the data set.")
        return labels.astype(np.uint8)


def open_dataset(root: Path) -> Dataset:
    """Recognise the layout of a folder of labelled images.

    Raises:
        DataError: Neither layout, or the classes are missing or contradict themselves.
    """
    if not root.is_dir():
        raise DataError(f"There is no folder {root}.", "Name a folder of labelled images.")
    voc = _voc_root(root)
    if voc is not None:
        classes, palette, ignore = read_classes(root) or read_classes(voc) or voc_classes()
        return Dataset(voc, classes, palette, ignore, "voc")
    if not any((root / split / "images").is_dir() for split in ("train", "val", "test")):
        raise DataError(
            f"{root} is no data set: neither train/images nor JPEGImages lies in it.",
            "Layout: {train,val}/{images,masks} and classes.toml, or Pascal VOC.",
        )
    described = read_classes(root)
    if described is None:
        raise DataError(
            f"{root} has no classes.toml or classes.txt.",
            "Put one class name a line into classes.txt, in the order of the ids in the masks.",
        )
    return Dataset(root, *described, "plain")


def check(dataset: Dataset, splits: list[str]) -> dict[str, list[tuple[Pair, tuple[int, int]]]]:
    """Read every mask, decode every image coarsely, and list all that is wrong in one pass.

    Returns:
        For each split its pairs with the height and width of their images.

    Raises:
        DataError: Names every bad pair: a file missing or damaged, size mismatch, id out of range.
    """
    sound: dict[str, list[tuple[Pair, tuple[int, int]]]] = {}
    problems: list[str] = []
    for split in splits:
        sound[split] = []
        for pair in dataset.pairs(split):
            try:
                sound[split].append((pair, _check_pair(dataset, pair)))
            except (DataError, InputError) as error:
                problems.append(error.problem)
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems)
        raise DataError(
            f"{len(problems)} of the labelled images in {dataset.root} cannot be used:\n{shown}",
            "Mend or remove them; nothing was left out silently.",
        )
    return sound


def _check_pair(dataset: Dataset, pair: Pair) -> tuple[int, int]:
    if not pair.image.is_file():
        raise DataError(f"{pair.image} is listed, but missing.")
    if not pair.mask.is_file():
        raise DataError(f"{pair.image} has no mask: {pair.mask} is missing.")
    hw = image_hw(pair.image, decode=True)
    mask_hw = dataset.labels(pair.mask).shape
    if mask_hw != hw:
        raise DataError(
            f"{pair.mask} is {mask_hw[1]}x{mask_hw[0]}, but its image is {hw[1]}x{hw[0]} (WxH)."
        )
    return hw


def read_pair(dataset: Dataset, pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 3) and labels (H, W), both uint8; the caller owns them.

    Raises:
        InputError: The image cannot be read.
        DataError: The mask cannot be read, or has another size.
    """
    image, labels = read_image(pair.image), dataset.labels(pair.mask)
    if image.shape[:2] != labels.shape:
        raise DataError(f"{pair.mask} and {pair.image} differ in size.")
    return image, labels


def _code(color: Color) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def _plain(root: Path, split: str) -> list[Pair]:
    images, masks = root / split / "images", root / split / "masks"
    if not images.is_dir():
        raise DataError(f"{root} has no split {split!r}: {images} is missing.")
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
    pairs = []
    for path in files:
        name = path.relative_to(images).with_suffix("")
        pairs.append(Pair(name.as_posix(), path, masks / name.with_name(name.name + ".png")))
    return pairs


def _voc_root(root: Path) -> Path | None:
    for depth in ("", "*/", "*/*/"):
        for folder in sorted(root.glob(f"{depth}JPEGImages")):
            if (folder.parent / "SegmentationClass").is_dir():
                return folder.parent
    return None


def _voc_pairs(root: Path, split: str) -> list[Pair]:
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        raise DataError(f"{root} has no split {split!r}: {listing} is missing.")
    return [
        Pair(name, root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png")
        for name in lines(listing)
    ]
