"""The recipes that we ship, their README and the Dockerfiles: what shows without a device."""

from __future__ import annotations

import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from fcn_deploy.cli.console import parse_tiling
from fcn_deploy.recipe import EngineOptions, SegmentOptions, Shapes
from fcn_deploy.recipe_file import read_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
EXPORT = ROOT / "export"
RECIPES = sorted((EXPORT / "recipes").glob("*.toml"))
README = (EXPORT / "README.md").read_text(encoding="utf-8")
DOCKERFILES = sorted((EXPORT / "docker").glob("Dockerfile.*"))

RTX_TARGETS = {"sm75", "sm80", "sm86", "sm89", "sm120", "sm121"}


def test_every_device_has_one() -> None:
    assert {path.stem for path in RECIPES} == {
        "orin-nano",
        "orin-nx",
        "agx-orin",
        "thor",
        "t4",
        "l4",
        "rtx-30",
        "rtx-40",
        "rtx-50",
        "cpu",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_built_and_run(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.device
    assert recipe.notes.strip()
    segment = recipe.segment
    parse_tiling(segment.tile or "auto", segment.overlap or 64, None, "mean", 512)
    if recipe.engine is None:
        assert (path.stem, segment.backend) == ("cpu", "ort")
        return
    assert segment.backend == "trt"
    assert recipe.engine.fp16
    for step in (8, 16, 32):
        recipe.engine.check(step)
    # Kernels of TensorRT-RTX are made for named cards, those of TensorRT for the one that is there.
    assert bool(recipe.engine.targets) == (recipe.engine.flavour == "rtx")
    assert set(recipe.engine.targets) <= RTX_TARGETS
    assert len(recipe.engine.profiles) == 2
    tiles, frames = recipe.engine.profiles
    assert tiles.max_hw == tiles.opt_hw
    assert frames.max_batch == 1
    assert all(a >= b for a, b in zip(frames.max_hw, tiles.max_hw, strict=True))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_readme_says_what_a_recipe_holds(path: Path) -> None:
    (row,) = re.findall(rf"^\|.*\(recipes/{path.stem}\.toml\).*$", README, re.MULTILINE)
    engine = read_recipe(path).engine
    said = row.split("|")[3].strip()
    assert said == (f"{engine.flavour}, fp16" if engine else "the ONNX file itself")
    assert ("any x86-64" in row) == (engine is not None and engine.flavour == "rtx")


def test_the_readme_lists_no_other() -> None:
    assert set(re.findall(r"\(recipes/([\w-]+)\.toml\)", README)) == {p.stem for p in RECIPES}


def test_the_example_in_the_readme_is_of_all_keys_and_the_defaults(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "own.toml"
    path.write_text(example, encoding="utf-8")
    recipe = read_recipe(path)
    assert recipe.engine == EngineOptions()
    assert recipe.segment == SegmentOptions()
    uncommented = re.sub(r"^# (\w+ = )", r"\1", example, flags=re.MULTILINE)
    tables = tomllib.loads(uncommented)
    named = {field.name for field in fields(EngineOptions)} - {"fp16"} | {"precision"}
    assert set(tables["engine"]) == named
    assert set(tables["segment"]) == {field.name for field in fields(SegmentOptions)}
    assert set(tables["engine"]["profiles"][0]) == {"min", "opt", "max", "max_batch"}
    path.write_text(uncommented, encoding="utf-8")
    read_recipe(path)
    assert recipe.engine.profiles == (Shapes(),)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_names_is_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignored if line.startswith("!")}
    for sources in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert source in kept
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for version in re.findall(r"FROM python:(3\.\d+)", text):
        assert (3, 10) <= tuple(map(int, version.split("."))) <= (3, 13)
    assert "USER fcn" in text
    assert 'ENTRYPOINT ["fcn-deploy"]' in text
    assert "Never built by us" in text
    assert path.name in README
