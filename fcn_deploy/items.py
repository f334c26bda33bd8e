"""Images to segment: which are meant, in what order, and under what name."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.errors import DataError
from fcn_deploy.image import SUFFIXES
from fcn_deploy.outputs import KINDS


@dataclass(frozen=True)
class Item:
    """One image to segment, and its name below the output folder, without a suffix."""

    source: Path
    name: str


def list_items(sources: Iterable[str | Path], out: Path | None = None) -> list[Item]:
    """Images meant by files, folders (searched recursively) and glob patterns, each once.

    An image keeps its path below the folder it was found through; two images that would get the
    same output name, such as ``a.jpg`` and ``a.png``, keep their suffixes in it.

    Args:
        sources: Files, folders and patterns.
        out: Output folder; what an earlier run has written there is not an input.

    Raises:
        DataError: A source does not exist, or there is no image at all.
    """
    found: dict[Path, tuple[Path, Path]] = {}  # by its one true folder: source, relative name
    for source in sources:
        for path, relative in _expand(str(source)):
            if not (out and _written_by_us(path, out)):
                found.setdefault(path.parent.resolve() / path.name, (path, relative))
    if not found:
        raise DataError(
            f"There is no image in {', '.join(str(source) for source in sources)}.",
            f"Images are files that end in {', '.join(sorted(SUFFIXES))}.",
        )
    stems: dict[str, int] = {}
    for _, relative in found.values():
        stem = relative.with_suffix("").as_posix()
        stems[stem] = stems.get(stem, 0) + 1
    return _unique(
        Item(path, relative.as_posix() if stems[stem] > 1 else stem)
        for path, relative in found.values()
        for stem in (relative.with_suffix("").as_posix(),)
    )


def _written_by_us(path: Path, out: Path) -> bool:
    return any(path.parent.resolve().is_relative_to((out / kind).resolve()) for kind in KINDS)


def _unique(items: Iterable[Item]) -> list[Item]:
    """Number what still collides: the same name below two source folders."""
    taken: set[str] = set()
    unique = []
    for item in items:
        name, number = item.name, 2
        while name in taken:
            name, number = f"{item.name}-{number}", number + 1
        taken.add(name)
        unique.append(Item(item.source, name))
    return unique


def _expand(source: str) -> Iterable[tuple[Path, Path]]:
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and _is_input(p))
        return [(file, file.relative_to(path)) for file in files]
    if path.exists():
        return [(path, Path(path.name))]
    # Below the part of the pattern that has no wildcard, so that folders are kept.
    fixed = _fixed_parts(path)
    root = Path(*fixed)
    rest = [*path.parts[len(fixed) :], *(["*"] if path.name == "**" else [])]
    # pathlib's ** does not follow links to folders, the one of the module glob goes round in loops.
    matches = sorted(root.glob(str(Path(*rest))))
    if not matches:
        raise DataError(f"There is no file, folder or match for {source}.")
    return [
        (match, match.relative_to(root))
        for match in matches
        if match.suffix.lower() in SUFFIXES and _is_input(match)
    ]


def _is_input(path: Path) -> bool:
    # A dangling link is one that fails: nothing is dropped without a word.
    return path.is_file() or (path.is_symlink() and not path.exists())


def _fixed_parts(pattern: Path) -> list[str]:
    parts = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        parts.append(part)
    return parts
