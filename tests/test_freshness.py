"""Artifacts and what they were made from: contents decide, and each step back is looked at."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fake_engines import write_fake_engine
from fcn_deploy.artifacts import sha256
from fcn_deploy.engine_files import part_path, passport_path
from fcn_deploy.errors import EngineError, ModelError
from fcn_deploy.freshness import require_fresh
from fcn_deploy.passport import TRUNK
from fcn_deploy.spec import SOURCE_KEY
from small_models import small_model


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan, the ONNX file that it was made from, and the checkpoint that this is of."""
    checkpoint, source = tmp_path / "best.safetensors", tmp_path / "model.onnx"
    checkpoint.write_bytes(b"weights")
    model = small_model()
    entry = model.metadata_props.add()
    entry.key = SOURCE_KEY
    entry.value = json.dumps({"name": checkpoint.name, "sha256": sha256(checkpoint)})
    source.write_bytes(model.SerializeToString())
    path = tmp_path / "model.plan"
    passport = replace(write_fake_engine(path, model), source_sha256=sha256(source))
    passport_path(path).write_text(passport.to_json())
    return path


def test_what_belongs_together_is_fresh(plan: Path) -> None:
    for path in (plan, plan.with_name("model.onnx"), plan.with_name("best.safetensors")):
        os.utime(path, (1, 1))  # times say nothing: they change with every copy
        require_fresh(path)


def test_another_onnx_file_makes_a_stale_engine(plan: Path) -> None:
    plan.with_name("model.onnx").write_bytes(small_model(1).SerializeToString())
    with pytest.raises(EngineError, match=r"made from another model\.onnx") as caught:
        require_fresh(plan)
    assert "fcn-deploy build-engine --fp16" in caught.value.remedy


def test_another_checkpoint_makes_a_stale_onnx_file_which_no_build_mends(plan: Path) -> None:
    plan.with_name("best.safetensors").write_bytes(b"of a later training")
    for path in (plan, plan.with_name("model.onnx")):
        with pytest.raises(ModelError, match=r"made from another best\.safetensors") as caught:
            require_fresh(path)
        assert type(caught.value) is ModelError
        assert "fcn-deploy export" in caught.value.remedy


@pytest.mark.parametrize("name", ["best.safetensors", "model.onnx"])
def test_a_source_that_is_not_there_says_nothing(plan: Path, name: str) -> None:
    plan.with_name(name).unlink()
    require_fresh(plan)


def test_an_engine_that_is_not_whole_is_not_fresh_either(plan: Path) -> None:
    part_path(plan, TRUNK).unlink()
    with pytest.raises(EngineError, match=r"trunk\.plan cannot be read"):
        require_fresh(plan)


def test_a_plan_without_a_passport_is_for_its_backend_to_refuse_or_trust(plan: Path) -> None:
    passport_path(plan).unlink()
    require_fresh(plan)
