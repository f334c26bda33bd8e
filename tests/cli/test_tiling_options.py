"""Options of tiling and of outputs, as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from conftest import draw_scene
from fcn_deploy.auto_tile import DEFAULT_MAX_MEMORY_MIB
from fcn_deploy.cli.app import app
from fcn_deploy.loading import load
from fcn_deploy.onnx_upsampling import to_matrix_form
from fcn_deploy.tiling_options import Tiling
from small_models import photos, small_model


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, code: int, words: str) -> None:
    assert result.exit_code == code, result.output
    error = result.stderr[result.stderr.index("Error: ") :].strip()
    assert words in " ".join(error.split())
    assert len(error.splitlines()) <= 3
    assert "Traceback" not in result.output


def mask(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a small model and three photos, two of them of a size."""
    monkeypatch.chdir(tmp_path)
    onnx.save_model(to_matrix_form(small_model(stride=16)), "small.onnx")
    Path("in").mkdir()
    for name, height in (("a", 330), ("b", 330), ("c", 150)):
        Image.fromarray(photos(0, 1, height, 300)[0]).save(f"in/{name}.png")
    return tmp_path


BAD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--halo", "-3"), "--halo takes a number of pixels, or exact, not '-3'"),
    (("--halo", "3.5"), "not '3.5'"),
    (("--halo", ""), "--halo takes"),
    (("--halo", "exactly"), "not 'exactly'"),
    (("--halo", "\u00b2"), "--halo takes"),
    (("--halo", "200", "--tile", "256x256"), "--tile of at least 480x480"),
    (("--halo", "exact", "--tile", "64x64"), "leaves nothing of a tile of 64x64"),
    (("--halo", "32", "--blend", "hann"), "of which --halo makes none"),
    (("--blend", "median"), "one of mean, gaussian, hann, not 'median'"),
    (("--max-memory", "0"), "0 MiB of memory are none"),
    (("--max-memory", "-1"), "-1 MiB of memory are none"),
    (("--max-memory", "much"), "--max-memory"),
    (("--max-memory", "1"), "1 MiB are too little"),
    (("--tile", "100x100"), "--tile 128x128"),
    (("--tile", "0x64"), "multiple of the output stride"),
    (("--tile", "64"), "--tile takes height x width"),
    (("--tile", "64x64", "--overlap", "33"), "between 0 and 32"),
    (("--overlap", "-1"), "An overlap of -1"),
)


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_values_that_cannot_be_are_refused_with_2(arguments: tuple[str, ...], words: str) -> None:
    refused(call("segment", "in", "--model", "small.onnx", *arguments), 2, words)
    assert not Path("segmented").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--mask-format", "jpg"), "--mask-format takes one of auto, png, tiff"),
        (("--save", "masks"), "--save takes some of mask, overlay, confidence"),
        (("--save", "polygons,polygons"), "each once"),
    ],
)
def test_outputs_that_there_are_not_are_refused(arguments: tuple[str, ...], words: str) -> None:
    refused(call("segment", "in", "--model", "small.onnx", *arguments), 2, words)
    assert not Path("segmented").exists()


# Its images fit into one crop of 256x256, of which no border is thrown away.
@pytest.mark.parametrize(
    ("arguments", "words"), [case for case in BAD[3:10] if "256x256" not in case[0]]
)
def test_evaluate_refuses_the_same(
    arguments: tuple[str, ...], words: str, toy_onnx: Path, toy_data: Path
) -> None:
    refused(call("evaluate", toy_onnx, toy_data, *arguments), 2, words)


def test_the_chosen_crops_are_said_once_for_each_size() -> None:
    whole = call("segment", "in", "--model", "small.onnx")
    assert whole.exit_code == 0, whole.output
    assert "crops of" not in whole.stderr
    tiled = call("segment", "in", "--model", "small.onnx", "--tile", "128x128", "--overlap", "32")
    said = [line for line in tiled.stderr.splitlines() if "crops of" in line]
    assert said == ["a.png: 330x300 in 12 crops of 128x128, overlap 32: 1.99 times its pixels"]
    halo = call("segment", "in", "--model", "small.onnx", "--tile", "160x160", "--halo", "20")
    assert "a.png: 330x300 in 9 crops of 160x160, halo 32: 2.33 times" in halo.stderr
    Image.fromarray(photos(0, 1, 900, 700)[0]).save("in/large.png")
    with load("small.onnx") as model:
        whole_mib = model.backend.footprint.of(model.plan((900, 700), Tiling(None))) >> 20
        grid = model.plan((900, 700), Tiling(max_memory_mib=whole_mib))
    auto = call("segment", "in", "--model", "small.onnx", "--max-memory", whole_mib)
    assert auto.exit_code == 0, auto.output
    assert len(grid) > 1
    size = f"{grid.crop_hw[0]}x{grid.crop_hw[1]}"
    assert f"large.png: 900x700 in {len(grid)} crops of {size}, overlap 64" in auto.stderr


def test_json_tells_what_was_asked_for_and_what_was_done() -> None:
    options = ("--tile", "128x160", "--overlap", "32", "--blend", "gaussian", "--max-memory", "99")
    done = call("segment", "in", "--model", "small.onnx", "--json", "r.json", *options)
    assert done.exit_code == 0, done.output
    report = json.loads(Path("r.json").read_text())
    images = report.pop("images")
    assert report == {
        "model": "small.onnx",
        "backend": "ort",
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
        "tile": "128x160",
        "overlap": 32,
        "halo": None,
        "blend": "gaussian",
        "max_memory_mib": 99,
        "done": 3,
        "failed": 0,
    }
    assert images[2] == {
        "source": "in/c.png",
        "status": "done",
        "error": "",
        "outputs": {"mask": "segmented/mask/c.png"},
        "height": 150,
        "width": 300,
        "crops": 6,
        "crop_height": 128,
        "crop_width": 160,
    }
    for halo in ("exact", "32"):
        wide = ("--tile", "192x192", "--halo", halo, "--json", "-")
        done = call("segment", "in/c.png", "--model", "small.onnx", *wide)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["halo"] == halo


@pytest.mark.parametrize("blend", ["gaussian", "hann"])
def test_blends_are_what_the_library_does(blend: Any) -> None:
    tiled = ("--tile", "128x128", "--overlap", "64")
    for name in ("mean", blend):
        done = call("segment", "in", "-o", name, "--model", "small.onnx", "--blend", name, *tiled)
        assert done.exit_code == 0, done.output
    with Image.open("in/a.png") as image, load("small.onnx") as model:
        wanted = model.predict(np.asarray(image), Tiling((128, 128), 64, blend=blend)).labels
    np.testing.assert_array_equal(mask(Path(blend, "mask/a.png")), wanted)
    assert (mask(Path("mean/mask/a.png")) != wanted).any()


def test_every_kind_of_output_at_once() -> None:
    pytest.importorskip("rasterio")
    kinds = "mask,overlay,confidence,probabilities,polygons"
    done = call("segment", "in/c.png", "--model", "small.onnx", "--save", kinds)
    assert done.exit_code == 0, done.output
    written = sorted(p.as_posix() for p in Path("segmented").rglob("*") if p.is_file())
    assert written == [
        "segmented/confidence/c.png",
        "segmented/mask/c.png",
        "segmented/overlay/c.jpg",
        "segmented/polygons/c.geojson",
        "segmented/probabilities/c.tif",
    ]
    regions = json.loads(Path("segmented/polygons/c.geojson").read_text())["features"]
    labels = mask(Path("segmented/mask/c.png"))
    for label in range(3):
        areas = [f["properties"]["area"] for f in regions if f["properties"]["label"] == label]
        assert sum(areas) == (labels == label).sum()


def test_what_is_not_finite_ends_with_6() -> None:
    model = small_model(stride=16)
    bias = next(w for w in model.graph.initializer if w.name == "weight_bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(3, np.nan, np.float32), bias.name))
    for name, form in (("plain", model), ("matrix", to_matrix_form(model))):
        onnx.save_model(form, f"{name}.onnx")
        for tile in ("whole", "128x128"):
            result = call("segment", "in", "--model", f"{name}.onnx", "--tile", tile)
            refused(result, 6, "not finite")
    assert not Path("segmented").exists() or not list(Path("segmented/mask").iterdir())


def test_an_exact_halo_is_the_whole_image(toy_onnx: Path) -> None:
    draw_scene(5, 900, 700)[0].save("scene.png")
    for name, options in (
        ("whole", ("--tile", "whole")),
        ("exact", ("--tile", "640x640", "--halo", "exact")),
        ("none", ("--tile", "640x640", "--halo", "0")),
        ("small", ("--tile", "640x640", "--halo", "32")),
    ):
        done = call("segment", "scene.png", "-o", name, "--model", toy_onnx, *options)
        assert done.exit_code == 0, done.output
    found = {
        name: mask(Path(name, "mask/scene.png")) for name in ("whole", "exact", "none", "small")
    }
    with load(toy_onnx) as model, Image.open("scene.png") as image:
        pixels = np.asarray(image)
        grid = model.plan((900, 700), Tiling((640, 640), halo="exact"))
        assert len(grid) > 2
        assert grid.halo is not None
        assert grid.halo >= 200  # further than anyone would guess
        whole = model.plan((900, 700), Tiling(None))
        logits = np.concatenate([band for _, band in model.logit_bands(pixels, whole)], 1)
    ordered = np.sort(logits, 0)
    clear = ordered[-1] - ordered[-2] > 1e-4
    assert clear.mean() > 0.99
    assert (found["exact"] == found["whole"])[clear].all()
    # With less of a halo it is another answer: or else nothing would have been shown.
    for name in ("none", "small"):
        assert (found[name] != found["whole"])[clear].any()


WITHOUT = """
import json, sys
sys.modules["rasterio"] = None
from typer.testing import CliRunner
from fcn_deploy.cli.app import app
results = []
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, ["segment", *arguments, "--model", "small.onnx"])
    results.append((result.exit_code, result.stderr))
print(json.dumps(results))
"""


def test_a_missing_rasterio_is_named() -> None:
    # A TIFF that claims a place on earth: the tag of a pixel's size is enough of a claim.
    with Image.open("in/c.png") as image:
        image.save("in/geo.tif", tiffinfo={33550: (0.3, 0.3, 0.0)})
    calls = [
        ["in"],
        ["in", "--mask-format", "png"],
        ["in/a.png", "--save", "probabilities"],
        ["in/a.png", "--save", "mask,polygons"],
        ["in/a.png", "--mask-format", "tiff"],
    ]
    command = [sys.executable, "-c", WITHOUT, json.dumps(calls)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads(done.stdout)
    assert [code for code, _ in results] == [3, 0, 5, 5, 5]
    for code, error in results:
        assert ('pip install "fcn-deploy[large]"' in error) == (code != 0)
    assert "3 of 4 images segmented" in results[0][1]


def test_the_default_of_memory_is_the_librarys() -> None:
    for command in ("segment", "evaluate"):
        said = " ".join(call(command, "--help").stdout.split())
        assert f"What --tile auto may use. [default: {DEFAULT_MAX_MEMORY_MIB}]" in said
        assert f"mean, gaussian or hann. [default: {Tiling().blend}]" in said


@pytest.mark.parametrize(
    "name", ["a[red]b.png", ":smile:.png", "e\x1b[31mvil.png", "x" * 100 + ".png"]
)
def test_the_note_of_crops_names_the_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save_model(small_model(), "m.onnx")
    Image.fromarray(photos(0, 1, 150, 130)[0]).save(name)
    arguments = ["segment", name, "--model", "m.onnx", "--tile", "64x64", "--overlap", "32"]
    result = CliRunner().invoke(app, arguments)
    said = name.replace("\x1b", "\\x1b")
    crops = "150x130 in 16 crops of 64x64, overlap 32: 3.36 times its pixels"
    assert f"{said}: {crops}\n" in result.stderr
