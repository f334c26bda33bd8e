"""Options of a build: what a flavour lacks is refused, what it has arrives in its configuration.

Of standard TensorRT there is no library where these tests run: a FAKE with the names of each
release writes down what is asked of it. TensorRT-RTX is real.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fake_builder import Call, FakeBuilding
from fake_engines import model_of
from fcn_deploy.backends.tensorrt_flavour import Flavour, import_flavour
from fcn_deploy.engine.configure import configure, require_offered
from fcn_deploy.engine.network import parse
from fcn_deploy.errors import ModelError, UsageError
from fcn_deploy.onnx_parts import GraphPart, parts_of
from fcn_deploy.passport import Profile
from fcn_deploy.recipe import EngineOptions, Shapes
from small_models import small_model

RELEASES = ["10.3", "10.16", "11.4"]
SHAPES = (Shapes((32, 64), (96, 128), (160, 192), 2), Shapes((64, 64), (64, 64), (64, 64), 8))
WHOLE = parts_of(model_of(small_model()), SHAPES)[0]
PLAIN = EngineOptions(flavour="tensorrt", profiles=SHAPES)
RTX = EngineOptions(flavour="rtx", profiles=SHAPES)


@pytest.fixture
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    return import_flavour("rtx")


def configured(
    building: FakeBuilding,
    options: EngineOptions,
    *,
    part: GraphPart = WHOLE,
    timing_cache: bytes | None = None,
) -> list[Call]:
    """What the options add to a configuration that has none."""
    require_offered(building.flavour, options)
    config = configure(building.flavour, building.network, part, options, timing_cache)
    assert config is building.config
    resized = ("set_preview_feature", ("PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10", True))
    always = [
        ("=profiling_verbosity", ("ProfilingVerbosity.DETAILED",)),
        *([] if building.flavour.version == "10.3.0" else [resized]),
        *[("add_optimization_profile", (profile,)) for profile in building.profiles],
    ]
    assert building.calls[: len(always)] == always
    return building.calls[len(always) :]


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_profiles_arrive_with_channels_last(release: str) -> None:
    building = FakeBuilding(release)
    assert configured(building, PLAIN) == []
    assert [profile.calls for profile in building.profiles] == [
        [("set_shape", ("image", (1, 32, 64, 3), (1, 96, 128, 3), (2, 160, 192, 3)))],
        [("set_shape", ("image", (1, 64, 64, 3), (1, 64, 64, 3), (8, 64, 64, 3)))],
    ]


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        (
            {"workspace_mib": 300},
            [("set_memory_pool_limit", ("MemoryPoolType.WORKSPACE", 300 << 20))],
        ),
        ({"optimization_level": 0}, [("=builder_optimization_level", (0,))]),
        ({"optimization_level": 5}, [("=builder_optimization_level", (5,))]),
        (
            {"hardware_compatibility": "ampere-plus"},
            [("=hardware_compatibility_level", ("HardwareCompatibilityLevel.AMPERE_PLUS",))],
        ),
        ({"version_compatible": True}, [("set_flag", ("BuilderFlag.VERSION_COMPATIBLE",))]),
        ({"refit": True}, [("set_flag", ("BuilderFlag.REFIT",))]),
        (
            {"dla_core": 1},
            [
                ("=default_device_type", ("DeviceType.DLA",)),
                ("=DLA_core", (1,)),
                ("set_flag", ("BuilderFlag.GPU_FALLBACK",)),
            ],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_option_arrives_in_every_release(
    release: str, changes: dict[str, Any], calls: list[Call]
) -> None:
    building = FakeBuilding(release, dla_cores=2)
    assert configured(building, replace(PLAIN, **changes)) == calls


def test_all_options_together_arrive(release: str) -> None:
    options = replace(
        PLAIN,
        workspace_mib=64,
        optimization_level=3,
        hardware_compatibility="ampere-plus",
        version_compatible=True,
        refit=True,
        dla_core=0,
    )
    calls = configured(FakeBuilding(release, dla_cores=1), options, timing_cache=b"earlier")
    assert {name for name, _ in calls} == {
        "set_memory_pool_limit",
        "=builder_optimization_level",
        "=hardware_compatibility_level",
        "set_flag",
        "=default_device_type",
        "=DLA_core",
        "create_timing_cache",
        "set_timing_cache",
    }


def test_the_same_capability_is_newer_than_the_oldest_release(release: str) -> None:
    options = replace(PLAIN, hardware_compatibility="same-compute-capability")
    building = FakeBuilding(release)
    if release == "10.3":
        with pytest.raises(UsageError, match=r"tensorrt 10\.3\.0 has no hardware comp") as caught:
            configured(building, options)
        assert "10.16" in caught.value.remedy
        return
    level = "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"
    assert configured(building, options) == [("=hardware_compatibility_level", (level,))]


@pytest.mark.parametrize("earlier", [b"", b"measurements of an earlier build"])
def test_measurements_go_into_the_build(release: str, earlier: bytes) -> None:
    building = FakeBuilding(release)
    assert configured(building, PLAIN, timing_cache=earlier) == [
        ("create_timing_cache", (earlier,)),
        ("set_timing_cache", (building.cache, ("ignore_mismatch", False))),
    ]


@pytest.mark.parametrize(("core", "there"), [(0, 0), (2, 2), (7, 1)])
def test_an_accelerator_that_is_not_there_is_refused(release: str, core: int, there: int) -> None:
    building = FakeBuilding(release, dla_cores=there)
    with pytest.raises(UsageError, match=f"no DLA core {core} here: .* finds {there}") as caught:
        configured(building, replace(PLAIN, dla_core=core))
    assert "Orin" in caught.value.remedy


def test_shapes_that_the_library_refuses_are_an_error_in_words(release: str) -> None:
    building = FakeBuilding(release, takes_profiles=False)
    building.flavour.messages.append("MIN<=OPT<=MAX is not satisfied")
    with pytest.raises(ModelError, match="tensorrt refuses the shapes: MIN<=OPT<=MAX"):
        configured(building, PLAIN)


def test_tensorrt_builds_for_its_own_gpu_alone(release: str) -> None:
    with pytest.raises(UsageError, match="builds for the GPU it runs on, not for --target") as said:
        require_offered(FakeBuilding(release).flavour, replace(PLAIN, targets=("sm86",)))
    assert "--flavour rtx" in said.value.remedy


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"optimization_level": 0}, "--optimization-level"),
        ({"optimization_level": 3}, "--optimization-level"),
        ({"hardware_compatibility": "ampere-plus"}, "--hardware-compatibility"),
        ({"version_compatible": True}, "--version-compatible"),
        ({"refit": True}, "--refit"),
        ({"dla_core": 0}, "--dla-core"),
    ],
)
def test_rtx_refuses_what_it_has_not(rtx: Flavour, changes: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=f"rtx [0-9.]+ has no {option}: ") as caught:
        require_offered(rtx, replace(RTX, **changes))
    assert caught.value.exit_code == 2
    assert "--flavour tensorrt" in caught.value.remedy


def test_rtx_takes_targets_and_a_workspace(rtx: Flavour) -> None:
    options = replace(RTX, targets=("sm86", "sm120"), workspace_mib=77)
    require_offered(rtx, options)
    network = parse(rtx, WHOLE, "a test", "a name")
    config = configure(rtx, network, WHOLE, options, None)
    known = rtx.trt.ComputeCapability
    assert config.num_compute_capabilities == 2
    targets = [config.get_compute_capability(index) for index in range(2)]
    assert targets == [known.SM86, known.SM120]
    assert config.get_memory_pool_limit(rtx.trt.MemoryPoolType.WORKSPACE) == 77 << 20
    assert config.num_optimization_profiles == 2
    assert config.profiling_verbosity == rtx.trt.ProfilingVerbosity.DETAILED
    assert network.definition.name == "a name"


def test_rtx_without_options_keeps_its_own_defaults(rtx: Flavour) -> None:
    network = parse(rtx, WHOLE, "a test", "a name")
    untouched = network.builder.create_builder_config()
    config = configure(rtx, network, WHOLE, RTX, None)
    workspace = rtx.trt.MemoryPoolType.WORKSPACE
    assert config.get_memory_pool_limit(workspace) == untouched.get_memory_pool_limit(workspace)
    assert config.num_compute_capabilities == untouched.num_compute_capabilities == 0


@pytest.mark.parametrize("target", ["sm42", "86", "name", "", "__doc__", "NONE"])
def test_rtx_names_the_targets_that_it_knows(rtx: Flavour, target: str) -> None:
    network = parse(rtx, WHOLE, "a test", "a name")
    options = replace(RTX, targets=("sm86", target))
    with pytest.raises(UsageError, match=f"cannot build for {target.lower()}") as caught:
        configure(rtx, network, WHOLE, options, None)
    assert "sm86" in caught.value.remedy
    assert "sm120" in caught.value.remedy


def test_rtx_refuses_shapes_in_its_own_words(rtx: Flavour) -> None:
    wrong = replace(WHOLE, profiles=(Profile((1, 64, 64), (1, 32, 32), (1, 96, 96)),))
    network = parse(rtx, wrong, "a test", "a name")
    with pytest.raises(ModelError, match=r"rtx refuses the shapes: .*MIN<=OPT<=MAX"):
        configure(rtx, network, wrong, RTX, None)
