"""Names of TensorRT that we use exist in every flavour that they are used with.

The lists in tests/data/tensorrt_api were read from the real Python bindings of each release. Where
only some releases have a name, it must be in ``GUARDED`` below, with the guard that the code has.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import fcn_deploy

PACKAGE = Path(fcn_deploy.__file__).parent
LISTS = sorted((Path(__file__).parents[1] / "data" / "tensorrt_api").glob("*.json"))
API = {path.stem: json.loads(path.read_text()) for path in LISTS}
FILES = sorted(
    [
        *(PACKAGE / "engine").glob("*.py"),
        PACKAGE / "backends" / "tensorrt_flavour.py",
        PACKAGE / "backends" / "trt_engine.py",
        PACKAGE / "backends" / "trt_lane.py",
    ]
)

OBJECTS = {
    "trt": "top",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile",
    "parser": "OnnxParser",
    "first": "ParserError",
    "layer": "ILayer",
    "runtime": "Runtime",
    "_runtime": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime_config": "IRuntimeConfig",
    "_compiled": "IRuntimeCache",
    "inspector": "EngineInspector",
    "cache": "ITimingCache",
    "types": "LayerType",
    "operations": "ElementWiseOperation",
}
"""What variables of these names hold in the files that use TensorRT."""

GUARDED = {
    "top.ComputeCapability": "is_rtx",
    "top.CudaGraphStrategy": "is_rtx",
    "top.EngineInvalidityDiagnostics": "is_rtx",
    "top.EngineValidity": "is_rtx",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": "is_rtx",
    "EngineValidity.INVALID": "is_rtx",
    "IBuilderConfig.num_compute_capabilities": "is_rtx",
    "IBuilderConfig.set_compute_capability": "is_rtx",
    "ICudaEngine.create_runtime_config": "is_rtx",
    "IRuntimeCache.deserialize": "is_rtx",
    "IRuntimeCache.serialize": "is_rtx",
    "IRuntimeConfig.create_runtime_cache": "is_rtx",
    "IRuntimeConfig.cuda_graph_strategy": "is_rtx",
    "IRuntimeConfig.set_execution_context_allocation_strategy": "is_rtx",
    "IRuntimeConfig.set_runtime_cache": "is_rtx",
    "Runtime.get_engine_validity": "is_rtx",
}


def members(release: str, owner: str) -> set[str]:
    return set(API[release].get(owner, ()))


def owner_of(node: ast.expr) -> str | None:
    """The class of the library that an expression is of, by the names in OBJECTS."""
    if isinstance(node, ast.Name):
        return OBJECTS.get(node.id)
    if isinstance(node, ast.Attribute):
        if node.attr == "trt":
            return "top"
        inner = owner_of(node.value)
        if inner == "top":
            return node.attr  # an enumeration or class
        if node.attr in OBJECTS and node.attr != "trt":
            return OBJECTS[node.attr]
    return None


def used() -> set[tuple[str, str, str]]:
    """File, class and member of each use."""
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                owner = owner_of(node.value)
                if owner is not None and not node.attr.startswith("__"):
                    found.add((path.name, owner, node.attr))
    return found


USED = sorted(used())


def test_the_scan_finds_what_is_there() -> None:
    names = {f"{owner}.{member}" for _, owner, member in USED}
    assert len(names) > 60
    for name in (
        "top.Builder",
        "BuilderFlag.REFIT",
        "Builder.build_serialized_network",
        "INetworkDefinition.add_assertion",
        "IBuilderConfig.set_timing_cache",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.set_device_memory",
        "Runtime.get_engine_validity",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
    ):
        assert name in names


@pytest.mark.parametrize(("file", "owner", "member"), USED)
def test_a_name_is_in_every_flavour_that_it_is_used_with(
    file: str, owner: str, member: str
) -> None:
    name = f"{owner}.{member}"
    rtx_only = GUARDED.get(name) == "is_rtx"
    for release in API:
        if rtx_only and not release.startswith("tensorrt-rtx"):
            continue
        assert member in members(release, owner), f"{file} uses {name}, which {release} lacks"


def test_guards_are_needed() -> None:
    names = {f"{owner}.{member}" for _, owner, member in USED}
    for name in GUARDED:
        owner, _, member = name.partition(".")
        assert name in names, f"{name} is not used"
        missing = [release for release in API if member not in members(release, owner)]
        assert missing, f"{name} is everywhere"
        assert not any(release.startswith("tensorrt-rtx") for release in missing)


def test_what_only_some_releases_of_tensorrt_have_is_asked_for() -> None:
    # configure.py asks hasattr before it takes this one by its name.
    have = [r for r in API if "SAME_COMPUTE_CAPABILITY" in members(r, "HardwareCompatibilityLevel")]
    assert have == ["tensorrt-10.16", "tensorrt-11.4", "tensorrt-rtx-1.7"]


def test_the_lists_are_of_the_installed_library() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    names = API["tensorrt-rtx-1.7"]
    for owner in ("ICudaEngine", "IExecutionContext", "IBuilderConfig", "Runtime"):
        assert set(names[owner]) <= set(dir(getattr(trt, owner)))
