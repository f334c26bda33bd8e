"""The result travels with the artifact, which stays what it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from fcn_deploy.describe import describe
from fcn_deploy.freshness import require_fresh
from fcn_deploy.onnx_file import identity, read_onnx
from fcn_deploy.verify.result import CropFigures, ImageFigures, Rung, Verification
from fcn_deploy.verify.stamp import stamp


def result(passed: bool) -> tuple[Rung, Verification]:
    rung = Rung(
        "ONNX Runtime fp32",
        "model.onnx",
        "00",
        "ort",
        "CPUExecutionProvider",
        "fp32",
        passed,
        problems=() if passed else ("Wrong.",),
        crops=CropFigures(8, 80, 10.0, 0.1, 0.05, 0.01, 0.99, 0),
        images=ImageFigures(3, 300, 0.98, "a", 0.9),
    )
    reference = {"file": "best.safetensors", "sha256": "11", "name": "eager", "provider": "cpu"}
    return rung, Verification(reference, {}, {}, (rung,), {"date": "2026-11-22"})


@pytest.fixture
def copy(toy_onnx: Path, toy_checkpoint: Path, tmp_path: Path) -> Path:
    shutil.copy(toy_checkpoint, tmp_path)
    return Path(shutil.copy(toy_onnx, tmp_path))


def test_a_stamp_is_shown_and_replaced_and_changes_no_identity(copy: Path) -> None:
    before, content = identity(copy), copy.read_bytes()
    assert before == hashlib.sha256(content).hexdigest()
    assert describe(copy)["verified"] is None
    for passed in (True, False):
        stamp(copy, *result(passed))
        assert identity(copy) == before
        shown = describe(copy)["verified"]
        assert shown["passed"] is passed
        assert (shown["against"], shown["date"]) == ("best.safetensors", "2026-11-22")
        assert (shown["agreement"], shown["images"]) == (0.98, 3)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() != before
    keys = [prop.key for prop in read_onnx(copy).proto.metadata_props]
    assert len(keys) == len(set(keys))


def test_an_engine_stays_fresh_when_its_source_is_stamped(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcn_deploy import freshness

    plan = copy.with_suffix(".plan")
    plan.write_bytes(b"a plan")
    plan.with_name("model.plan.json").write_text("{}")

    class Passport:
        source, source_sha256 = copy.name, identity(copy)

    monkeypatch.setattr(freshness, "read_passport", lambda _plan: Passport)
    stamp(copy, *result(True))
    require_fresh(plan)


def test_a_result_is_plain_json(copy: Path) -> None:
    _, verification = result(False)
    text = json.dumps(verification.as_dict(), allow_nan=False)
    assert json.loads(text)["rungs"][0]["images"]["worst"] == {"name": "a", "agreement": 0.9}
    assert not json.loads(text)["passed"]
    assert copy.is_file()
