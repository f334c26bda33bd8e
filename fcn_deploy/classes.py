"""Which classes a data set has: names, colours, and the value that does not count."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_deploy.errors import DataError
from fcn_deploy.spec import IGNORE, Color, voc_palette

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# The names of the Pascal VOC development kit (Everingham et al.), in the order of their ids.
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)

Classes = tuple[tuple[str, ...], tuple[Color, ...], int]
"""Names, colours, and the mask value of pixels that do not count."""


def voc_classes() -> Classes:
    """The 20 object classes of Pascal VOC, and background as class 0."""
    return VOC_CLASSES, voc_palette(len(VOC_CLASSES)), IGNORE


def read_classes(root: Path) -> Classes | None:
    """Classes as ``classes.toml`` or ``classes.txt`` in a folder name them; ``None`` without one.

    Raises:
        DataError: The file cannot be read, or contradicts itself.
    """
    for path in (root / "classes.toml", root / "classes.txt"):
        if path.is_file():
            return read_class_file(path)
    return None


def read_class_file(path: Path) -> Classes:
    """Classes as a TOML file or, one name a line, any other text file names them.

    Raises:
        DataError: The file cannot be read, or contradicts itself.
    """
    try:
        if path.suffix == ".toml":
            return _from_toml(tomllib.loads(path.read_text(encoding="utf-8-sig")))
        names = tuple(lines(path))
        _check_names(names)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        form = "It holds one class name a line, in UTF-8."
        if path.suffix == ".toml":
            form = (
                'It holds [[classes]] tables with name = "..." and, if wanted, color = [R, G, B].'
            )
        raise DataError(f"{path} cannot be used: {error}.", form) from error
    return names, voc_palette(len(names)), IGNORE


def _from_toml(content: dict[str, Any]) -> Classes:
    tables = content["classes"]
    names = tuple(str(table["name"]) for table in tables)
    _check_names(names)
    palette = []
    for table, spare in zip(tables, voc_palette(len(names)), strict=True):
        red, green, blue = (int(channel) for channel in table.get("color", spare))
        if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
            raise ValueError(f"the colour of {table['name']} lies outside 0..255")
        palette.append((red, green, blue))
    ignore = int(content.get("ignore_index", IGNORE))
    if 0 <= ignore < len(names):
        raise ValueError(f"ignore_index {ignore} is also the class {names[ignore]}")
    return names, tuple(palette), ignore


def _check_names(names: tuple[str, ...]) -> None:
    if not 1 <= len(names) <= IGNORE:
        raise ValueError(f"{len(names)} classes, where 1 to {IGNORE} are possible")
    if len(set(names)) != len(names):
        raise ValueError("two classes have the same name")


def lines(path: Path) -> Iterator[str]:
    """Lines of a list file, without blank ones and comments."""
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line.strip()
