"""Plans without a passport: what their own bytes, or the ONNX file beside them, tell."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_plan import MAGIC, fake_plan
from fcn_deploy.engine import build_engine
from fcn_deploy.engine_files import passport_path
from fcn_deploy.errors import EngineError, ModelError
from fcn_deploy.onnx_file import to_half
from fcn_deploy.passport import WHOLE, Part
from fcn_deploy.plan_name import PlanName
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import ModelSpec
from fcn_deploy.trusted_plan import trusted_engine
from small_models import small_model, spec_of

SPEC = spec_of(5, 8)


def plan_of(spec: ModelSpec | None, *, named: bool = True, flavour: str = "tensorrt") -> bytes:
    name = PlanName("whole", "fp16", "1" * 64, spec).to_text() if named else "main_graph"
    # The fake keeps names in a JSON, where quotes are escaped; a real plan holds them as they are.
    return fake_plan(b"an engine " + name.encode(), [], magic=MAGIC[flavour])


@pytest.mark.parametrize("flavour", ["tensorrt", "rtx"])
def test_a_name_inside_is_enough(tmp_path: Path, flavour: str) -> None:
    path, content = tmp_path / "theirs.plan", plan_of(SPEC, flavour=flavour)
    path.write_bytes(content)
    passport, contents = trusted_engine(path)
    assert contents == {WHOLE: content}
    assert passport.parts == {WHOLE: Part("theirs.plan", hashlib.sha256(content).hexdigest())}
    assert passport.spec == SPEC
    assert (passport.flavour, passport.precision.computes) == (flavour, "fp16")
    # Nobody knows, so that nothing is compared: the library itself will say.
    assert (passport.version, passport.targets) == ("", ("portable",))
    assert passport.halo is None


def test_a_real_plan_whose_passport_was_lost_is_known_by_its_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    source, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    source.write_bytes(small_model(classes=5).SerializeToString())
    shapes = Shapes(opt_hw=(64, 64), max_hw=(64, 64), max_batch=1)
    built = build_engine(source, plan, EngineOptions(flavour="rtx", profiles=(shapes,)), crops=None)
    passport_path(plan).unlink()
    source.unlink()
    passport, contents = trusted_engine(plan)
    assert passport.spec == built.spec
    assert passport.precision.computes == "fp32"
    assert contents[WHOLE] == plan.read_bytes()


@pytest.mark.parametrize("name", ["theirs.fp16.onnx", "theirs.onnx"])
@pytest.mark.parametrize("named", [True, False], ids=["classes did not fit", "no name"])
def test_or_the_onnx_file_beside_it(tmp_path: Path, name: str, named: bool) -> None:
    path = tmp_path / "theirs.fp16.plan"
    path.write_bytes(plan_of(None, named=named))
    model = small_model(classes=5)
    half = name == "theirs.fp16.onnx"
    (tmp_path / name).write_bytes((to_half(model) if half else model).SerializeToString())
    passport, _ = trusted_engine(path)
    assert passport.spec == SPEC
    assert passport.precision.computes == ("fp16" if half else "fp32")


@pytest.mark.parametrize("named", [True, False], ids=["classes did not fit", "no name"])
def test_with_neither_it_is_refused_with_what_is_missing(tmp_path: Path, named: bool) -> None:
    path = tmp_path / "theirs.fp16.plan"
    path.write_bytes(plan_of(None, named=named))
    (tmp_path / "other.onnx").write_bytes(small_model().SerializeToString())
    with pytest.raises(ModelError, match="Nothing says which classes") as caught:
        trusted_engine(path)
    assert "no theirs.onnx beside it" in caught.value.problem
    assert "Put the ONNX file" in caught.value.remedy
    assert caught.value.exit_code == 4


def test_an_onnx_file_beside_it_is_not_believed_either(tmp_path: Path) -> None:
    path = tmp_path / "theirs.plan"
    path.write_bytes(plan_of(SPEC, named=False))
    (tmp_path / "theirs.onnx").write_bytes(b"no ONNX file")
    with pytest.raises(ModelError, match=r"theirs\.onnx"):
        trusted_engine(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(99), b"x" + plan_of(SPEC)])
def test_trust_makes_no_plan_of_what_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "theirs.plan"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"is not a TensorRT plan|something written before it"):
        trusted_engine(path)


def test_a_damaged_plan_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "theirs.plan"
    path.write_bytes(plan_of(SPEC, flavour="rtx")[:-1])
    with pytest.raises(EngineError, match="is damaged"):
        trusted_engine(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(), st.binary())
def test_any_bytes_around_a_name_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.trusted.plan"
    name = PlanName("whole", "fp32", "1" * 64, replace(SPEC, training={})).to_text().encode()
    path.write_bytes(b"ftrt" + start + name + rest)
    assert trusted_engine(path)[0].spec == SPEC
    path.write_bytes(b"ftrt" + start + name.replace(b'"spec"', b'"ceps"') + rest)
    with pytest.raises(ModelError):
        trusted_engine(path)
