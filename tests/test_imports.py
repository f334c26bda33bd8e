"""Heavy packages stay in their rooms, and imports point down."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import fcn_deploy

PACKAGE = Path(fcn_deploy.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)
ROOMS = {
    "torch": (
        "fcn_deploy.training",
        "fcn_deploy.backends.eager",
        "fcn_deploy.backends.compiled",
    ),
    "torchvision": (
        "fcn_deploy.training",
        "fcn_deploy.backends.eager",
        "fcn_deploy.backends.compiled",
    ),
    "safetensors": (
        "fcn_deploy.training",
        "fcn_deploy.backends.eager",
        "fcn_deploy.backends.compiled",
        "fcn_deploy.describe",
    ),
    "matplotlib": ("fcn_deploy.report", "fcn_deploy.benchmark.plot"),
    "jinja2": ("fcn_deploy.pages",),
    "onnxruntime": ("fcn_deploy.backends.ort", "fcn_deploy.int8"),
    "rasterio": (
        "fcn_deploy.raster",
        "fcn_deploy.geotiff",
        "fcn_deploy.ground",
        "fcn_deploy.polygons",
    ),
    "tensorrt": ("fcn_deploy.engine", "fcn_deploy.backends"),
    "tensorrt_rtx": ("fcn_deploy.engine", "fcn_deploy.backends"),
    # torch imports it, too
    "cuda.bindings": ("fcn_deploy.engine", "fcn_deploy.backends", "fcn_deploy.training"),
    "typer": ("fcn_deploy.cli",),
    "rich": ("fcn_deploy.cli",),
}
# From the top of the house down; a module imports from its own floor or from below.
FLOORS = (
    ("cli",),
    ("pages.run_page",),
    ("pages.benchmark", "pages.gallery", "pages.model_card", "pages.verification"),
    ("pages",),
    ("int8",),
    ("verify",),
    ("training.__main__",),
    ("training.train",),
    ("training.run_folder",),
    ("training.session", "training.to_onnx", "engine", "describe", "doctor", "benchmark"),
    ("profile_planner",),
    ("image_headers",),
    ("evaluate", "batch", "half_range", "parity", "report"),
    ("items", "loading"),
    ("outputs",),
    ("segment",),
    ("polygons", "geotiff"),
    ("raster", "ground"),
    ("row_files",),
    ("backends.compiled", "backends.eager", "backends.ort", "backends.trt"),
    ("backends.ort_tensors",),
    ("backends.ort_sessions",),
    ("backends.ort_providers",),
    ("backends.ort_batches", "backends.ort_binding", "backends.ort_weights"),
    ("backends.ort_failures", "backends.ort_libraries", "backends.ort_options"),
    ("training",),
    ("freshness",),
    ("backends", "trusted_plan"),
    ("onnx_parts",),
    ("onnx_arithmetic", "onnx_footprint", "onnx_upsampling", "receptive"),
    ("onnx_resize",),
    ("onnx_shapes",),
    ("tiling_options",),
    ("logit_merging",),
    ("auto_tile", "merging"),
    ("engine_files",),
    ("tiling", "image", "dataset", "boundary", "metrics", "onnx_file", "passport", "upsample"),
    ("plan_header", "plan_name"),
    ("png_source", "tiff_source", "tiff_blocks"),
    ("recipe_file", "row_reader"),
    ("artifacts", "classes", "png_rows", "quiet", "reach", "read_ahead", "spec", "recipe"),
    ("errors",),
)


@cache
def loaded_by(code: str) -> set[str]:
    command = f"import sys, json; {code}; print(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", command], check=True, capture_output=True, text=True
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ROOMS)
def test_heavy_packages_stay_in_their_rooms(package: str) -> None:
    # All other modules in a process or two: if none of them loads it together, no one does alone.
    outside = [module for module in MODULES if not module.startswith(ROOMS[package])]
    assert len(outside) > 20
    with_torch = [module for module in outside if module.startswith(ROOMS["torch"])]
    without = [module for module in outside if module not in with_torch]
    for modules in (with_torch, without):
        if modules and package in loaded_by(f"import {', '.join(modules)}"):
            guilty = [module for module in modules if package in loaded_by(f"import {module}")]
            pytest.fail(f"{', '.join(guilty)} loads {package}")


def test_the_package_itself_is_light() -> None:
    assert not {"numpy", "PIL", "typer", "torch"} & loaded_by("import fcn_deploy")


def test_help_waits_for_nothing_heavy() -> None:
    code = (
        "from typer.testing import CliRunner; from fcn_deploy.cli.app import app; "
        "assert CliRunner().invoke(app, ['segment', '--help']).exit_code == 0"
    )
    assert not {"numpy", "PIL", "torch", "onnx", "onnxruntime", "matplotlib"} & loaded_by(code)


def test_segmenting_with_onnx_runtime_needs_no_torch(toy_onnx: Path) -> None:
    code = (
        "import numpy, fcn_deploy; "
        f"model = fcn_deploy.load({str(toy_onnx)!r}, backend='ort'); "
        "labels = model.segment(numpy.zeros((300, 333, 3), 'uint8'), tile=(128, 96), overlap=32); "
        "assert labels.shape == (300, 333) and labels.dtype == 'uint8'"
    )
    assert not {"torch", "torchvision", "tensorrt_rtx", "matplotlib"} & loaded_by(code)


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("torch", "['export', sys.argv[1]]", "train"),
        ("torchvision", "['segment', '.', '--model', sys.argv[1]]", "train"),
        ("onnxruntime", "['segment', '.', '--model', sys.argv[2]]", "cpu"),
        ("onnx", "['info', sys.argv[2]]", "cpu"),
        ("safetensors", "['info', sys.argv[1]]", "train"),
        ("tensorrt_rtx", "['build-engine', sys.argv[2], '--flavour', 'rtx']", "rtx"),
    ],
)
def test_a_missing_package_is_answered_with_its_install_line(
    missing: str, arguments: str, extra: str, toy_checkpoint: Path, toy_onnx: Path, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(b"")
    code = (
        f"import sys; sys.modules[{missing!r}] = None; "
        "from typer.testing import CliRunner; from fcn_deploy.cli.app import app; "
        f"result = CliRunner().invoke(app, {arguments}); print(result.stderr, result.exit_code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, toy_checkpoint, toy_onnx],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert f'pip install "fcn-deploy[{extra}]"' in run.stdout
    assert run.stdout.split()[-1] == "5"


def test_public_names() -> None:
    assert fcn_deploy.__all__ == sorted(
        fcn_deploy.__all__, key=lambda n: (not n.isupper(), n[0] == "_" or n.islower(), n)
    )
    for name in fcn_deploy.__all__:
        assert getattr(fcn_deploy, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = fcn_deploy.missing


def floor_of(module: str) -> int:
    name = module.removeprefix("fcn_deploy.")
    best = -1, len(FLOORS)
    for floor, rooms in enumerate(FLOORS):
        for room in rooms:
            if (name == room or name.startswith(room + ".")) and len(room) > best[0]:
                best = len(room), floor
    return best[1]


def top_level_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports when it is loaded, type checking left out."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fcn_deploy"):
            found.add(str(node.module))
    return found


def test_imports_point_down() -> None:
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        module = module.removesuffix(".__init__")
        if module == "fcn_deploy":
            continue
        for imported in top_level_imports(path) - {"fcn_deploy"}:
            assert floor_of(imported) >= floor_of(module), f"{module} imports {imported}"
