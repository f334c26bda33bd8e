"""What travels inside every model file: round trips exactly, and nothing foreign gets in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.errors import ModelError
from fcn_deploy.spec import IGNORE, ModelSpec, voc_palette

POSITIVE = st.floats(1e-6, 1e6)
CHANNEL = st.integers(0, 255)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    classes = draw(st.lists(st.text(min_size=1), min_size=1, max_size=12, unique=True))
    count = len(classes)
    color = st.tuples(CHANNEL, CHANNEL, CHANNEL)
    stride = draw(st.sampled_from([8, 16, 32]))
    return ModelSpec(
        classes=tuple(classes),
        palette=tuple(draw(st.lists(color, min_size=count, max_size=count))),
        head=draw(st.sampled_from(["fcn32s", "fcn16s", "fcn8s"])),
        backbone=draw(st.sampled_from(["resnet18", "resnet34", "resnet50"])),
        upsampling_bias=draw(st.booleans()),
        output_stride=stride * draw(st.integers(1, 4)),
        score_stride=stride,
        mean=draw(st.tuples(*[st.floats(-1e3, 1e3)] * 3)),
        std=draw(st.tuples(POSITIVE, POSITIVE, POSITIVE)),
        training=draw(st.dictionaries(st.text(), JSON, max_size=3)),
    )


def written(**changes: Any) -> str:
    """A sound description with some fields changed, or left out where the value is ``...``."""
    spec = ModelSpec(("road", "sky"), voc_palette(2))
    fields = {**json.loads(spec.to_json()), **changes}
    return json.dumps({key: value for key, value in fields.items() if value is not ...})


@given(specs())
@settings(max_examples=80, deadline=None)
def test_a_spec_reads_back_equal_also_from_reformatted_json(spec: ModelSpec) -> None:
    text = spec.to_json()
    assert ModelSpec.from_json(text) == spec
    reformatted = json.dumps(json.loads(text), indent=2, sort_keys=True)
    assert ModelSpec.from_json(reformatted) == spec


def test_the_json_is_one_line_of_utf8() -> None:
    text = ModelSpec(("Fußgänger\n", "道路"), voc_palette(2)).to_json()
    assert "\n" not in text
    assert "道路" in text
    assert ModelSpec.from_json(text.encode().decode()).classes == ("Fußgänger\n", "道路")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"text"', "{}"])
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(ModelError):
        ModelSpec.from_json(text)


def test_a_newer_format_is_refused_with_the_way_out() -> None:
    with pytest.raises(ModelError, match="format 2") as caught:
        ModelSpec.from_json(written(format=2))
    assert "pip install -U fcn-deploy" in caught.value.remedy


@pytest.mark.parametrize("name", ["format", "classes", "palette", "mean", "std"])
def test_a_missing_field_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        ModelSpec.from_json(written(**{name: ...}))


@pytest.mark.parametrize(
    "name", ["head", "backbone", "upsampling_bias", "output_stride", "score_stride"]
)
def test_a_missing_field_is_not_guessed(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        ModelSpec.from_json(written(**{name: ...}))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": [], "palette": []}, "0 classes"),
        ({"classes": [str(n) for n in range(256)], "palette": [[0, 0, 0]] * 256}, "256 classes"),
        ({"classes": ["sky", "sky"]}, "same name"),
        ({"palette": [[0, 0, 0]]}, "1 colours for 2"),
        ({"palette": [[0, 0, 0], [0, 0, 256]]}, "0..255"),
        ({"palette": [[0, 0, 0], [0, -1, 0]]}, "0..255"),
        ({"palette": [[0, 0, 0], [0, 0]]}, "read"),
        ({"palette": [[0, 0, 0], "red"]}, "read"),
        ({"mean": [0.5, 0.5]}, "read"),
        ({"std": [0.2, 0.0, 0.2]}, "standard deviation"),
        ({"score_stride": 0}, "stride"),
        ({"score_stride": 24}, "24"),
        ({"ignore": 255}, "ignore"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        ModelSpec.from_json(written(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"head": 5},
        {"upsampling_bias": "no"},
        {"output_stride": 0},
        {"output_stride": -32},
        {"std": [float("nan")] * 3},
        {"mean": [float("inf")] * 3},
    ],
)
def test_values_that_no_network_can_have_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        ModelSpec.from_json(written(**changes))


def test_the_constructor_refuses_too() -> None:
    with pytest.raises(ModelError, match="contradicts itself"):
        ModelSpec(("a",), voc_palette(2))


def test_as_many_classes_as_labels_fit() -> None:
    spec = ModelSpec(tuple(f"class {n}" for n in range(IGNORE)), voc_palette(IGNORE))
    assert spec.num_classes == 255
    assert ModelSpec.from_json(spec.to_json()) == spec


def test_voc_colors_are_those_of_the_development_kit() -> None:
    palette = voc_palette(255)
    assert palette[:9] == (
        *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)),
        *((128, 0, 128), (0, 128, 128), (128, 128, 128), (64, 0, 0)),
    )
    assert palette[15] == (192, 128, 128)  # person
    assert palette[20] == (0, 64, 128)  # tvmonitor
    assert voc_palette(256)[255] == (224, 224, 192)  # the border between objects
    assert len(set(palette)) == 255
    assert voc_palette(0) == ()


def test_the_description_of_a_custom_network_needs_little() -> None:
    spec = ModelSpec.custom(["road", "sky"], output_stride=14)
    assert (spec.classes, spec.palette) == (("road", "sky"), voc_palette(2))
    assert (spec.head, spec.output_stride, spec.score_stride) == ("custom", 14, 1)
    assert ModelSpec.from_json(spec.to_json()) == spec
    colored = ModelSpec.custom(["road"], palette=[(1, 2, 3)], mean=(0, 0, 0), std=(1, 1, 1))
    assert (colored.palette, colored.std) == (((1, 2, 3),), (1, 1, 1))
    with pytest.raises(ModelError, match="1 colours for 2 classes"):
        ModelSpec.custom(["road", "sky"], palette=[(1, 2, 3)])
