"""TensorRT: what is refused before its native parser, and why; what needs a GPU is marked ``gpu``.

Refusals are tried on a FAKE device, whose library must not be touched by them. Nothing that runs
there says anything of a GPU.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from fake_cuda import FakeCuda
from fake_engines import install_fake, model_of, write_fake_engine
from fake_plan import MAGIC, VERSIONS, fake_plan
from fcn_deploy.backends.cuda import Cuda
from fcn_deploy.backends.eager import open_eager
from fcn_deploy.backends.ort import OrtBackend
from fcn_deploy.backends.tensorrt_flavour import (
    device_capability,
    has_gpu,
    import_flavour,
    require_gpu,
)
from fcn_deploy.backends.trt import TrtBackend, open_trt
from fcn_deploy.backends.trt_fit import require_fitting
from fcn_deploy.backends.trt_head import EngineUpsampler
from fcn_deploy.cli.app import app
from fcn_deploy.engine import build_engine
from fcn_deploy.engine_files import part_path, passport_path, read_engine, read_passport
from fcn_deploy.errors import (
    DeviceError,
    EngineError,
    FcnDeployError,
    MissingExtraError,
    ModelError,
    ShapeError,
    UsageError,
)
from fcn_deploy.parity import TOLERANCES, compare, generated_crops
from fcn_deploy.passport import HEAD, TRUNK, WHOLE, Passport
from fcn_deploy.plan_name import PlanName, find_name
from fcn_deploy.recipe import EngineOptions, Shapes
from fcn_deploy.segment import Segmenter
from fcn_deploy.tiling_options import Tiling
from small_models import photos, small_model

PROTO = small_model(1, classes=5, stride=8)
REBUILD = "fcn-deploy build-engine"


# Refusals, on a FAKE device


@pytest.fixture(params=["tensorrt", "rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def forbid_parser(patch: pytest.MonkeyPatch, flavour: str) -> None:
    """Let every touch of the native library's loading half be an AssertionError."""

    def touched(*_: object) -> None:
        raise AssertionError("the native parser was asked before the engine was checked")

    module = sys.modules[{"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}[flavour]]
    patch.setattr(module, "Runtime", touched)


@pytest.fixture
def plan(flavour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound engine on a machine that could run it, and a parser that must not be asked."""
    install_fake(monkeypatch, FakeCuda(), flavour=flavour)
    path = tmp_path / "model.plan"
    write_fake_engine(path, PROTO, flavour=flavour, targets=("sm89",))
    forbid_parser(monkeypatch, flavour)
    return path


def refused(path: Path, words: str, *, trust: bool = False) -> ModelError:
    with pytest.raises(ModelError, match=words) as caught:
        open_trt(path, trust_engine=trust)
    assert caught.value.exit_code == 4
    assert len(str(caught.value).splitlines()) <= 3
    return caught.value


def test_a_sound_engine_reaches_the_parser(plan: Path) -> None:
    with pytest.raises(AssertionError, match="native parser was asked"):
        open_trt(plan)


def changed(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "random": lambda content: np.random.default_rng(0).bytes(len(content)),
    "zeros": lambda content: bytes(len(content)),
    "a web page": lambda _: b"<!DOCTYPE html><title>404</title>",
    "magic alone": lambda content: content[:4],
    "header alone": lambda content: content[:64],
    "truncated": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "prefixed": lambda content: b'\x0e\0\0\0{"classes": 5}' + content,
    "with a trailer": lambda content: content + b"\n",
    "a byte changed": changed,
    "twice": lambda content: content + content,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("role", [WHOLE, TRUNK, HEAD])
def test_a_damaged_plan_never_reaches_the_parser(plan: Path, damage: str, role: str) -> None:
    path = part_path(plan, role)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    error = refused(plan, "is not a TensorRT plan|is damaged|before it|is not the file that its")
    assert isinstance(error, EngineError)
    assert str(path) in error.problem
    assert REBUILD in error.remedy


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.booleans())
def test_no_bytes_reach_the_parser_or_escape_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, magic: bool, of_passport: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.engine.plan"
    if not path.is_file():
        write_fake_engine(path, PROTO)
    changing = passport_path(path) if of_passport else path
    before = changing.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        install_fake(patch, FakeCuda())
        forbid_parser(patch, "tensorrt")
        try:
            changing.write_bytes(MAGIC["tensorrt"] * magic + content)
            refused(path, "plan|passport")
        finally:
            changing.write_bytes(before)


def test_an_engine_of_another_release_says_which_is_here(plan: Path, flavour: str) -> None:
    passport = replace(read_passport(plan), version="1.2.3")
    passport_path(plan).write_text(passport.to_json())
    here = VERSIONS[MAGIC[flavour]]
    error = refused(plan, rf"was built by {flavour} 1\.2\.3, this machine has {here}")
    assert REBUILD in error.remedy


def test_an_engine_of_another_gpu_says_which_is_here(plan: Path) -> None:
    passport = replace(read_passport(plan), targets=("sm86", "sm120"))
    passport_path(plan).write_text(passport.to_json())
    assert REBUILD in refused(plan, "was built for sm86, sm120, this GPU is sm89").remedy


def test_a_plan_of_the_other_flavour_in_its_place_is_refused(plan: Path, flavour: str) -> None:
    other = {"tensorrt": "rtx", "rtx": "tensorrt"}[flavour]
    content = fake_plan(b"theirs", [], magic=MAGIC[other])
    plan.write_bytes(content)
    refused(plan, f"is a plan of {other}, its passport is not")


def test_a_flavour_that_is_not_installed_is_named_with_its_command(
    tmp_path: Path, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(monkeypatch, FakeCuda(), flavour=flavour)
    write_fake_engine(tmp_path / "model.plan", PROTO, flavour=flavour)
    module, extra = {"tensorrt": ("tensorrt", "trt"), "rtx": ("tensorrt_rtx", "rtx")}[flavour]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"fcn-deploy\[{extra}\]"):
        open_trt(tmp_path / "model.plan")


def test_engines_run_on_no_cpu(plan: Path) -> None:
    with pytest.raises(UsageError, match="run on a GPU"):
        open_trt(plan, "cpu")


def test_trust_is_no_way_past_a_passport(plan: Path) -> None:
    part_path(plan, TRUNK).unlink()
    refused(plan, "trunk.plan cannot be read", trust=True)


def test_without_a_passport_only_trust_reaches_the_parser(plan: Path) -> None:
    passport_path(plan).unlink()
    assert "--trust-engine" in refused(plan, "has no passport").remedy
    refused(plan, "Nothing says which classes", trust=True)
    plan.with_suffix(".onnx").write_bytes(PROTO.SerializeToString())
    with pytest.raises(AssertionError, match="native parser was asked"):
        open_trt(plan, trust_engine=True)
    plan.write_bytes(b"x" + plan.read_bytes())
    refused(plan, "something written before it", trust=True)


# What fits which machine


@pytest.fixture(scope="module")
def passport(tmp_path_factory: pytest.TempPathFactory) -> Passport:
    path = tmp_path_factory.mktemp("passport") / "model.plan"
    return write_fake_engine(path, PROTO, version="10.16.1.11", targets=("sm86",))


def fits(passport: Passport, version: str, device: str) -> bool:
    try:
        require_fitting(Path("model.plan"), passport, version, device)
    except EngineError:
        return False
    return True


@pytest.mark.parametrize(
    ("version", "plain", "compatible"),
    [
        ("10.16.1.11", True, True),
        ("10.16.1.12", False, True),
        ("11.4.0.106", False, True),
        ("10.3.0", False, False),  # the other way around it has never worked
        ("10.2.99.99", False, False),
        ("10.16.1", False, False),
    ],
)
def test_which_releases_load_a_plan(
    passport: Passport, version: str, plain: bool, compatible: bool
) -> None:
    later = replace(passport, options=replace(passport.options, version_compatible=True))
    assert fits(passport, version, "sm86") == plain
    assert fits(later, version, "sm86") == compatible


@pytest.mark.parametrize(
    ("targets", "compatibility", "device", "right"),
    [
        (("sm86",), "none", "sm86", True),
        (("sm86",), "none", "sm89", False),
        (("sm86", "sm120"), "none", "sm120", True),
        (("portable",), "none", "sm75", True),  # the library itself will say
        (("sm86",), "ampere-plus", "sm120", True),
        (("sm86",), "ampere-plus", "sm87", True),
        (("sm86",), "ampere-plus", "sm75", False),
        (("sm86",), "same-compute-capability", "sm86", True),
        (("sm86",), "same-compute-capability", "sm87", False),
        ((), "none", "sm86", False),
    ],
)
def test_which_gpus_run_a_plan(
    passport: Passport, targets: tuple[str, ...], compatibility: str, device: str, right: bool
) -> None:
    options = replace(passport.options, hardware_compatibility=compatibility)
    built = replace(passport, targets=targets, options=options)
    assert fits(built, "10.16.1.11", device) == right


# What the library refuses all the same


@pytest.fixture
def device(flavour: str, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    install_fake(monkeypatch, fake, flavour=flavour)
    return fake


def test_a_library_that_loads_nothing_is_quoted(
    device: FakeCuda, flavour: str, tmp_path: Path
) -> None:
    write_fake_engine(tmp_path / "model.plan", PROTO, flavour=flavour)
    device.fail_next("deserialize_cuda_engine", log="a plugin is missing")
    with pytest.raises(EngineError, match=r"model\.plan does not load with .*a plugin is missing"):
        open_trt(tmp_path / "model.plan")
    assert not device.live_allocations
    assert not device.live_streams


@pytest.mark.parametrize("role", [TRUNK, HEAD])
def test_a_part_that_does_not_load_gives_everything_back(
    device: FakeCuda, flavour: str, role: str, tmp_path: Path
) -> None:
    write_fake_engine(tmp_path / "model.plan", PROTO, flavour=flavour)
    device.fail_next("deserialize_cuda_engine", after=1 if role == TRUNK else 2)
    with pytest.raises(EngineError, match=rf"the {role} of model\.plan does not load"):
        open_trt(tmp_path / "model.plan")
    assert not device.live_allocations
    assert not device.live_streams


def test_a_trusted_plan_of_another_release_is_refused_by_the_library(
    device: FakeCuda, flavour: str, tmp_path: Path
) -> None:
    path = tmp_path / "theirs.plan"
    write_fake_engine(path, PROTO, flavour=flavour, version="9.1.0")
    passport_path(path).unlink()
    (tmp_path / "theirs.onnx").write_bytes(PROTO.SerializeToString())
    with pytest.raises(EngineError, match=r"theirs\.plan does not load with") as caught:
        open_trt(path, trust_engine=True)
    assert REBUILD in caught.value.remedy


def test_rtx_says_itself_that_a_plan_is_for_another_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(monkeypatch, FakeCuda(capability=(9, 0)), flavour="rtx")
    write_fake_engine(tmp_path / "model.plan", PROTO, flavour="rtx", capability=(8, 6))
    with pytest.raises(EngineError, match="it was not built for this GPU") as caught:
        open_trt(tmp_path / "model.plan")
    assert REBUILD in caught.value.remedy


@pytest.mark.parametrize(
    ("bits", "words", "rebuilding_helps"),
    [
        (1, "another release of TensorRT-RTX", True),
        (2, "not built for this GPU", True),
        (4, "driver here is too old", False),
        (8, "CUDA runtime here is too old", False),
        (16, "too little memory", False),
        (32, "it is damaged", True),
        (64, "CUDA does not work", False),
        (2 | 4, "not built for this GPU, the NVIDIA driver here is too old", True),
    ],
)
def test_what_rtx_diagnoses_is_said_in_words(
    bits: int, words: str, rebuilding_helps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(monkeypatch, FakeCuda(), flavour="rtx")
    write_fake_engine(tmp_path / "model.plan", PROTO, flavour="rtx")
    module: Any = sys.modules["tensorrt_rtx"]

    def invalid(_runtime: object, _plan: bytes) -> tuple[Any, int]:
        return module.EngineValidity.INVALID, bits

    monkeypatch.setattr(module.Runtime, "get_engine_validity", invalid)
    with pytest.raises(FcnDeployError, match=words) as caught:
        open_trt(tmp_path / "model.plan")
    # Only what building again would mend may be answered by --rebuild.
    assert type(caught.value) is (EngineError if rebuilding_helps else DeviceError)


def test_a_trusted_plan_runs_as_a_whole(device: FakeCuda, flavour: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.plan"
    named = small_model(1, classes=5, stride=8)
    spec = model_of(named).spec
    named.graph.name = PlanName("whole", "fp32", "0" * 64, spec).to_text()
    shapes = [((1, 32, 32, 3), (1, 64, 64, 3), (2, 128, 128, 3))]
    path.write_bytes(fake_plan(named.SerializeToString(), shapes, magic=MAGIC[flavour]))
    crops = photos(3, 2, 64, 96)
    with OrtBackend(model_of(named), Path("oracle"), "CPUExecutionProvider") as oracle:
        expected = oracle.logits(crops)
    with open_trt(path, trust_engine=True) as engine:
        assert engine.spec == replace(spec, training={})
        assert engine.limits.max_hw == (128, 128)
        assert engine.upsampling is None
        np.testing.assert_array_equal(engine.logits(crops), expected)
        np.testing.assert_array_equal(engine.labels(crops), expected.argmax(1))
        with pytest.raises(ShapeError):
            engine.labels(photos(3, 1, 160, 64))
    assert not device.live_allocations


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUpsampler]:
    path = tmp_path_factory.mktemp("head") / "model.plan"
    write_fake_engine(path, small_model(3, classes=4, stride=32))
    with pytest.MonkeyPatch.context() as patch:  # the fake is there no longer than it is loaded
        install_fake(patch, FakeCuda(seed=3))
        engine = open_trt(path)
    with engine:
        assert engine.upsampling is not None
        yield engine.upsampling


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 400), st.integers(2, 3000))
def test_pieces_for_the_head_cover_every_window_once(
    head: EngineUpsampler, rows: int, columns: int
) -> None:
    windows = np.zeros((rows - 1, columns - 1), np.uint8)
    for high, wide in head._pieces(rows, columns):
        windows[high, wide] += 1
        cells = (1, high.stop - high.start + 1, wide.stop - wide.start + 1)
        assert head._engine.profiles[0].takes(cells)
    assert (windows == 1).all()


@pytest.mark.parametrize("cells", [(2, 2), (2, 130), (9, 129), (10, 130), (21, 300)])
def test_bands_larger_than_the_head_are_decided_as_on_the_host(
    head: EngineUpsampler, cells: tuple[int, int]
) -> None:
    scores = np.random.default_rng(0).standard_normal((*cells, 4)).astype(np.float32)
    left = np.arange(cells[1] - 1)
    expected, places = head._host.pixels(scores, left)
    for _ in range(2):
        found, begins = head.pixels(scores, left)
        np.testing.assert_array_equal(begins, places)
        assert (found == expected).mean() > 0.9999  # but for ties


# Real plans without a GPU


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_three_lines(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    source, plan = tmp_path / "model.onnx", tmp_path / "model.plan"
    source.write_bytes(PROTO.SerializeToString())
    options = EngineOptions(flavour="rtx", profiles=(Shapes(opt_hw=(64, 64), max_hw=(64, 64)),))
    build_engine(source, plan, options, crops=None)
    with pytest.raises(DeviceError) as caught:
        open_trt(plan)
    assert len(str(caught.value).splitlines()) == 3
    assert "no NVIDIA GPU or driver" in str(caught.value)
    assert "--backend ort" in str(caught.value)
    # What is wrong with the engine is found out before the GPU is asked.
    plan.write_bytes(plan.read_bytes() + b"\0")
    refused(plan, "is damaged")


def test_missing_flavours_name_the_install_command() -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtraError, match=r"fcn-deploy\[trt\]"):
            import_flavour("tensorrt")


# On a GPU

PROFILES = (
    Shapes((32, 32), (256, 256), (512, 512), 4),
    Shapes((544, 960), (544, 960), (544, 960), 1),
)
RTX_GPUS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""What TensorRT-RTX builds for, by the enum of release 1.7."""


@pytest.fixture(scope="module", params=["tensorrt", "rtx"])
def present(request: pytest.FixtureRequest) -> str:
    """Each flavour that is installed and runs on this GPU."""
    try:
        import_flavour(request.param)
    except MissingExtraError as error:
        pytest.skip(error.problem)
    if request.param == "rtx" and device_capability(require_gpu()) not in RTX_GPUS:
        pytest.skip(f"TensorRT-RTX does not run on {device_capability(require_gpu())}")
    return str(request.param)


@pytest.fixture(scope="module")
def built(present: str, toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real FP16 engine of a trained network, with two profiles."""
    path = tmp_path_factory.mktemp(f"gpu-{present}") / "model.fp16.plan"
    options = EngineOptions(fp16=True, flavour=present, profiles=PROFILES)
    build_engine(toy_onnx, path, options, crops=None)
    return path


@pytest.fixture(scope="module")
def eager(toy_checkpoint: Path) -> Any:
    with open_eager(toy_checkpoint, "cpu") as backend:
        yield backend


def opened(path: Path, *, graphs: bool) -> TrtBackend:
    contained, contents = read_engine(path)
    library, cuda = import_flavour(contained.flavour), Cuda(require_gpu())
    return TrtBackend(path, contained, contents, library, cuda, graphs=graphs)


def free_bytes() -> int:
    return int(require_gpu().cudaMemGetInfo()[1])


@pytest.mark.gpu
def test_labels_and_logits_agree_with_eager(built: Path, eager: Any) -> None:
    # Labels are the whole engine's; logits are the trunk's, upsampled on the host.
    with open_trt(built) as engine:
        compare(eager, engine, generated_crops(), TOLERANCES["fp16"]).require()


@pytest.mark.gpu
def test_every_shape_and_batch_of_both_profiles(built: Path, eager: Any) -> None:
    sizes = [(32, 32), (64, 512), (512, 64), (256, 320), (512, 512), (96, 96)]
    shapes = [(batch, *hw) for hw in sizes for batch in (1, 2, 4)] + [(1, 544, 960)]
    with open_trt(built) as engine:
        batches = (photos(seed, *shape) for seed, shape in enumerate(shapes))
        compare(eager, engine, batches, TOLERANCES["fp16"]).require()
        for seed, shape in enumerate(shapes):  # all of them again, now that each has been seen
            crops = photos(seed, *shape)
            np.testing.assert_array_equal(engine.labels(crops), engine.labels(crops))


@pytest.mark.gpu
@pytest.mark.parametrize("tiling", [Tiling((256, 320), 64), Tiling((512, 512), halo=128)])
def test_tiles_through_the_head_agree_with_eager(built: Path, eager: Any, tiling: Tiling) -> None:
    image = photos(5, 1, 1100, 1300)[0]
    expected = Segmenter(eager).predict(image, tiling).labels
    with open_trt(built) as engine:
        assert engine.upsampling is not None
        for _ in range(3):
            found = Segmenter(engine).predict(image, tiling).labels
            assert found.shape == image.shape[:2]
            assert (found == expected).mean() > 0.995


@pytest.mark.gpu
def test_shapes_outside_of_every_profile_are_refused(built: Path) -> None:
    with open_trt(built) as engine:
        for shape in ((5, 32, 32), (2, 544, 960), (1, 544, 928), (1, 1024, 1024), (1, 33, 32)):
            for run in (engine.labels, engine.scores):
                with pytest.raises(ShapeError):
                    run(np.zeros((*shape, 3), np.uint8))
        assert engine.labels(photos(0, 1, 64, 64)).shape == (1, 64, 64)  # it goes on


@pytest.mark.gpu
def test_graphs_change_no_result(built: Path) -> None:
    image = photos(7, 1, 700, 900)[0]
    results: list[list[NDArray[Any]]] = []
    for graphs in (False, True):
        with opened(built, graphs=graphs) as engine:
            found: list[NDArray[Any]] = []
            for seed in range(4):  # the second run of a shape records, later ones launch
                crops = photos(seed, 2, 256, 320)
                found += [engine.labels(crops), engine.scores(crops)]
                found.append(Segmenter(engine).predict(image, Tiling((256, 320), 64)).labels)
            results.append(found)
    for without, recorded in zip(*results, strict=True):
        np.testing.assert_array_equal(without, recorded)


@pytest.mark.gpu
def test_no_memory_is_lost_over_a_thousand_runs(built: Path) -> None:
    crops = photos(0, 1, 128, 128)
    with open_trt(built) as engine:
        for _ in range(5):
            engine.labels(crops)
        before = free_bytes()
        for _ in range(1000):
            engine.labels(crops)
        assert free_bytes() == before


@pytest.mark.gpu
def test_no_memory_is_lost_over_a_thousand_tiles(built: Path) -> None:
    image = photos(1, 1, 640, 640)[0]
    tiling = Tiling((128, 128), 64)
    with open_trt(built) as engine:
        segmenter = Segmenter(engine)
        first = segmenter.predict(image, tiling).labels
        segmenter.predict(image, tiling)
        before = free_bytes()
        runs = -(-1000 // len(segmenter.plan((640, 640), tiling)))
        for _ in range(runs):
            np.testing.assert_array_equal(segmenter.predict(image, tiling).labels, first)
        assert free_bytes() == before


@pytest.mark.gpu
def test_closing_gives_the_memory_back(built: Path) -> None:
    open_trt(built).close()  # what the driver itself takes at first stays taken
    before = free_bytes()
    for _ in range(10):
        with open_trt(built) as engine:
            engine.labels(photos(0, 4, 512, 512))
    assert free_bytes() >= before - (16 << 20)


@pytest.mark.gpu
def test_kernels_that_are_read_back_are_fp16(built: Path) -> None:
    kernels = read_passport(built).precision.kernels
    assert kernels is not None, "the inspector says nothing of this flavour's engines"
    assert kernels.get("FP16 products", 0) > 0, kernels
    assert "float32 products" not in kernels


@pytest.mark.gpu
def test_the_name_of_an_engine_is_the_one_it_was_given(built: Path, toy_onnx: Path) -> None:
    contained, contents = read_engine(built)
    digest = hashlib.sha256(toy_onnx.read_bytes()).hexdigest()
    library = import_flavour(contained.flavour)
    for role in (WHOLE, TRUNK, HEAD):
        expected = PlanName(role, "fp16", digest, contained.spec)
        runtime = library.trt.Runtime(library.logger)
        engine = runtime.deserialize_cuda_engine(contents[role])
        assert engine is not None, library.first_error
        assert engine.name == expected.to_text()
        assert find_name(contents[role]) == replace(
            expected, spec=replace(contained.spec, training={})
        )


@pytest.mark.gpu
def test_a_plan_without_its_passport_runs_where_it_is_trusted(built: Path, tmp_path: Path) -> None:
    lost = tmp_path / "theirs.plan"
    lost.write_bytes(built.read_bytes())
    with pytest.raises(EngineError, match="has no passport"):
        open_trt(lost)
    crops = photos(2, 1, 256, 256)
    with open_trt(lost, trust_engine=True) as trusted, open_trt(built) as engine:
        np.testing.assert_array_equal(trusted.labels(crops), engine.labels(crops))


@pytest.mark.gpu
def test_an_engine_of_another_release_is_refused(built: Path, tmp_path: Path) -> None:
    for file in built.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    foreign = tmp_path / built.name
    passport_path(foreign).write_text(replace(read_passport(built), version="0.1").to_json())
    with pytest.raises(EngineError, match=r"was built by \w+ 0\.1"):
        open_trt(foreign)


@pytest.mark.gpu
def test_rtx_refuses_a_gpu_that_it_does_not_know_in_words(toy_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    here = device_capability(require_gpu())
    if here in RTX_GPUS:
        pytest.skip(f"TensorRT-RTX knows {here}")
    plan = tmp_path / "model.fp16.plan"
    options = EngineOptions(fp16=True, flavour="rtx", profiles=(PROFILES[0],))
    build_engine(toy_onnx, plan, options, crops=None)  # builds anywhere, for others
    with pytest.raises((EngineError, DeviceError), match="it was not built for this GPU"):
        open_trt(plan)
    named = tmp_path / "named.plan"
    build_engine(toy_onnx, named, replace(options, targets=("sm86", "sm89")), crops=None)
    with pytest.raises(EngineError, match=f"was built for sm86, sm89, this GPU is {here}"):
        open_trt(named)


@pytest.mark.gpu
def test_masks_of_the_command_are_those_of_onnx_runtime(
    built: Path, toy_onnx: Path, toy_data: Path, tmp_path: Path
) -> None:
    def masks(out: str, *arguments: object) -> dict[str, NDArray[np.uint8]]:
        images = toy_data / "val" / "images"
        command = ["segment", images, "-o", tmp_path / out, *arguments]
        result = CliRunner().invoke(app, [str(argument) for argument in command])
        assert result.exit_code == 0, result.output
        return {p.stem: np.asarray(Image.open(p)) for p in (tmp_path / out / "mask").iterdir()}

    for number, tile in enumerate((("--tile", "whole"), ("--tile", "64x64", "--overlap", "32"))):
        found = masks(f"trt{number}", "--model", built, "--backend", "trt", *tile)
        expected = masks(f"ort{number}", "--model", toy_onnx, "--backend", "ort", *tile)
        assert found.keys() == expected.keys()
        for name, mask in expected.items():
            assert (found[name] == mask).mean() > 0.995
