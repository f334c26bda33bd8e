"""The first bytes of a plan, also of real ones: what is none is told from what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_plan import MAGIC, fake_plan
from fcn_deploy.engine import build_engine
from fcn_deploy.errors import EngineError, ModelError
from fcn_deploy.plan_header import PlanHeader, read_header
from fcn_deploy.recipe import EngineOptions, Shapes
from small_models import small_model

PLAN = fake_plan(b"an engine" * 20, [], magic=MAGIC["rtx"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.plan"


def refused(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(EngineError, match=words) as caught:
        read_header(path)
    assert str(path) in caught.value.problem
    assert "fcn-deploy build-engine" in caught.value.remedy


@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
def test_the_flavour_is_read_without_its_library(path: Path, flavour: str) -> None:
    plan = fake_plan(b"an engine", [], magic=MAGIC[flavour])
    path.write_bytes(plan)
    assert read_header(path) == PlanHeader(flavour, len(plan))


def test_real_plans_have_this_header(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    source, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    source.write_bytes(small_model().SerializeToString())
    shapes = Shapes(opt_hw=(64, 64), max_hw=(64, 64), max_batch=1)
    build_engine(source, plan, EngineOptions(flavour="rtx", profiles=(shapes,)), crops=None)
    parts = sorted(tmp_path.glob("*.plan"))
    assert len(parts) == 3
    for part in parts:
        content = part.read_bytes()
        assert read_header(part) == PlanHeader("rtx", len(content))
        for cut in (1, 100, len(content) - 24, len(content) - 4):
            refused(part, content[:-cut], "is damaged: it speaks of")
        refused(part, content + b"\n", "is damaged: it speaks of")
        refused(part, b'\x10\0\0\0{"names":["sky"]}' + content, "something written before it")


@pytest.mark.parametrize("cut", [1, 30, len(PLAN) - 16, len(PLAN) - 4])
def test_a_plan_cut_short_is_damaged(path: Path, cut: int) -> None:
    refused(path, PLAN[:-cut], f"is damaged: it speaks of [0-9]+ bytes, and has {len(PLAN) - cut}")


def test_a_plan_with_a_trailer_is_damaged(path: Path) -> None:
    refused(path, PLAN + b'{"classes": 3}', "is damaged")


@pytest.mark.parametrize("prefix", [b"\0", b"\x1f\0\0\0{}", b"x" * 60_000])
def test_a_plan_behind_something_else_is_said_to_be_so(path: Path, prefix: bytes) -> None:
    refused(path, prefix + PLAN, "is a plan with something written before it")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "but an empty file"),
        (b"vtr", "but something else"),
        (b"PK\x03\x04" + bytes(50), "but a ZIP archive"),
        (b"\x7fELF\x02\x01", "but a program or library"),
        (b"<!DOCTYPE html><title>404</title>", "but a web page"),
        (b"<html>not found</html>", "but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "but a Git LFS pointer: git lfs pull"),
        (small_model().SerializeToString(), "but something else"),
    ],
)
def test_what_is_no_plan_is_named_where_it_is_known(path: Path, content: bytes, what: str) -> None:
    refused(path, content, f"is not a TensorRT plan, {what}")


def test_no_file_is_another_matter(tmp_path: Path) -> None:
    (tmp_path / "folder.plan").mkdir()
    for name in ("gone.plan", "folder.plan"):
        with pytest.raises(ModelError, match=f"{name} cannot be read") as caught:
            read_header(tmp_path / name)
        assert type(caught.value) is ModelError  # building again mends no wrong name


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", b"vtrt", b"ftrt", b"PK\x03\x04", PLAN[:24], b"x" + PLAN]), st.binary())
def test_any_bytes_are_a_header_or_refused(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.header.plan"
    path.write_bytes(start + rest)
    try:
        header = read_header(path)
    except EngineError:
        return
    assert (start + rest)[:4] == MAGIC[header.flavour]
    assert header.flavour != "rtx" or header.size == len(start + rest)
