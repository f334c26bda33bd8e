"""``segment --report``, and the pictures that galleries are made of."""

from __future__ import annotations

import io
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from page_records import HOSTILE_CLASS, HOSTILE_IMAGE, call
from PIL import Image

from fcn_deploy.outputs import open_source
from fcn_deploy.pages import gallery
from fcn_deploy.pages.pictures import (
    LONGEST_SIDE,
    errors_uri,
    fitted_hw,
    mask_uri,
    photo_uri,
    shrunk,
    shrunk_labels,
)
from fcn_deploy.pages.scenes import shares_of, spread
from fcn_deploy.spec import ModelSpec

pytest_plugins = ("page_fixtures",)

PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def opened(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return Image.open(io.BytesIO(b64decode(content)))


def rgba(uri: str) -> NDArray[np.uint8]:
    return np.asarray(opened(uri).convert("RGBA"))


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number:02}.png")
    return folder


def test_the_page_shows_each_image_with_its_mask_and_shares(gallery_page: Path) -> None:
    text = gallery_page.read_text()
    assert text.count("data:image/jpeg") == text.count('class="prediction"') == 3
    assert 'class="truth"' not in text
    assert 'name="layer"' not in text
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert "$disc$ &lt;script&gt;" in text
    assert "scene&lt;img src=x onerror=alert(1)&gt;.jpg" in text
    assert HOSTILE_CLASS not in text
    assert HOSTILE_IMAGE not in text
    assert "more images" not in text


def test_the_rest_is_counted_and_failures_are_listed(toy_onnx: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", gallery.SCENES + 2)
    (folder / "photo00.png").write_bytes(b"nothing")
    page = tmp_path / "pages" / "page.html"
    result = call("segment", folder, "--model", toy_onnx, "-o", tmp_path / "o", "--report", page)
    assert result.exit_code == 3
    assert "Wrote" in result.stderr
    text = page.read_text()
    assert text.count("data:image/jpeg") == gallery.SCENES
    assert "1 more image was segmented and not shown" in text
    assert f"{gallery.SCENES + 1} images, by model.onnx on ort" in text
    assert "photo00.png" in text
    assert "is not an image that can be read" in text


def test_masks_as_tiff_are_shown_too(toy_onnx: Path, tmp_path: Path) -> None:
    folder, page = photos(tmp_path / "photos", 1), tmp_path / "page.html"
    options = ("--mask-format", "tiff", "--report", page, "-o", tmp_path / "o")
    result = call("segment", folder, "--model", toy_onnx, *options)
    assert result.exit_code == 0, result.output
    assert page.read_text().count("data:image/jpeg") == 1


def test_what_is_too_large_for_a_page_is_left_out_and_named(
    toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MOST_PIXELS", 32 * 40 - 1)
    folder, page = photos(tmp_path / "photos", 1), tmp_path / "page.html"
    result = call("segment", folder, "--model", toy_onnx, "--report", page, "-o", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert "data:image/jpeg" not in page.read_text()
    assert "photo00.png: 32x40 is too large for a page." in page.read_text()


def test_without_masks_there_is_nothing_to_show(toy_onnx: Path, tmp_path: Path) -> None:
    folder, page = photos(tmp_path / "photos", 1), tmp_path / "page.html"
    options = ("--save", "overlay", "--report", page, "-o", tmp_path / "o")
    result = call("segment", folder, "--model", toy_onnx, *options)
    assert result.exit_code == 2
    assert "--report shows masks" in result.stderr
    assert not (tmp_path / "o").exists()


def test_a_missing_package_is_named_before_the_work(
    toy_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    folder, page = photos(tmp_path / "photos", 1), tmp_path / "page.html"
    result = call("segment", folder, "--model", toy_onnx, "--report", page, "-o", tmp_path / "o")
    assert result.exit_code == 5
    assert 'pip install "fcn-deploy[report]"' in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("hw", "fitted"),
    [((360, 480), (360, 480)), ((1, 4000), (1, 960)), ((2000, 1000), (960, 480))],
)
def test_pictures_fit(hw: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fitted_hw(hw) == fitted
    assert shrunk_labels(np.zeros(hw, np.uint8)).shape == fitted


def test_a_large_image_is_shrunk_by_rows_to_what_it_is_as_a_whole(tmp_path: Path) -> None:
    # Larger than what is read at once: rows come in several blocks, the last one shorter.
    rows, columns = np.mgrid[:4100, :3001]
    pixels = np.stack([rows // 17, columns // 13, (rows + columns) // 31], 2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png", compress_level=1)
    with open_source(tmp_path / "large.png") as source:
        assert not hasattr(source, "image")  # by rows
        small = shrunk(source)
    assert max(small.shape) == LONGEST_SIDE
    whole = Image.fromarray(pixels).resize(small.shape[1::-1], Image.Resampling.LANCZOS)
    assert np.abs(small.astype(int) - np.asarray(whole).astype(int)).mean() < 2


def test_a_mask_has_the_colours_of_its_classes_and_shows_the_image_where_ignored() -> None:
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    assert opened(mask_uri(labels, PALETTE)).mode == "P"
    found = rgba(mask_uri(labels, PALETTE))
    assert [tuple(pixel) for pixel in found[[0, 0, 1], [0, 1, 0]]] == [
        (*color, 255) for color in PALETTE
    ]
    assert found[1, 1, 3] == 0


def test_a_mask_of_all_the_classes_there_can_be() -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    palette = tuple((number, 255 - number, 7) for number in range(255))
    found = rgba(mask_uri(labels, palette)).reshape(256, 4)
    assert [tuple(pixel) for pixel in found[:255]] == [(*color, 255) for color in palette]
    assert found[255, 3] == 0


def test_errors_are_red_and_the_unknown_gray() -> None:
    truth = np.array([[0, 1, 255]], np.uint8)
    prediction = np.array([[0, 2, 1]], np.uint8)
    right, wrong, unknown = rgba(errors_uri(prediction, truth))[0]
    assert right[3] == 0
    assert wrong[3] == unknown[3] == 255
    assert wrong[0] > 200 > 100 > wrong[1]
    assert unknown[0] == unknown[1] == unknown[2]


def test_pictures_are_small() -> None:
    rows, columns = np.mgrid[:960, :960]
    scene = np.stack([rows // 4, columns // 4, (rows * columns) % 251], 2).astype(np.uint8)
    labels = ((rows // 60 + columns // 60) % 3).astype(np.uint8)
    assert len(photo_uri(scene)) < 450_000  # the last channel is noise: no photo takes as much
    assert len(mask_uri(labels, PALETTE)) < 8_000


def test_shares_are_those_of_all_pixels() -> None:
    spec = ModelSpec(("a", "b", "c"), PALETTE)
    labels = np.array([[1, 1, 1, 0]], np.uint8)
    found = [(share.name, share.color, share.share) for share in shares_of(labels, spec)]
    assert found == [("b", PALETTE[1], 0.75), ("a", PALETTE[0], 0.25)]


@pytest.mark.parametrize(
    ("count", "wanted", "places"),
    [
        (5, 5, [0, 1, 2, 3, 4]),
        (3, 12, [0, 1, 2]),
        (101, 3, [0, 50, 100]),
        (9, 1, [0]),
        (9, 0, []),
        (0, 4, []),
    ],
)
def test_places_are_spread_from_the_first_to_the_last(
    count: int, wanted: int, places: list[int]
) -> None:
    assert spread(count, wanted) == places


def test_labels_are_picked_and_never_mixed() -> None:
    labels = np.zeros((700, 1500), np.uint8)
    labels[:, ::3] = 2
    labels[350:] = 255
    assert set(np.unique(shrunk_labels(labels)).tolist()) == {0, 2, 255}
