"""Recipes as TOML files: read, and refused where they say what nothing can be made of."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fcn_deploy.errors import ModelError
from fcn_deploy.recipe import (
    PRECISIONS,
    EngineOptions,
    Recipe,
    SegmentOptions,
    Shapes,
    fit_shapes,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_recipe(path: Path) -> Recipe:
    """Read a TOML file: ``device``, ``notes``, and the tables ``engine`` and ``segment``.

    Keys are those of the dataclasses, with ``precision`` for ``fp16``, and
    ``[[engine.profiles]]`` of ``min``, ``opt`` and ``max`` (such as ``"512x512"``) and
    ``max_batch``.

    Raises:
        ModelError: No such file, not TOML, an unknown key, or a value of the wrong kind; names it.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(
            f"The recipe {path} cannot be read: {error.strerror}.",
            "Recipes for common devices lie in export/recipes/.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"The recipe {path} is not TOML: {error}.") from error
    try:
        return _recipe(content)
    except ValueError as error:
        raise ModelError(f"The recipe {path}: {error}.") from error


def _recipe(content: dict[str, Any]) -> Recipe:
    _require_known(content, ("device", "notes", "engine", "segment"), "the recipe")
    engine = None
    if "engine" in content:
        table = dict(_table(content["engine"], "engine"))
        precision = table.pop("precision", "fp32")
        if precision not in PRECISIONS:
            raise ValueError(
                f"engine.precision is one of {', '.join(PRECISIONS)}, not {precision!r}"
            )
        profiles = table.pop("profiles", None)
        engine = replace(_fill(EngineOptions(), table, "engine"), fp16=precision == "fp16")
        if profiles is not None:
            if not isinstance(profiles, list) or not profiles:
                raise ValueError("engine.profiles is a list of tables, [[engine.profiles]]")
            engine = replace(engine, profiles=tuple(_shapes(entry) for entry in profiles))
    segment = _fill(SegmentOptions(), _table(content.get("segment", {}), "segment"), "segment")
    names = {name: content.get(name, "") for name in ("device", "notes")}
    if not all(isinstance(value, str) for value in names.values()) or not names["device"]:
        raise ValueError("device is the name of the target, notes a text")
    return Recipe(**names, engine=engine, segment=segment)


def _shapes(entry: object) -> Shapes:
    table = _table(entry, "engine.profiles")
    _require_known(table, ("min", "opt", "max", "max_batch"), "engine.profiles")
    sizes = {name: _hw(table[name], name) for name in ("min", "opt", "max") if name in table}
    batch = table.get("max_batch", Shapes.max_batch)
    if not isinstance(batch, int) or isinstance(batch, bool):
        raise ValueError(f"engine.profiles.max_batch is a number, not {batch!r}")
    given = fit_shapes(sizes.get("min"), sizes.get("opt"), sizes.get("max"))
    return Shapes(**given, max_batch=batch)


def _hw(value: object, name: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f'engine.profiles.{name} is a size such as "512x512", not {value!r}')
    return int(match[1]), int(match[2])


_KINDS: dict[str, tuple[str, type]] = {
    "str": ("a text", str),
    "str | None": ("a text", str),
    "bool": ("true or false", bool),
    "int | None": ("a number", int),
}


def _fill(defaults: Any, table: Mapping[str, Any], where: str) -> Any:
    """A copy of a dataclass with the values of a table; each must be of its field's kind."""
    kinds = {field.name: str(field.type) for field in fields(defaults) if field.name != "fp16"}
    kinds.pop("profiles", None)
    _require_known(table, tuple(kinds), where)
    given: dict[str, Any] = {}
    for name, value in table.items():
        if kinds[name].startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{where}.{name} is a list of texts, not {value!r}")
            given[name] = tuple(value)
            continue
        words, kind = _KINDS[kinds[name]]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{where}.{name} is {words}, not {value!r}")
        given[name] = value
    return replace(defaults, **given)


def _table(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is a table, not {value!r}")
    return value


def _require_known(table: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    if unknown := sorted(set(table) - set(known)):
        raise ValueError(f"{where} has no {unknown[0]!r}; it has {', '.join(known)}")
