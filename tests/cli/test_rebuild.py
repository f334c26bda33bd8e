"""``segment`` with an engine that does not fit: refused, rebuilt or trusted, as a user calls it.

On a FAKE device, so that commands go all the way to masks. The builder of an engine is replaced by
one that writes an engine for the FAKE; all that decides whether it is asked is real.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper
from PIL import Image
from typer.testing import CliRunner, Result

from fake_cuda import FakeCuda
from fake_engines import install_fake, model_of, write_fake_engine
from fake_plan import MAGIC, fake_plan
from fcn_deploy.artifacts import sha256
from fcn_deploy.cli.app import app
from fcn_deploy.engine_files import part_path, passport_path, read_passport
from fcn_deploy.errors import CheckFailedError
from fcn_deploy.onnx_file import read_onnx
from fcn_deploy.passport import HEAD, TRUNK, UPSAMPLING, WHOLE, Passport
from fcn_deploy.plan_name import PlanName
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.spec import SOURCE_KEY
from small_models import photos, small_model

SHAPES = (Shapes((32, 32), (64, 96), (128, 160), 3), Shapes((192, 192), (192, 192), (192, 192), 1))
PROTO = small_model(1, classes=5, stride=8)
REBUILD = "fcn-deploy build-engine"


@dataclass
class Builder:
    """Stands in for the build of an engine; writes one that the FAKE loads.

    Attributes:
        built: What it was asked for: source, plan and options.
        fails: What comes instead of an engine.
    """

    built: list[tuple[Path, Path, EngineOptions]] = field(default_factory=list)
    fails: BaseException | None = None

    def __call__(
        self,
        source: Path,
        path: Path,
        options: EngineOptions,
        *,
        crops: Iterable[NDArray[np.uint8]] | None,
        cache: Path | None,
        on_progress: Callable[[str, int, int], None],
    ) -> Passport:
        assert crops is not None  # it is to be compared
        assert cache == Path("cache/fcn-deploy").absolute()
        self.built.append((source, path, options))
        for step in range(3):
            on_progress("whole: a phase", step, 2)
        if self.fails is not None:
            raise self.fails
        return write(source, path, options)


def write(source: Path, path: Path, options: EngineOptions) -> Passport:
    model = read_onnx(source).proto
    fake = write_fake_engine(path, model, profiles=options.profiles, half=options.fp16)
    options = replace(options, flavour="tensorrt")
    facts = {"source": source.name, "source_sha256": sha256(source), "options": options}
    passport = replace(fake, **facts)  # type: ignore[arg-type]
    passport_path(path).write_text(passport.to_json(), encoding="utf-8")
    return passport


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    install_fake(monkeypatch, fake)
    return fake


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Builder:
    stand_in = Builder()
    monkeypatch.setattr("fcn_deploy.engine.build_engine", stand_in)
    return stand_in


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: FakeCuda) -> Path:
    """A run folder with a sound engine, the newest one, and a photo to segment."""
    folder = tmp_path / "runs" / "road"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(PROTO.SerializeToString())
    options = EngineOptions(profiles=SHAPES, workspace_mib=64, targets=())
    write(folder / "model.onnx", folder / "model.plan", options)
    Image.fromarray(photos(2, 1, 150, 220)[0]).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def segment(*arguments: object, out: str = "out") -> Result:
    command = ["segment", "photo.png", "-o", out, "--tile", "96x128", "--overlap", "32", *arguments]
    return CliRunner().invoke(app, [str(argument) for argument in command])


def mask(out: str = "out") -> NDArray[np.uint8]:
    with Image.open(Path(out) / "mask" / "photo.png") as image:
        return np.asarray(image)


@pytest.fixture
def expected(run: Path) -> NDArray[np.uint8]:
    """The mask by ONNX Runtime."""
    done = segment("--model", run / "model.onnx", "--backend", "ort", out="expected")
    assert done.exit_code == 0, done.output
    return mask("expected")


def refused(result: Result, words: str, remedy: str = REBUILD, code: int = 4) -> None:
    """One reason, the command that mends it, three lines at most, and nothing was begun."""
    assert result.exit_code == code, result.output
    error = result.stderr[result.stderr.index("Error: ") :].strip()
    assert words in " ".join(error.split())
    assert remedy in error
    assert len(error.splitlines()) <= 3
    assert error.count("Error: ") == 1
    assert "Traceback" not in result.output
    assert not Path("out/mask").exists()


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir()}


def edit(plan: Path, **changes: Any) -> None:
    sidecar = passport_path(plan)
    fields = {**json.loads(sidecar.read_text(encoding="utf-8")), **changes}
    sidecar.write_text(json.dumps(fields), encoding="utf-8")


def other_onnx(plan: Path) -> None:
    another = small_model(1, classes=5, stride=8)
    another.doc_string = "exported again"
    plan.with_name("model.onnx").write_bytes(another.SerializeToString())


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another release": (
        lambda plan: edit(plan, version="10.3.0"),
        "was built by tensorrt 10.3.0, this machine has 10.16.1.11",
    ),
    "another GPU": (
        lambda plan: edit(plan, targets=["sm86"]),
        "was built for sm86, this GPU is sm89",
    ),
    "another source": (other_onnx, "was made from another model.onnx than the one beside it"),
    "no trunk": (lambda plan: part_path(plan, TRUNK).unlink(), "model.trunk.plan cannot be read"),
    "no head": (lambda plan: part_path(plan, HEAD).unlink(), "model.head.plan cannot be read"),
    "no weights": (
        lambda plan: part_path(plan, UPSAMPLING).unlink(),
        "model.upsampling.npy cannot be read",
    ),
    "the head of another": (
        lambda plan: part_path(plan, HEAD).write_bytes(part_path(plan, TRUNK).read_bytes()),
        "is not the file that its passport speaks of",
    ),
    "truncated": (
        lambda plan: plan.write_bytes(plan.read_bytes()[:-9]),
        "is not the file that its passport speaks of",
    ),
    "prefixed": (
        lambda plan: plan.write_bytes(b"{}" + plan.read_bytes()),
        "is a plan with something written before it",
    ),
    "random bytes": (
        lambda plan: plan.write_bytes(np.random.default_rng(0).bytes(500)),
        "is not a TensorRT plan, but something else",
    ),
    "another flavour": (
        lambda plan: plan.write_bytes(fake_plan(b"theirs", [], magic=MAGIC["rtx"])),
        "is a plan of rtx, its passport is not",
    ),
    "no passport": (lambda plan: passport_path(plan).unlink(), "has no passport beside it"),
    "an old passport": (lambda plan: edit(plan, format=1), "passport is of another release"),
    "a damaged passport": (lambda plan: passport_path(plan).write_text("{"), "cannot be read"),
}


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        *((fault, False) for fault in FAULTS),
        # Whoever names a file means that file: of what it was made from, nothing is said then.
        *((fault, True) for fault in ("another release", "another GPU", "no trunk", "no passport")),
    ],
)
def test_what_does_not_fit_is_refused_and_rebuilt(
    run: Path, builder: Builder, expected: NDArray[np.uint8], fault: str, named: bool
) -> None:
    plan, (damage, words) = run / "model.plan", FAULTS[fault]
    damage(plan)
    before = contents(run)
    arguments = ("--backend", "trt", *(("--model", plan) if named else ()))
    refused(segment(*arguments), words)
    assert contents(run) == before
    assert builder.built == []

    done = segment(*arguments, "--rebuild")
    assert done.exit_code == 0, done.output
    assert "Building it again." in done.stderr
    assert words in " ".join(done.stderr.split())
    assert (mask() == expected).mean() > 0.999
    ((source, path, options),) = builder.built
    assert (source.resolve(), path.resolve()) == (run / "model.onnx", plan)
    if fault not in ("no passport", "an old passport", "a damaged passport"):
        # As before, but for this machine and with what is installed here.
        assert options == EngineOptions(profiles=SHAPES, workspace_mib=64, flavour="auto")

    again = segment(*arguments, "--rebuild", out="again")
    assert again.exit_code == 0, again.output
    assert len(builder.built) == 1  # what fits is left alone


@pytest.mark.parametrize("named", [True, False], ids=["named", "picked"])
def test_a_missing_plan_is_refused_and_built(
    run: Path, builder: Builder, expected: NDArray[np.uint8], named: bool
) -> None:
    plan = run / "model.plan"
    for role in (WHOLE, TRUNK, HEAD):
        part_path(plan, role).unlink()
    arguments = ("--backend", "trt", "--model", plan if named else run)
    words, remedy = "holds no .plan file", REBUILD
    if named:
        words, remedy = "There is no", "Name an existing model file"
    refused(segment(*arguments), words, remedy)
    assert builder.built == []
    done = segment(*arguments, "--rebuild")
    assert done.exit_code == 0, done.output
    assert (mask() == expected).mean() > 0.999
    ((_, path, options),) = builder.built
    if named:  # its passport is still there
        assert (path, options.workspace_mib) == (plan, 64)
    else:
        assert (path.name, options.fp16) == ("model.fp16.plan", True)


def test_the_library_itself_may_refuse(
    run: Path, builder: Builder, device: FakeCuda, expected: NDArray[np.uint8]
) -> None:
    device.fail_next("deserialize_cuda_engine", log="Version tag does not match", times=1)
    refused(segment("--backend", "trt"), "does not load with tensorrt 10.16.1.11")
    device.fail_next("deserialize_cuda_engine", log="Version tag does not match", times=1)
    done = segment("--backend", "trt", "--rebuild")
    assert done.exit_code == 0, done.output
    assert len(builder.built) == 1
    assert (mask() == expected).mean() > 0.999
    assert not device.live_allocations


def test_what_building_cannot_mend_is_not_built(
    run: Path, builder: Builder, device: FakeCuda
) -> None:
    edit(run / "model.plan", version="10.3.0")
    device.devices = 0
    refused(segment("--backend", "trt", "--rebuild"), "no NVIDIA GPU or driver", "ort", 5)
    device.devices = 1
    refused(segment("--model", run / "gone.onnx", "--rebuild"), "There is no", "Name an existing")
    refused(
        segment("--backend", "trt", "--model", run / "model.onnx", "--rebuild"),
        "runs on the backend ort, not on trt",
        "Pass --backend ort",
        2,
    )
    assert builder.built == []


def test_without_its_source_nothing_can_be_built(run: Path, builder: Builder) -> None:
    (run / "model.onnx").unlink()
    edit(run / "model.plan", version="10.3.0")
    named = ("--model", run / "model.plan", "--rebuild")
    refused(segment(*named), "There is no model.onnx beside", "fcn-deploy build-engine MODEL.onnx")
    refused(segment("--backend", "trt", "--rebuild"), "holds no .onnx file", "fcn-deploy export")
    assert builder.built == []


def test_a_source_that_is_stale_itself_is_not_built_from(run: Path, builder: Builder) -> None:
    (run / "best.safetensors").write_bytes(b"of a later training")
    model = onnx.load(run / "model.onnx")
    source = json.dumps({"name": "best.safetensors", "sha256": "0" * 64})
    properties = {prop.key: prop.value for prop in model.metadata_props}
    helper.set_model_props(model, {**properties, SOURCE_KEY: source})
    onnx.save(model, run / "model.onnx")
    for arguments in (("--backend", "trt"), ("--model", run / "model.plan", "--trust-engine")):
        edit(run / "model.plan", version="10.3.0")
        result = segment(*arguments, "--rebuild")
        refused(result, "was made from another best.safetensors", "fcn-deploy export")
    assert builder.built == []


RECIPE = """
device = "a car's box"
[engine]
precision = "fp16"
optimization_level = 2
[[engine.profiles]]
min = "32x32"
opt = "96x128"
max = "128x160"
max_batch = 2
"""


@pytest.mark.parametrize("passport", [True, False])
def test_a_recipe_says_how_to_build(
    run: Path, builder: Builder, expected: NDArray[np.uint8], passport: bool
) -> None:
    Path("box.toml").write_text(RECIPE)
    if passport:
        edit(run / "model.plan", version="10.3.0")
    else:
        passport_path(run / "model.plan").unlink()
    done = segment("--backend", "trt", "--rebuild", "--recipe", "box.toml")
    assert done.exit_code == 0, done.output
    shapes = Shapes((32, 32), (96, 128), (128, 160), 2)
    asked = EngineOptions(fp16=True, optimization_level=2, profiles=(shapes,))
    assert [options for _, _, options in builder.built] == [asked]
    assert (mask() == expected).mean() > 0.99  # FP16


def test_what_was_fp16_stays_fp16_also_without_a_passport(run: Path, builder: Builder) -> None:
    plan = run / "model.fp16.plan"
    plan.write_bytes(b"damaged")
    done = segment("--model", plan, "--rebuild")
    assert done.exit_code == 0, done.output
    assert [options.fp16 for _, _, options in builder.built] == [True]


def test_an_engine_is_rebuilt_from_the_file_that_it_was_made_from(
    run: Path, builder: Builder
) -> None:
    # Of two ONNX files in a run, the plain one is preferred where none is named.
    from fcn_deploy.onnx_file import to_half

    for file in run.glob("*.plan*"):
        file.unlink()
    (run / "model.fp16.onnx").write_bytes(to_half(PROTO).SerializeToString())
    plan = run / "model.fp16.plan"
    write(run / "model.fp16.onnx", plan, EngineOptions(profiles=SHAPES))
    edit(plan, version="10.3.0")
    done = segment("--backend", "trt", "--rebuild")
    assert done.exit_code == 0, done.output
    assert [source.name for source, _, _ in builder.built] == ["model.fp16.onnx"]


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "Interrupted"),
        (CheckFailedError("The whole engine was to compute in FP16."), 6, "to compute in FP16"),
    ],
)
def test_a_rebuild_that_fails_leaves_what_was_there(
    run: Path, builder: Builder, error: BaseException, code: int, words: str
) -> None:
    edit(run / "model.plan", version="10.3.0")
    before = contents(run)
    builder.fails = error
    refused(segment("--backend", "trt", "--rebuild"), words, "", code)
    assert contents(run) == before


def theirs(folder: Path, *, named: bool) -> Path:
    """A plan as another tool writes it, maybe with our name inside."""
    folder.mkdir(parents=True, exist_ok=True)
    proto = small_model(1, classes=5, stride=8)
    if named:
        spec = model_of(proto).spec
        proto.graph.name = PlanName("whole", "fp32", "0" * 64, spec).to_text()
    shapes = [((1, 32, 32, 3), (1, 64, 64, 3), (2, 256, 256, 3))]
    plan = folder / "theirs.plan"
    plan.write_bytes(fake_plan(proto.SerializeToString(), shapes))
    return plan


@pytest.mark.parametrize("named", [True, False], ids=["name inside", "ONNX beside it"])
def test_a_plan_made_elsewhere_is_taken_on_trust(
    run: Path, builder: Builder, expected: NDArray[np.uint8], named: bool
) -> None:
    plan = theirs(Path("elsewhere"), named=named)
    if not named:
        plan.with_suffix(".onnx").write_bytes(PROTO.SerializeToString())
    refused(segment("--model", plan), "has no passport beside it", "--trust-engine")
    done = segment("--model", plan, "--trust-engine")
    assert done.exit_code == 0, done.output
    # Without a head, crops are merged as logits.
    assert (mask() == expected).mean() > 0.999
    assert builder.built == []
    assert not passport_path(plan).exists()  # trust is for this once


def test_a_plan_in_a_run_folder_is_taken_on_trust_too(run: Path) -> None:
    plan = theirs(Path("runs/theirs"), named=True)
    for arguments in (("--model", plan.parent), ()):
        refused(segment("--backend", "trt", *arguments), "no passport", "--trust-engine")
        done = segment("--backend", "trt", *arguments, "--trust-engine", out="trusted")
        assert done.exit_code == 0, done.output
        assert "theirs.plan on trt" in done.stderr


def test_trust_that_nothing_supports_is_refused(run: Path, builder: Builder) -> None:
    plan = theirs(Path("elsewhere"), named=False)
    refused(
        segment("--model", plan, "--trust-engine"),
        "no passport, no name inside, and no theirs.onnx beside it",
        "Put the ONNX file that it was built from beside it",
    )
    plan.write_bytes(b"no plan")
    refused(segment("--model", plan, "--trust-engine"), "is not a TensorRT plan")
    assert builder.built == []


@pytest.mark.parametrize("fault", ["another release", "another GPU", "truncated", "no head"])
def test_trust_does_not_reach_past_a_passport(run: Path, fault: str) -> None:
    damage, words = FAULTS[fault]
    damage(run / "model.plan")
    refused(segment("--backend", "trt", "--trust-engine"), words)


def test_a_rebuilt_engine_says_what_it_is(run: Path, builder: Builder) -> None:
    edit(run / "model.plan", version="10.3.0")
    assert segment("--backend", "trt", "--rebuild").exit_code == 0
    passport = read_passport(run / "model.plan")
    assert passport.source_sha256 == sha256(run / "model.onnx")
    assert passport.version == "10.16.1.11"
