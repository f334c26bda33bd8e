"""Passports: a plan is loaded only if it is, byte for byte, the one that was built."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fcn_deploy.describe import describe
from fcn_deploy.errors import EnvironmentFault, ModelError
from fcn_deploy.passport import (
    Passport,
    Precision,
    Profile,
    passport_path,
    read_passport,
    write_plan,
)
from fcn_deploy.spec import ModelSpec, voc_palette

PLAN = b"vtrt" + bytes(range(256)) * 8


def passport_of(plan: bytes, *, flavour: str = "rtx") -> Passport:
    return Passport(
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        source="model.onnx",
        source_sha256="0" * 64,
        flavour=flavour,
        version="1.4.0.76",
        targets=("sm86", "sm120"),
        profile=Profile((1, 32, 64), (1, 352, 480), (4, 1024, 2048)),
        precision=Precision("fp16", 21, 21, 0.9987, 0.0),
        parity={"agreement": 0.9998, "images": 3},
        spec=ModelSpec(("Straße", "sky"), voc_palette(2), training={"epochs": 3}),
    )


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "model.fp16.plan"
    write_plan(path, PLAN, passport_of(PLAN))
    return path


def edit(plan: Path, **changes: Any) -> None:
    """Change fields of a passport on disk, or leave them out where the value is ``...``."""
    sidecar = passport_path(plan)
    fields = {**json.loads(sidecar.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in fields.items() if value is not ...}
    sidecar.write_text(json.dumps(kept), encoding="utf-8")


def refused(plan: Path, problem: str) -> ModelError:
    with pytest.raises(ModelError, match=problem) as caught:
        read_passport(plan)
    assert caught.value.exit_code == 4
    return caught.value


@pytest.mark.parametrize(
    ("magic", "flavour"), [(b"vtrt", "rtx"), (b"ftrt", "tensorrt")], ids=["rtx", "tensorrt"]
)
@pytest.mark.parametrize("parity", [None, {"agreement": 1.0}])
def test_a_plan_and_its_passport_read_back_equal(
    tmp_path: Path, magic: bytes, flavour: str, parity: dict[str, Any] | None
) -> None:
    path, content = tmp_path / "runs" / "a.plan", magic + b"the engine"
    passport = replace(passport_of(content, flavour=flavour), parity=parity)
    write_plan(path, content, passport)
    assert path.read_bytes() == content  # nothing before it: trtexec must be able to load it
    assert passport_path(path) == tmp_path / "runs" / "a.plan.json"
    assert sorted(file.name for file in path.parent.iterdir()) == ["a.plan", "a.plan.json"]
    assert read_passport(path) == passport
    assert Passport.from_json(passport.to_json()) == passport


@pytest.mark.parametrize("cut", [1, len(PLAN) // 2, len(PLAN) - 4])
def test_a_truncated_plan_is_refused(plan: Path, cut: int) -> None:
    plan.write_bytes(PLAN[:-cut])
    assert "build-engine" in refused(plan, "not the file").remedy


def test_one_changed_byte_is_refused(plan: Path) -> None:
    plan.write_bytes(PLAN[:-1] + b"\0")
    refused(plan, "not the file")


def test_a_crash_between_plan_and_passport_leaves_a_refusal(plan: Path) -> None:
    # The passport of the build before lies beside the plan of the new one.
    plan.write_bytes(PLAN + b"a newer build")
    refused(plan, "not the file")


@pytest.mark.parametrize("content", [b"", b"vtr", b"\0\0\0\0" + PLAN, b'{"spec": 1}' + PLAN])
def test_what_does_not_start_like_a_plan_is_refused(plan: Path, content: bytes) -> None:
    plan.write_bytes(content)
    edit(plan, plan_sha256=hashlib.sha256(content).hexdigest())
    assert "build-engine" in refused(plan, "not a TensorRT plan").remedy


def test_a_plan_without_passport_is_refused(plan: Path) -> None:
    passport_path(plan).unlink()
    assert "native code" in refused(plan, r"no passport beside it, model\.fp16\.plan\.json").remedy


def test_a_passport_of_the_other_flavour_is_refused(plan: Path) -> None:
    edit(plan, flavour="tensorrt")
    refused(plan, "plan of rtx")


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone.plan", "cannot be read")
    (tmp_path / "folder.plan").mkdir()
    refused(tmp_path / "folder.plan", "cannot be read")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}"])
def test_a_sidecar_that_is_no_passport_is_refused(plan: Path, text: str) -> None:
    passport_path(plan).write_text(text, encoding="utf-8")
    refused(plan, "passport cannot be read")


def test_a_sidecar_of_other_bytes_is_refused(plan: Path) -> None:
    passport_path(plan).write_bytes(b"\xff\xfe\x00garbage")
    refused(plan, "passport")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": ...},
        {"plan_sha256": ...},
        {"spec": ...},
        {"spec": {"format": 1, "classes": []}},
        {"spec": "text"},
        {"profile": {"min": [1, 32, 32], "opt": [1, 64, 64]}},
        {"profile": {"min": [1, 32], "opt": [1, 64, 64], "max": [1, 64, 64]}},
        {"profile": None},
        {"precision": {"computes": "fp16"}},
        {"targets": None},
        {"unknown": 1},
    ],
)
def test_a_passport_of_other_fields_is_refused(plan: Path, changes: dict[str, Any]) -> None:
    edit(plan, **changes)
    refused(plan, "passport|description")


def test_a_plan_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentFault):
        write_plan(tmp_path / "file" / "model.plan", PLAN, passport_of(PLAN))


def test_info_tells_what_the_passport_says(plan: Path) -> None:
    facts = describe(plan)
    assert facts["kind"] == "TensorRT plan"
    assert facts["flavour"] == "rtx"
    assert facts["precision"]["computes"] == "fp16"
    assert facts["profile"]["max"] == [4, 1024, 2048]
    assert facts["classes"] == ["Straße", "sky"]
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    plan.write_bytes(PLAN[:-1])
    with pytest.raises(ModelError):
        describe(plan)


def test_info_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    for name in ("notes.txt", "gone.onnx"):
        with pytest.raises(ModelError, match=name):
            describe(tmp_path / name)
