"""Passports: an engine is loaded only if it is, byte for byte, the one that was built."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fake_plan import MAGIC, fake_plan
from fcn_deploy.artifacts import write_atomically
from fcn_deploy.describe import describe
from fcn_deploy.engine_files import (
    last_passport,
    part_path,
    passport_path,
    read_engine,
    read_passport,
    source_of,
    write_engine,
)
from fcn_deploy.errors import EngineError, EnvironmentFault, ModelError
from fcn_deploy.passport import HEAD, TRUNK, UPSAMPLING, WHOLE, Part, Passport, Precision, Profile
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import ModelSpec, voc_palette

REBUILD = "fcn-deploy build-engine MODEL.onnx --fp16"
PLAN = fake_plan(b"the whole engine" * 30, [], magic=MAGIC["rtx"])
CONTENTS = {
    WHOLE: PLAN,
    TRUNK: fake_plan(b"its trunk", [], magic=MAGIC["rtx"]),
    HEAD: fake_plan(b"its head", [], magic=MAGIC["rtx"]),
    UPSAMPLING: b"\x93NUMPY weights",
}
FILES = {
    WHOLE: "model.fp16.plan",
    TRUNK: "model.fp16.trunk.plan",
    HEAD: "model.fp16.head.plan",
    UPSAMPLING: "model.fp16.upsampling.npy",
}
PROFILES = (
    Profile((1, 32, 64), (1, 352, 480), (4, 1024, 2048)),
    Profile((1, 512, 512), (8, 512, 512), (8, 512, 512)),
)


def passport_of(path: Path, contents: dict[str, bytes], *, flavour: str = "rtx") -> Passport:
    return Passport(
        parts={
            role: Part(
                part_path(path, role).name,
                hashlib.sha256(content).hexdigest(),
                () if role == UPSAMPLING else PROFILES,
            )
            for role, content in contents.items()
        },
        source="model.onnx",
        source_sha256="0" * 64,
        flavour=flavour,
        version="1.4.0.76",
        targets=("sm86", "sm120"),
        options=EngineOptions(
            fp16=True,
            flavour=flavour,
            profiles=(Shapes(), Shapes((512, 512), (512, 512), (512, 512), 8)),
            targets=("sm86", "sm120"),
            workspace_mib=512,
        ),
        precision=Precision("fp16", 21, 21, 0.9987, 0.97, 0.0, {"FP16 products": 21}),
        parity={"label_agreement": 0.9998, "images": 3},
        spec=ModelSpec(("Straße", "sky"), voc_palette(2), training={"epochs": 3}),
        halo=256,
    )


def write(folder: Path) -> Path:
    path = folder / FILES[WHOLE]
    write_engine(path, CONTENTS, passport_of(path, CONTENTS))
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write(tmp_path)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine for examples by the hundred; each puts back what it changes."""
    return write(tmp_path_factory.mktemp("kept"))


def edit(plan: Path, **changes: Any) -> None:
    """Change fields of a passport on disk, or leave them out where the value is ``...``."""
    sidecar = passport_path(plan)
    fields = {**json.loads(sidecar.read_text(encoding="utf-8")), **changes}
    remaining = {key: value for key, value in fields.items() if value is not ...}
    sidecar.write_text(json.dumps(remaining), encoding="utf-8")


def refused(plan: Path, problem: str, kind: type[ModelError] = EngineError) -> ModelError:
    with pytest.raises(ModelError, match=problem) as caught:
        read_engine(plan)
    assert type(caught.value) is kind
    assert caught.value.exit_code == 4
    assert len(str(caught.value).splitlines()) <= 3
    if kind is EngineError:
        assert "build-engine" in caught.value.remedy
    return caught.value


@pytest.mark.parametrize("flavour", ["rtx", "tensorrt"])
@pytest.mark.parametrize("parity", [None, {"label_agreement": 1.0}])
@pytest.mark.parametrize("roles", [(WHOLE,), (WHOLE, TRUNK, HEAD, UPSAMPLING)])
def test_an_engine_and_its_passport_read_back_equal(
    tmp_path: Path, flavour: str, parity: dict[str, Any] | None, roles: tuple[str, ...]
) -> None:
    path = tmp_path / "runs" / FILES[WHOLE]
    contents = {role: fake_plan(role.encode(), [], magic=MAGIC[flavour]) for role in roles}
    passport = replace(passport_of(path, contents, flavour=flavour), parity=parity, halo=None)
    write_engine(path, contents, passport)
    for role in roles:  # nothing before or after it: trtexec must be able to load it
        assert (path.parent / FILES[role]).read_bytes() == contents[role]
    assert passport_path(path).name == "model.fp16.plan.json"
    assert len(list(path.parent.iterdir())) == len(roles) + 1
    assert read_engine(path) == (passport, contents)
    assert read_passport(path) == last_passport(path) == passport
    assert Passport.from_json(passport.to_json()) == passport
    assert passport.profiles == PROFILES


@pytest.mark.parametrize("cut", [1, len(PLAN) // 2, len(PLAN) - 4, len(PLAN) - 24])
def test_a_truncated_plan_is_refused(plan: Path, cut: int) -> None:
    plan.write_bytes(PLAN[:-cut])
    refused(plan, f"is damaged: it speaks of [0-9]+ bytes, and has {len(PLAN) - cut}")


@pytest.mark.parametrize("role", FILES)
def test_one_changed_byte_of_any_part_is_refused(plan: Path, role: str) -> None:
    content = bytearray(CONTENTS[role])
    content[-1] ^= 1
    (plan.parent / FILES[role]).write_bytes(content)
    refused(plan, f"{FILES[role]} is not the file that its passport speaks of")


@pytest.mark.parametrize("role", [TRUNK, HEAD, UPSAMPLING])
def test_a_missing_part_is_refused(plan: Path, role: str) -> None:
    (plan.parent / FILES[role]).unlink()
    refused(plan, rf"{FILES[role]} cannot be read, a part of model\.fp16\.plan: No such file")


def test_a_part_of_another_build_is_refused(plan: Path) -> None:
    # Each of them is a sound plan; only together they are none.
    trunk, head = (plan.parent / FILES[role] for role in (TRUNK, HEAD))
    trunk.write_bytes(head.read_bytes())
    refused(plan, "trunk.plan is not the file")


def test_a_crash_between_plan_and_passport_leaves_a_refusal(plan: Path) -> None:
    # The passport of the build before lies beside the plan of the new one.
    plan.write_bytes(fake_plan(b"a newer build", [], magic=MAGIC["rtx"]))
    refused(plan, "not the file")


def test_a_crash_anywhere_in_writing_leaves_a_refusal(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = {role: content + b" again" for role, content in CONTENTS.items()}
    newer = {
        role: fake_plan(content, [], magic=MAGIC["rtx"]) if role != UPSAMPLING else content
        for role, content in newer.items()
    }
    for survives in range(1, 5):
        write(plan.parent)
        left = [survives]

        def killed(path: Path, content: bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write_atomically(path, content)

        monkeypatch.setattr("fcn_deploy.engine_files.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            write_engine(plan, newer, passport_of(plan, newer))
        monkeypatch.undo()
        refused(plan, "is not the file")
    write_engine(plan, newer, passport_of(plan, newer))
    assert read_engine(plan)[1] == newer


def test_a_plan_without_passport_is_refused_and_both_ways_out_are_named(plan: Path) -> None:
    passport_path(plan).unlink()
    remedy = refused(plan, r"no passport beside it, model\.fp16\.plan\.json").remedy
    assert "native code" in remedy
    assert REBUILD in remedy
    assert "--trust-engine" in remedy


def test_a_part_is_no_engine(plan: Path) -> None:
    error = refused(plan.parent / FILES[TRUNK], "is one part of an engine", ModelError)
    assert error.remedy == f"Name the whole one: {plan}"


def test_a_passport_of_the_other_flavour_is_refused(plan: Path) -> None:
    edit(plan, flavour="tensorrt")
    refused(plan, "is a plan of rtx, its passport is not")


def test_a_missing_plan_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "gone.plan", "cannot be read: No such file", ModelError)
    (tmp_path / "folder.plan").mkdir()
    refused(tmp_path / "folder.plan", "cannot be read: Is a directory", ModelError)


def test_a_passport_of_the_release_before_is_refused(plan: Path) -> None:
    # As release 0.1 wrote them; what is in it is not looked at.
    passport_path(plan).write_text('{"format": 1, "plan_sha256": "0"}')
    refused(plan, "passport is of another release")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "{}", '"text"', "[" * 100_000])
def test_a_sidecar_that_is_no_passport_is_refused(plan: Path, text: str) -> None:
    passport_path(plan).write_text(text, encoding="utf-8")
    refused(plan, "passport cannot be read|passport is no passport")


def test_a_sidecar_of_other_bytes_is_refused(plan: Path) -> None:
    passport_path(plan).write_bytes(b"\xff\xfe\x00garbage")
    refused(plan, "passport .* cannot be read")


PASSPORT: dict[str, Any] = json.loads(passport_of(Path(FILES[WHOLE]), CONTENTS).to_json())


def part(**changes: Any) -> dict[str, Any]:
    parts: dict[str, Any] = PASSPORT["parts"]
    return {**parts, TRUNK: {**parts[TRUNK], **changes}}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": ...},
        {"parts": ...},
        {"parts": {}},
        {"parts": {TRUNK: part()[TRUNK]}},
        {"parts": {WHOLE: {**part()[WHOLE], "profiles": []}}},
        {"parts": part(profiles=[{"min": [1, 32], "opt": [1, 64, 64], "max": [1, 64, 64]}])},
        {"parts": part(profiles=[{"min": [1, 32, 32], "opt": [1, 64, 64]}])},
        {"parts": part(profiles=[{"min": [1, 32, float("inf")]}])},
        {"parts": part(profiles=None)},
        {"parts": part(file="../model.fp16.trunk.plan")},
        {"parts": part(file="/etc/passwd")},
        {"parts": part(file="..")},
        {"parts": part(file="")},
        {"parts": part(file=7)},
        {"parts": part(file="a\0b")},
        {"parts": part(file="\ud800")},
        {"parts": part(file="x" * 5000)},
        {"spec": ...},
        {"spec": {"format": 1, "classes": []}},
        {"spec": "text"},
        {"options": {}},
        {"options": None},
        {"options": {**PASSPORT["options"], "workspace_mib": "much"}},
        {"options": {**PASSPORT["options"], "profiles": []}},
        {"precision": {"computes": "fp16"}},
        {"targets": None},
        {"targets": [86]},
        {"version": 1.7},
        {"source": "../model.onnx"},
        {"source": None},
        {"halo": "wide"},
        {"unknown": 1},
    ],
)
def test_a_passport_of_other_fields_is_refused(plan: Path, changes: dict[str, Any]) -> None:
    edit(plan, **changes)
    refused(plan, "passport|cannot be read")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
@example(b"vtrt")
@example(b"ftrt" + bytes(100))
@example(b"\0\0" + PLAN)
def test_no_bytes_in_place_of_a_plan_escape_a_refusal(kept: Path, content: bytes) -> None:
    try:
        kept.write_bytes(content)
        refused(kept, "plan")
    finally:
        kept.write_bytes(PLAN)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_in_place_of_a_passport_escape_a_refusal(kept: Path, content: bytes) -> None:
    sidecar = passport_path(kept)
    before = sidecar.read_bytes()
    try:
        sidecar.write_bytes(content)
        refused(kept, "passport")
        assert last_passport(kept) is None
    finally:
        sidecar.write_bytes(before)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON, the whole left out."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    found = [(*path, key) for key, _ in inner]
    return found + [deeper for key, item in inner for deeper in places(item, (*path, key))]


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(places(PASSPORT)), JSON)
def test_no_value_in_a_passport_escapes_a_refusal(
    kept: Path, place: tuple[str | int, ...], value: Any
) -> None:
    from fcn_deploy.backends.trt_fit import require_fitting

    sidecar = passport_path(kept)
    before = sidecar.read_bytes()
    fields = json.loads(before)
    inner = fields
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        sidecar.write_text(json.dumps(fields), encoding="utf-8")
        passport, contents = read_engine(kept)
        require_fitting(kept, passport, "1.4.0.76", "sm86")
        assert contents[WHOLE] == PLAN
        assert Passport.from_json(passport.to_json())
        replace(passport.options, flavour="auto", targets=()).check(1)
    except EngineError:
        pass
    finally:
        sidecar.write_bytes(before)


def test_what_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "model.plan"
    with pytest.raises(EnvironmentFault):
        write_engine(path, CONTENTS, passport_of(path, CONTENTS))


def test_the_last_passport_is_there_for_an_engine_that_is_not(plan: Path) -> None:
    expected = read_passport(plan)
    plan.unlink()
    assert last_passport(plan) == expected
    passport_path(plan).unlink()
    assert last_passport(plan) is None


def test_the_source_is_the_one_in_the_passport_or_of_the_same_name(tmp_path: Path) -> None:
    plan = tmp_path / "other.fp16.plan"
    with pytest.raises(ModelError, match=r"no other\.onnx beside") as caught:
        source_of(plan)
    assert REBUILD in caught.value.remedy
    write_engine(plan, {WHOLE: PLAN}, passport_of(plan, {WHOLE: PLAN}))
    for name in ("other.onnx", "other.fp16.onnx", "model.onnx"):  # each counts more than the last
        (tmp_path / name).touch()
        assert source_of(plan) == tmp_path / name
    passport_path(plan).unlink()
    assert source_of(plan) == tmp_path / "other.fp16.onnx"


@pytest.mark.parametrize(
    ("shape", "inside"),
    [
        ((1, 32, 64), True),
        ((4, 1024, 2048), True),
        ((5, 32, 64), False),
        ((0, 32, 64), False),
        ((1, 31, 64), False),
        ((1, 32, 63), False),
        ((1, 1025, 64), False),
        ((1, 32, 2049), False),
    ],
)
def test_a_profile_takes_what_lies_inside(shape: tuple[int, int, int], inside: bool) -> None:
    assert PROFILES[0].takes(shape) == inside


def test_info_tells_what_the_passport_says(plan: Path) -> None:
    facts = describe(plan)
    assert facts["kind"] == "TensorRT plan"
    assert facts["flavour"] == "rtx"
    assert facts["precision"]["computes"] == "fp16"
    assert facts["crops"][0] == "1x32x64 to 4x1024x2048, best 1x352x480"
    assert {role: file["file"] for role, file in facts["files"].items()} == FILES
    assert facts["options"] == {"workspace_mib": 512}  # of what is not as usual
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
