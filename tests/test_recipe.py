"""What an engine is built for: contradictions are refused before a builder starts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy.errors import ShapeError, UsageError
from fcn_deploy.recipe import FLAVOURS, Recipe, fit_shapes


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_defaults_can_be_built(flavour: str) -> None:
    for step in (8, 16, 32):
        Recipe(flavour=flavour).check(step)


def test_a_fixed_shape_is_in_order() -> None:
    Recipe(min_hw=(352, 480), opt_hw=(352, 480), max_hw=(352, 480), max_batch=1).check(32)


@pytest.mark.parametrize("axis", [0, 1])
def test_only_the_rising_order_of_shapes_is_taken(axis: int) -> None:
    sizes = (64, 128, 256)
    for order in permutations(sizes):
        shapes: list[tuple[int, int]] = [(size, 96) if axis == 0 else (96, size) for size in order]
        recipe = Recipe(min_hw=shapes[0], opt_hw=shapes[1], max_hw=shapes[2])
        if order == sizes:
            recipe.check(32)
        else:
            with pytest.raises(ShapeError, match="not in order"):
                recipe.check(32)


@pytest.mark.parametrize("name", ["min", "opt", "max"])
@pytest.mark.parametrize("hw", [(512, 500), (500, 512), (0, 512), (512, 0), (-32, 512)])
def test_every_shape_is_a_multiple_of_the_stride(name: str, hw: tuple[int, int]) -> None:
    changed: dict[str, Any] = {f"{name}_hw": hw}
    with pytest.raises(ShapeError, match=f"--{name}-shape {hw[0]}x{hw[1]}"):
        replace(Recipe(), **changed).check(32)


def test_the_stride_is_that_of_the_network() -> None:
    recipe = Recipe(min_hw=(16, 16), opt_hw=(48, 48), max_hw=(80, 80))
    recipe.check(16)
    with pytest.raises(ShapeError, match="multiple of 32"):
        recipe.check(32)


@pytest.mark.parametrize("max_batch", [0, -1])
def test_a_batch_holds_at_least_one_crop(max_batch: int) -> None:
    with pytest.raises(ShapeError, match="--max-batch"):
        Recipe(max_batch=max_batch).check(32)


def test_an_unknown_flavour_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'tensorrt-llm'") as caught:
        Recipe(flavour="tensorrt-llm").check(32)
    assert all(flavour in caught.value.remedy for flavour in FLAVOURS)


SHAPE = st.none() | st.tuples(*[st.integers(1, 64).map(lambda cells: 32 * cells)] * 2)


@given(SHAPE, SHAPE, SHAPE)
def test_defaults_give_way_to_the_shapes_that_were_named(
    low: tuple[int, int] | None, best: tuple[int, int] | None, high: tuple[int, int] | None
) -> None:
    shapes: dict[str, Any] = fit_shapes(low, best, high)
    for name, hw in (("min_hw", low), ("opt_hw", best), ("max_hw", high)):
        assert hw is None or shapes[name] == hw
    named = [hw for hw in (low, best, high) if hw is not None]
    if all(a <= b for one, two in pairwise(named) for a, b in zip(one, two, strict=True)):
        Recipe(**shapes).check(32)


def test_without_shapes_the_defaults_stay() -> None:
    unchanged: dict[str, Any] = fit_shapes(None, None, None)
    assert Recipe(**unchanged) == Recipe()
    assert fit_shapes(None, None, (256, 2048))["opt_hw"] == (256, 512)
