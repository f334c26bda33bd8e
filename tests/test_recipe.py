"""What an engine is built for: contradictions are refused before a builder starts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy.errors import ModelError, ShapeError, UsageError
from fcn_deploy.recipe import FLAVOURS, EngineOptions, Shapes, fit_shapes
from fcn_deploy.recipe_file import read_recipe


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_defaults_can_be_built(flavour: str) -> None:
    for step in (8, 16, 32):
        EngineOptions(flavour=flavour).check(step)


def test_a_fixed_shape_is_in_order() -> None:
    Shapes(min_hw=(352, 480), opt_hw=(352, 480), max_hw=(352, 480), max_batch=1).check(32)


@pytest.mark.parametrize("axis", [0, 1])
def test_only_the_rising_order_of_shapes_is_taken(axis: int) -> None:
    sizes = (64, 128, 256)
    for order in permutations(sizes):
        low, best, high = ((size, 96) if axis == 0 else (96, size) for size in order)
        shapes = Shapes(min_hw=low, opt_hw=best, max_hw=high)
        if order == sizes:
            shapes.check(32)
        else:
            with pytest.raises(ShapeError, match="not in order"):
                shapes.check(32)


@pytest.mark.parametrize("name", ["min", "opt", "max"])
@pytest.mark.parametrize("hw", [(512, 500), (500, 512), (0, 512), (512, 0), (-32, 512)])
def test_every_shape_is_a_multiple_of_the_stride(name: str, hw: tuple[int, int]) -> None:
    changed: dict[str, Any] = {f"{name}_hw": hw}
    with pytest.raises(ShapeError, match=f"--{name}-shape {hw[0]}x{hw[1]}"):
        replace(Shapes(), **changed).check(32)


def test_the_stride_is_that_of_the_network() -> None:
    shapes = Shapes(min_hw=(16, 16), opt_hw=(48, 48), max_hw=(80, 80))
    shapes.check(16)
    with pytest.raises(ShapeError, match="multiple of 32"):
        shapes.check(32)


@pytest.mark.parametrize("max_batch", [0, -1])
def test_a_batch_holds_at_least_one_crop(max_batch: int) -> None:
    with pytest.raises(ShapeError, match="--max-batch"):
        Shapes(max_batch=max_batch).check(32)


def test_an_unknown_flavour_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'tensorrt-llm'") as caught:
        EngineOptions(flavour="tensorrt-llm").check(32)
    assert all(flavour in caught.value.remedy for flavour in FLAVOURS)


SHAPE = st.none() | st.tuples(*[st.integers(1, 64).map(lambda cells: 32 * cells)] * 2)


@given(SHAPE, SHAPE, SHAPE)
def test_defaults_give_way_to_the_shapes_that_were_named(
    low: tuple[int, int] | None, best: tuple[int, int] | None, high: tuple[int, int] | None
) -> None:
    given: dict[str, Any] = fit_shapes(low, best, high)
    for name, hw in (("min_hw", low), ("opt_hw", best), ("max_hw", high)):
        assert hw is None or given[name] == hw
    named = [hw for hw in (low, best, high) if hw is not None]
    if all(a <= b for one, two in pairwise(named) for a, b in zip(one, two, strict=True)):
        Shapes(**given).check(32)


def test_without_shapes_the_defaults_stay() -> None:
    unchanged: dict[str, Any] = fit_shapes(None, None, None)
    assert Shapes(**unchanged) == Shapes()
    assert fit_shapes(None, None, (256, 2048))["opt_hw"] == (256, 512)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profiles": ()}, "needs an optimization profile"),
        ({"workspace_mib": 0}, "0 MiB"),
        ({"optimization_level": 6}, "0 to 5, not 6"),
        ({"dla_core": -1}, "DLA core -1"),
        ({"hardware_compatibility": "any"}, "'any'"),
        ({"profiles": (Shapes(), Shapes(max_hw=(40, 40)))}, "40x40"),
    ],
)
def test_options_that_cannot_be_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        replace(EngineOptions(), **changes).check(32)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "device is the name"),
        ("device = 3", "device is the name"),
        ("device = ", "not TOML"),
        ('device = "x"\nspeed = 1', "no 'speed'"),
        ('device = "x"\nengine = 3', "engine is a table"),
        ('device = "x"\n[engine]\nprecison = "fp16"', "no 'precison'"),
        ('device = "x"\n[engine]\nfp16 = true', "no 'fp16'"),
        ('device = "x"\n[engine]\nprecision = "int4"', "fp32, fp16"),
        ('device = "x"\n[engine]\nrefit = 1', "refit is true or false"),
        ('device = "x"\n[engine]\nworkspace_mib = "1"', "workspace_mib is a number"),
        ('device = "x"\n[engine]\nworkspace_mib = true', "workspace_mib is a number"),
        ('device = "x"\n[engine]\ntargets = "sm86"', "list of texts"),
        ('device = "x"\n[engine]\nprofiles = []', "list of tables"),
        ('device = "x"\n[[engine.profiles]]\nmin = 32', 'such as "512x512"'),
        ('device = "x"\n[[engine.profiles]]\nmin = "32"', 'such as "512x512"'),
        ('device = "x"\n[[engine.profiles]]\nmax_batch = "2"', "max_batch is a number"),
        ('device = "x"\n[[engine.profiles]]\nbest = "32x32"', "no 'best'"),
        ('device = "x"\n[segment]\ntile = 512', "tile is a text"),
    ],
)
def test_a_recipe_that_is_wrong_says_where(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=words) as caught:
        read_recipe(path)
    assert "mine.toml" in caught.value.problem
    assert caught.value.exit_code == 4


def test_a_recipe_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"export/recipes"):
        read_recipe(tmp_path / "gone.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not TOML"):
        read_recipe(tmp_path / "bytes.toml")


def test_a_recipe_gives_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        """
device = "a drone"
[engine]
precision = "fp16"
flavour = "rtx"
targets = ["sm86"]
workspace_mib = 300
[[engine.profiles]]
max = "256x2048"
[[engine.profiles]]
min = "64x64"
opt = "64x96"
max = "96x96"
max_batch = 9
[segment]
tile = "64x96"
overlap = 32
""",
        encoding="utf-8",
    )
    recipe = read_recipe(path)
    assert recipe.engine == EngineOptions(
        fp16=True,
        flavour="rtx",
        targets=("sm86",),
        workspace_mib=300,
        profiles=(
            Shapes((32, 32), (256, 512), (256, 2048)),
            Shapes((64, 64), (64, 96), (96, 96), 9),
        ),
    )
    assert (recipe.segment.tile, recipe.segment.overlap, recipe.segment.backend) == (
        "64x96",
        32,
        None,
    )
