"""The name of a network: it always fits, and is found again among the bytes of a plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fcn_deploy.plan_name import PlanName, find_name
from fcn_deploy.spec import ModelSpec, voc_palette

LIMIT = 4095
DIGEST = "0123456789abcdef" * 4


def spec_of(names: tuple[str, ...], shift: int = 0) -> ModelSpec:
    palette = tuple(((r + shift) % 256, g, b) for r, g, b in voc_palette(len(names)))
    return ModelSpec(names, palette, head="fcn8s", score_stride=8, training={"epochs": 28})


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    count = draw(st.integers(1, 255))
    # A few drawn parts, or hundreds of examples of 255 texts would take minutes.
    parts = draw(st.lists(st.text(max_size=40), min_size=1, max_size=4))
    if draw(st.booleans()):
        parts = [draw(st.sampled_from(["Straße", "道路", "🚲", '{"fcn-deploy":2,', '"\\', "\n\0"]))]
    names = tuple(f"{label}:{parts[label % len(parts)]}" for label in range(count))
    means = st.tuples(*[st.floats(-3, 3)] * 3)
    spec = spec_of(names, draw(st.integers(0, 255)))
    return replace(spec, mean=draw(means), std=draw(st.tuples(*[st.floats(1e-9, 9)] * 3)))


@settings(max_examples=100, deadline=None)
@given(specs(), st.sampled_from(["whole", "trunk", "head"]), st.sampled_from(["fp32", "fp16"]))
def test_a_name_fits_and_is_found_again(spec: ModelSpec, role: str, precision: str) -> None:
    name = PlanName(role, precision, DIGEST, spec)
    text = name.to_text()
    assert text.isascii()
    assert len(text) <= LIMIT
    found = find_name(text.encode())
    assert found is not None
    assert (found.role, found.precision, found.source_sha256) == (role, precision, DIGEST)
    if found.spec is not None:
        kept = replace(spec, training={}, palette=found.spec.palette)
        assert found.spec == kept
        assert found.spec.palette in (spec.palette, voc_palette(spec.num_classes))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=6000), st.binary(max_size=6000))
@example(b'{"fcn-deploy":1,', b'{"fcn-deploy":2,')
@example(b"", b'"}}]]')
def test_a_name_is_found_in_the_middle_of_any_bytes(before: bytes, after: bytes) -> None:
    name = PlanName("head", "fp16", DIGEST, replace(spec_of(("sky", "Straße")), training={}))
    assert find_name(before + name.to_text().encode() + after) == name


def test_what_does_not_fit_is_left_out_in_the_order_of_its_use() -> None:
    def found(names: list[str]) -> PlanName:
        result = find_name(
            PlanName("whole", "fp32", DIGEST, spec_of(tuple(names), 9)).to_text().encode()
        )
        assert result is not None
        return result

    small = found([f"class{label}" for label in range(21)])
    assert small.spec is not None
    assert small.spec.palette == spec_of(small.spec.classes, 9).palette
    assert small.spec.training == {}  # for people, who have the ONNX file
    large = found([f"class{label}" for label in range(255)])
    assert large.spec is not None
    assert large.spec.palette == voc_palette(255)
    huge = found([f"a class of a long name, number {label}" for label in range(255)])
    assert huge.spec is None


def test_150_classes_of_common_names_keep_them() -> None:
    names = tuple(f"traffic light{label}" for label in range(150))
    found = find_name(PlanName("whole", "fp16", DIGEST, spec_of(names)).to_text().encode())
    assert found is not None
    assert found.spec is not None
    assert found.spec.classes == names


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"[" * 4000)
@example(b'"spec":' + b"[" * 4000)
@example(b'"role":1,"precision":2,"source_sha256":3,"spec":[]}')
@example(b'"role":1,"precision":2,"source_sha256":3,"spec":{"format":1,"classes":7}}')
@example(b'"role":1,"precision":2,"source_sha256":3,"spec":7}')
def test_any_bytes_after_the_beginning_are_a_name_or_none(content: bytes) -> None:
    found = find_name(b'{"fcn-deploy":2,' + content)
    assert found is None or isinstance(found, PlanName)


def test_values_that_no_description_has_are_no_name() -> None:
    right = json.loads(PlanName("whole", "fp32", DIGEST, spec_of(("sky", "road"))).to_text())
    for field, value in (
        ("palette", [[float("inf"), 0, 0], [0, 0, 0]]),
        ("std", [0, 1, 1]),
        ("classes", ["sky", "sky"]),
        ("head", 7),
    ):
        wrong = {**right, "spec": {**right["spec"], field: value}}
        assert find_name(json.dumps(wrong, separators=(",", ":")).encode()) is None


@pytest.mark.parametrize("content", [b"", b"vtrt" + bytes(500), b'{"fcn-deploy":2'])
def test_without_a_name_there_is_none(content: bytes) -> None:
    assert find_name(content) is None
