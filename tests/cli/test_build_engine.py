"""``build-engine``: options reach the builder, of a recipe or named, and wrong ones are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from fcn_deploy.cli.app import app
from fcn_deploy.engine_files import read_passport
from fcn_deploy.errors import CheckFailedError
from fcn_deploy.onnx_file import to_half
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import SOURCE_KEY
from small_models import small_model

RECIPE = """
device = "Test box"
notes = "Two profiles."

[engine]
precision = "fp16"
flavour = "rtx"
targets = ["sm86", "sm89"]
workspace_mib = 700

[[engine.profiles]]
min = "32x32"
opt = "96x128"
max = "128x160"
max_batch = 2

[[engine.profiles]]
min = "192x192"
opt = "192x192"
max = "192x192"
max_batch = 1
"""
ONE_SHAPE = "--min-shape 64x64 --opt-shape 64x64 --max-shape 64x64 --max-batch 1"
OF_RECIPE = EngineOptions(
    fp16=True,
    flavour="rtx",
    targets=("sm86", "sm89"),
    workspace_mib=700,
    profiles=(
        Shapes((32, 32), (96, 128), (128, 160), 2),
        Shapes((192, 192), (192, 192), (192, 192), 1),
    ),
)


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder with an ONNX file, and the place of work above it."""
    folder = tmp_path / "runs" / "road"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(small_model().SerializeToString())
    (tmp_path / "box.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@dataclass
class Asked:
    """What the builder was asked for."""

    source: Path
    path: Path
    options: EngineOptions
    crops: Any
    cache: Path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["build-engine", *(str(argument) for argument in arguments)])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """A builder that only writes down what it is asked for."""
    calls: list[Asked] = []

    def refuse(source: Path, path: Path, options: EngineOptions, **more: Any) -> None:
        calls.append(Asked(source, path, options, more["crops"], more["cache"]))
        raise CheckFailedError("asked")

    monkeypatch.setattr("fcn_deploy.engine.build_engine", refuse)
    return calls


def only(asked: list[Asked], *arguments: object) -> Asked:
    result = call(*arguments)
    assert result.exit_code == 6, result.output
    (one,) = asked
    return one


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refused(result: Result, code: int, words: str) -> None:
    assert result.exit_code == code, result.output
    error = result.stderr[result.stderr.index("Error: ") :].strip()
    assert words in error
    assert len(error.splitlines()) <= 3
    assert "Traceback" not in result.output


def test_without_options_the_defaults_of_the_library_are_built(asked: list[Asked]) -> None:
    one = only(asked)
    assert one.options == EngineOptions()
    assert (one.source, one.path) == (Path("runs/road/model.onnx"), Path("runs/road/model.plan"))
    assert one.crops is not None
    assert one.cache == Path("cache/fcn-deploy").absolute()


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ("--fp16", {"fp16": True}),
        ("--flavour tensorrt", {"flavour": "tensorrt"}),
        ("--target sm86,sm120", {"targets": ("sm86", "sm120")}),
        ("--workspace 300", {"workspace_mib": 300}),
        ("--optimization-level 0", {"optimization_level": 0}),
        ("--hardware-compatibility ampere-plus", {"hardware_compatibility": "ampere-plus"}),
        ("--version-compatible", {"version_compatible": True}),
        ("--refit", {"refit": True}),
        (
            f"--dla-core 0 {ONE_SHAPE}",
            {"dla_core": 0, "profiles": (Shapes((64, 64), (64, 64), (64, 64), 1),)},
        ),
        ("--no-timing-cache", {"timing_cache": False}),
        ("--max-batch 9", {"profiles": (Shapes(max_batch=9),)}),
        ("--opt-shape 256x320", {"profiles": (Shapes(opt_hw=(256, 320)),)}),
        (
            "--min-shape 64x64 --max-shape 128x192",
            {"profiles": (Shapes((64, 64), (128, 192), (128, 192)),)},
        ),
        (
            "--profile 64x64,64x64,64x64,8 --profile 32x32,96x96,1088x1920,1",
            {
                "profiles": (
                    Shapes(),
                    Shapes((64, 64), (64, 64), (64, 64), 8),
                    Shapes((32, 32), (96, 96), (1088, 1920), 1),
                )
            },
        ),
    ],
)
@pytest.mark.parametrize("of_recipe", [False, True])
def test_each_option_arrives_and_counts_more_than_a_recipe(
    asked: list[Asked], arguments: str, changes: dict[str, Any], of_recipe: bool
) -> None:
    base, recipe = EngineOptions(), []
    if of_recipe:
        base, recipe = OF_RECIPE, ["--recipe", "box.toml"]
        first, second = OF_RECIPE.profiles
        if arguments.startswith("--max-batch"):
            changes = {"profiles": (replace(first, max_batch=9), second)}
        elif arguments.startswith("--profile"):
            changes = {"profiles": (first, second, *changes["profiles"][1:])}
        elif "shape" in arguments:  # instead of the recipe's profiles; its batch stays
            (shapes,) = changes["profiles"]
            batch = shapes.max_batch if "--max-batch" in arguments else 2
            changes = {**changes, "profiles": (replace(shapes, max_batch=batch),)}
    assert only(asked, *arguments.split(), *recipe).options == replace(base, **changes)


def test_a_recipe_alone_is_all_there_is_to_say(asked: list[Asked]) -> None:
    one = only(asked, "--recipe", "box.toml")
    assert one.options == OF_RECIPE
    assert one.path.name == "model.fp16.plan"
    assert "For Test box, by box.toml" in call("--recipe", "box.toml").stderr


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        (("--fp16",), "runs/road/model.fp16.plan"),
        (("-o", "here.plan"), "here.plan"),
        (("-o", "runs"), "runs/model.plan"),
        (("-o", "new/folder/a.plan", "--fp16"), "new/folder/a.plan"),
        (("runs/road/model.fp16.onnx", "--fp16"), "runs/road/model.fp16.plan"),
        (("runs/road/model.fp16.onnx",), "runs/road/model.fp16.plan"),
    ],
)
def test_where_the_plan_goes(
    asked: list[Asked], run: Path, arguments: tuple[str, ...], plan: str
) -> None:
    (run / "model.fp16.onnx").write_bytes(to_half(small_model()).SerializeToString())
    assert only(asked, *arguments).path == Path(plan)


def test_verification_can_be_left_out(asked: list[Asked]) -> None:
    assert only(asked, "--no-verify").crops is None


@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        ((), "runs/road/model.plan"),
        (("--fp16",), "runs/road/model.fp16.plan"),
        (("--recipe", "box.toml"), "runs/road/model.fp16.plan"),
        (("-o", "new/folder/a.plan"), "new/folder/a.plan"),
        (("-o", "runs"), "runs/model.plan"),
        (("--profile", "64x64,64x64,64x64,8"), "runs/road/model.plan"),
    ],
)
def test_a_dry_run_says_what_it_would_do_and_writes_nothing(
    asked: list[Asked], tmp_path: Path, arguments: tuple[str, ...], plan: str
) -> None:
    before = files(tmp_path)
    done = call("--dry-run", *arguments)
    assert done.exit_code == 0, done.output
    assert f"Would build {plan} from runs/road/model.onnx\n" in done.stderr
    assert files(tmp_path) == before
    assert not Path("new").exists()
    assert asked == []


def test_a_dry_run_says_all_of_a_recipe(asked: list[Asked]) -> None:
    said = call("--dry-run", "--recipe", "box.toml").stderr
    for words in (
        "model.fp16.plan",
        "Flavour rtx, sm86, sm89, FP16",
        "Crops of 32x32 to 128x160, fastest at 96x128, 2 at once",
        "Crops of 192x192 to 192x192, fastest at 192x192, 1 at once",
    ):
        assert words in said


def test_a_dry_run_of_a_checkpoint_exports_nothing(
    asked: list[Asked], run: Path, tmp_path: Path
) -> None:
    (run / "model.onnx").unlink()
    (run / "best.safetensors").write_bytes(b"not even read")
    before = files(tmp_path)
    done = call("--dry-run")
    assert done.exit_code == 0
    # The plan is called after the file that would be exported.
    assert "Would build runs/road/model.plan from runs/road/best.safetensors" in done.stderr
    assert files(tmp_path) == before


def test_a_dry_run_exports_nothing_to_plan_with_either(run: Path, tmp_path: Path) -> None:
    (run / "model.onnx").unlink()
    (run / "best.safetensors").write_bytes(b"not even read")
    before = files(tmp_path)
    refused(call("--dry-run", "--plan-for", "."), 2, "--dry-run exports none")
    assert files(tmp_path) == before


WRONG = [
    ("--flavour onnx", 2, "There is no flavour 'onnx'"),
    ("--optimization-level 6", 2, "Optimization levels are 0 to 5, not 6"),
    ("--optimization-level=-1", 2, "Optimization levels are 0 to 5, not -1"),
    ("--hardware-compatibility all", 2, "There is no hardware compatibility 'all'"),
    ("--workspace 0", 2, "A workspace of 0 MiB is none"),
    ("--dla-core 0", 2, "A DLA runs one shape only"),
    ("--dla-core=-1", 2, "There is no DLA core -1"),
    ("--max-batch 0", 2, "--max-batch 0 is less than 1"),
    ("--max-shape 100x100", 2, "-shape 100x100 is not a multiple of 32"),
    ("--min-shape 0x32", 2, "--min-shape 0x32 is not a multiple of 32"),
    ("--min-shape 64x64 --max-shape 32x32", 2, "not in order"),
    ("--max-shape 512", 2, "--max-shape takes height x width"),
    ("--max-shape axb", 2, "--max-shape takes height x width"),
    ("--profile 64x64,64x64,64x64", 2, "--profile takes MIN,OPT,MAX,BATCH"),
    ("--profile 64x64,64x64,64x64,many", 2, "--profile takes MIN,OPT,MAX,BATCH"),
    ("--profile 64x64,64,64x64,1", 2, "--profile takes height x width"),
    ("--profile 64x64,32x32,64x64,1", 2, "not in order"),
    ("--profile 64x64,64x64,64x64,0", 2, "is less than 1"),
    ("--plan-for . --max-batch 3", 2, "--plan-for chooses the shapes and the batch"),
    ("--plan-for . --profile 64x64,64x64,64x64,1", 2, "--plan-for chooses the shapes"),
    ("--recipe gone.toml", 4, "gone.toml cannot be read"),
    ("--recipe broken.toml", 4, "broken.toml is not TOML"),
    ("--recipe unknown.toml", 4, "engine has no 'speed'"),
    ("--recipe kind.toml", 4, "engine.refit is true or false"),
    ("--recipe onnx.toml", 2, "A phone runs the ONNX file, not an engine"),
    ("gone.onnx", 4, "There is no gone.onnx"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG)
@pytest.mark.parametrize("dry_run", [False, True])
def test_wrong_values_are_refused_before_anything_is_built(
    tmp_path: Path, arguments: str, code: int, words: str, dry_run: bool
) -> None:
    Path("broken.toml").write_text("device = ")
    Path("unknown.toml").write_text('device = "x"\n[engine]\nspeed = "fast"\n')
    Path("kind.toml").write_text('device = "x"\n[engine]\nrefit = "yes"\n')
    Path("onnx.toml").write_text('device = "A phone"\n[segment]\nbackend = "ort"\n')
    before = files(tmp_path)
    refused(call(*arguments.split(), *(["--dry-run"] if dry_run else [])), code, words)
    assert files(tmp_path) == before


@pytest.mark.parametrize("option", ["--optimization-level", "--workspace", "--dla-core"])
def test_what_is_no_number_is_a_matter_of_usage(option: str) -> None:
    assert call(option, "much").exit_code == 2


@pytest.mark.parametrize(
    "option",
    [
        "--optimization-level 3",
        "--hardware-compatibility ampere-plus",
        "--version-compatible",
        "--refit",
        f"--dla-core 0 {ONE_SHAPE}",
    ],
)
def test_rtx_says_what_it_has_not(tmp_path: Path, option: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    before = files(tmp_path)
    refused(call("--flavour", "rtx", *option.split()), 2, f"has no {option.split()[0]}")
    assert files(tmp_path) == before


def test_a_stale_file_that_was_picked_is_not_built_from(asked: list[Asked], run: Path) -> None:
    model = small_model()
    entry = model.metadata_props.add()
    entry.key = SOURCE_KEY
    entry.value = json.dumps({"name": "best.safetensors", "sha256": "0" * 64})
    (run / "model.onnx").write_bytes(model.SerializeToString())
    (run / "best.safetensors").write_bytes(b"of a later training")
    refused(call("--fp16"), 4, "fcn-deploy export")
    assert asked == []
    assert only(asked, run / "model.onnx").source == run / "model.onnx"  # named: that one


def test_a_place_that_cannot_be_written_is_found_out_before_the_build(asked: list[Asked]) -> None:
    Path("taken").touch()
    refused(call("-o", "taken/model.plan"), 5, "taken is a file")
    assert asked == []


def test_without_xdg_measurements_lie_below_the_home_folder(
    asked: list[Asked], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert only(asked).cache == tmp_path / "home" / ".cache" / "fcn-deploy"
    assert not (tmp_path / "home").exists()


def test_a_real_engine_by_a_recipe(run: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    # In float32: so small a network's few weights cannot be found again in an FP16 plan.
    Path("box.toml").write_text(RECIPE.replace('"fp16"', '"fp32"'))
    done = call("--recipe", "box.toml", "--max-batch", "3")
    assert done.exit_code == 0, done.output
    assert "Building runs/road/model.plan from runs/road/model.onnx" in done.stderr
    assert "for sm86, sm89: 0.0% of the arithmetic is FP16 (0 of 2 layers" in done.stderr
    assert "Wrote runs/road/model.plan and its passport" in done.stderr
    passport = read_passport(run / "model.plan")
    first, second = OF_RECIPE.profiles
    expected = replace(OF_RECIPE, fp16=False, profiles=(replace(first, max_batch=3), second))
    assert passport.options == expected
    assert [profile.max for profile in passport.profiles] == [(3, 128, 160), (1, 192, 192)]
    assert not Path("cache").exists()  # RTX measures nothing
