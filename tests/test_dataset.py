"""Folders of labelled images: both layouts, and every bad pair named before work starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fcn_deploy.classes import VOC_CLASSES
from fcn_deploy.dataset import VOC_BORDER, check, open_dataset, read_pair
from fcn_deploy.errors import DataError
from fcn_deploy.image import colorize, write_mask
from fcn_deploy.spec import IGNORE, voc_palette

Pixels = NDArray[np.uint8]

TOML = """
# Two classes; id 11 in the masks is unlabelled, as in CamVid.
ignore_index = 11

[[classes]]
name = "Sky"
color = [128, 128, 128]

[[classes]]
name = "Road"
color = [128, 64, 128]
"""
IDS = np.array([[0, 1, 1, 11], [0, 0, 1, 1], [11, 1, 0, 0]], np.uint8)
LABELS = np.where(IDS == 11, IGNORE, IDS).astype(np.uint8)


def put(path: Path, pixels: NDArray[np.generic]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photo(path: Path, height: int = 3, width: int = 4) -> Path:
    return put(path, np.full((height, width, 3), 90, np.uint8))


def plain(root: Path, classes: str = TOML, *, name: str = "classes.toml") -> Path:
    """A data set with one sound pair in each of train and val."""
    for split in ("train", "val"):
        photo(root / split / "images" / "good.png")
        put(root / split / "masks" / "good.png", IDS)
    (root / name).write_text(classes, encoding="utf-8")
    return root


def voc(root: Path, *names: str) -> Path:
    for name in names:
        photo(root / "JPEGImages" / f"{name}.jpg")
    listing = root / "ImageSets" / "Segmentation" / "train.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{name}\n" for name in names) + "\n")
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(exist_ok=True)
    return root


def test_plain_layout_with_its_own_ignored_id(tmp_path: Path) -> None:
    dataset = open_dataset(plain(tmp_path))
    assert (dataset.layout, dataset.root) == ("plain", tmp_path)
    assert dataset.classes == ("Sky", "Road")
    assert dataset.palette == ((128, 128, 128), (128, 64, 128))
    assert dataset.ignore_value == 11
    (pair,) = dataset.pairs("val")
    assert pair.name == "good"
    assert pair.image.parts[-3:] == ("val", "images", "good.png")
    image, labels = read_pair(dataset, pair)
    assert image.shape == (3, 4, 3)
    np.testing.assert_array_equal(labels, LABELS)
    found = check(dataset, ["train", "val"])
    assert found == {split: [(dataset.pairs(split)[0], (3, 4))] for split in ("train", "val")}


def test_one_name_a_line_is_enough(tmp_path: Path) -> None:
    plain(tmp_path, "# in the order of the ids\n\nSky\r\n Road side \n", name="classes.txt")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("Sky", "Road side")
    assert dataset.palette == voc_palette(2)
    assert dataset.ignore_value == IGNORE
    mask = put(tmp_path / "mask.png", np.array([[0, 1, 255]], np.uint8))
    assert dataset.labels(mask).tolist() == [[0, 1, IGNORE]]


@pytest.mark.parametrize(("name", "text"), [("classes.txt", "Sky\nRoad"), ("classes.toml", TOML)])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, name: str, text: str) -> None:
    assert open_dataset(plain(tmp_path, "\ufeff" + text, name=name)).classes == ("Sky", "Road")


def test_masks_of_every_kind_give_the_same_labels(tmp_path: Path) -> None:
    dataset = open_dataset(plain(tmp_path))
    write_mask(tmp_path / "palette.png", IDS, dataset.palette)
    put(tmp_path / "gray.png", IDS)
    put(tmp_path / "wide.png", IDS.astype(np.uint16))
    # In colours there is no id to ignore: white does.
    put(tmp_path / "colors.png", colorize(LABELS, dataset.palette))
    for name in ("palette", "gray", "wide", "colors"):
        labels = dataset.labels(tmp_path / f"{name}.png")
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, LABELS, err_msg=name)


@pytest.mark.parametrize(
    ("value", "dtype"), [(2, np.uint8), (254, np.uint8), (255, np.uint8), (267, np.uint16)]
)
def test_ids_beyond_the_classes_are_refused(
    tmp_path: Path, value: int, dtype: type[np.uint8] | type[np.uint16]
) -> None:
    # 255 too, because this data set says that 11 is what does not count; 267 is 11 modulo 256.
    dataset = open_dataset(plain(tmp_path))
    mask = put(tmp_path / "mask.png", np.array([[0, value]], dtype))
    with pytest.raises(DataError, match=rf"mask\.png has id {value}\b.* 2 classes"):
        dataset.labels(mask)


def test_255_classes_leave_no_label_over(tmp_path: Path) -> None:
    dataset = open_dataset(
        plain(tmp_path, "\n".join(f"class{n}" for n in range(255)), name="classes.txt")
    )
    ids = np.arange(256, dtype=np.uint8)[None]
    np.testing.assert_array_equal(dataset.labels(put(tmp_path / "ids.png", ids)), ids)
    colors = np.array([[*dataset.palette[250:], (255, 255, 255)]], np.uint8)
    known = [[250, 251, 252, 253, 254, 255]]
    np.testing.assert_array_equal(dataset.labels(put(tmp_path / "colors.png", colors)), known)


def test_images_in_nested_folders_keep_their_place(tmp_path: Path) -> None:
    plain(tmp_path)
    photo(tmp_path / "train" / "images" / "town" / "day.1" / "a.b.JPG")
    put(tmp_path / "train" / "masks" / "town" / "day.1" / "a.b.png", IDS)
    (tmp_path / "train" / "images" / "town" / "notes.txt").write_text("no image")
    dataset = open_dataset(tmp_path)
    assert [pair.name for pair in dataset.pairs("train")] == ["good", "town/day.1/a.b"]
    assert len(check(dataset, ["train"])["train"]) == 2


def test_masks_fit_the_picture_that_viewers_show(tmp_path: Path) -> None:
    plain(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    stored = Image.new("RGB", (3, 4), (90, 90, 90))
    stored.save(tmp_path / "train" / "images" / "turned.jpg", exif=exif)
    put(tmp_path / "train" / "masks" / "turned.png", IDS)
    dataset = open_dataset(tmp_path)
    assert dict(check(dataset, ["train"])["train"]) == dict.fromkeys(dataset.pairs("train"), (3, 4))
    image, labels = read_pair(dataset, dataset.pairs("train")[1])
    assert image.shape[:2] == labels.shape == (3, 4)


@pytest.mark.parametrize("below", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_layout_is_found_below_the_root(tmp_path: Path, below: str) -> None:
    home = voc(tmp_path / below, "2007_000032", "2007_000039")
    ids = np.array([[0, 15, 20, 255]] * 3, np.uint8)
    write_mask(home / "SegmentationClass" / "2007_000032.png", ids, voc_palette(21))
    colors = colorize(ids, voc_palette(21))
    colors[ids == 255] = VOC_BORDER
    put(home / "SegmentationClass" / "2007_000039.png", colors)
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.root) == ("voc", home)
    assert dataset.classes == VOC_CLASSES
    assert dataset.classes[15] == "person"
    pairs = dataset.pairs("train")
    assert [pair.name for pair in pairs] == ["2007_000032", "2007_000039"]
    for pair in pairs:
        np.testing.assert_array_equal(read_pair(dataset, pair)[1], ids)
    assert len(check(dataset, ["train"])["train"]) == 2


def test_voc_layout_with_classes_of_its_own(tmp_path: Path) -> None:
    home = voc(tmp_path, "a")
    (home / "classes.toml").write_text(TOML)
    put(home / "SegmentationClass" / "a.png", IDS)
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("Sky", "Road")
    np.testing.assert_array_equal(read_pair(dataset, dataset.pairs("train")[0])[1], LABELS)


def test_a_color_that_is_no_class_is_named(tmp_path: Path) -> None:
    dataset = open_dataset(plain(tmp_path))
    colors = colorize(LABELS, dataset.palette)
    colors[1, 2] = (1, 2, 3)
    with pytest.raises(DataError, match=r"mask\.png has the colour \(1, 2, 3\)"):
        dataset.labels(put(tmp_path / "mask.png", colors))


def test_colors_that_mean_two_classes_are_refused(tmp_path: Path) -> None:
    # Road has no colour, and the default of its id is the one that Sky was given.
    toml = '[[classes]]\nname = "Sky"\ncolor = [128, 0, 0]\n[[classes]]\nname = "Road"\n'
    with pytest.raises(DataError, match="colour"):
        open_dataset(plain(tmp_path, toml)).labels(
            put(tmp_path / "mask.png", np.full((3, 4, 3), (128, 0, 0), np.uint8))
        )


def test_everything_bad_is_listed_in_one_error(tmp_path: Path) -> None:
    train, val = plain(tmp_path) / "train", tmp_path / "val"
    photo(train / "images" / "no-mask.jpg")
    photo(train / "images" / "size.png", 4, 3)
    put(train / "masks" / "size.png", IDS)
    photo(train / "images" / "id.png")
    put(train / "masks" / "id.png", np.full((3, 4), 7, np.uint8))
    photo(train / "images" / "color.png")
    put(train / "masks" / "color.png", np.full((3, 4, 3), 7, np.uint8))
    photo(val / "images" / "mode.png")
    put(val / "masks" / "mode.png", np.zeros((3, 4, 2), np.uint8))
    (val / "images" / "unreadable.jpg").write_text("no image")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    put(val / "images" / "cut.jpg", noise)
    cut = (val / "images" / "cut.jpg").read_bytes()
    (val / "images" / "cut.jpg").write_bytes(cut[: len(cut) * 2 // 3])
    put(val / "masks" / "cut.png", np.zeros((64, 64), np.uint8))
    put(val / "masks" / "unreadable.png", IDS)
    photo(val / "images" / "torn.png")
    whole = (val / "masks" / "good.png").read_bytes()
    (val / "masks" / "torn.png").write_bytes(whole[: len(whole) - 30])
    with pytest.raises(DataError) as caught:
        check(open_dataset(tmp_path), ["train", "val"])
    first, *listed = caught.value.problem.splitlines()
    assert first.startswith("8 of")
    assert caught.value.exit_code == 4
    for name, words in {
        "no-mask.jpg": "no mask",
        "size.png": "4x3, but its image is 3x4 (WxH)",
        "id.png": "id 7",
        "color.png": "colour (7, 7, 7)",
        "mode.png": "mode LA",
        "unreadable.jpg": "not an image",
        "cut.jpg": "cannot be read",
        "torn.png": "damaged",
    }.items():
        assert len([line for line in listed if name in line and words in line]) == 1, name
    assert len(listed) == 8
    assert "good" not in caught.value.problem


def test_a_torn_png_among_the_images_is_listed_too(tmp_path: Path) -> None:
    plain(tmp_path)
    whole = photo(tmp_path / "train" / "images" / "torn.png").read_bytes()
    (tmp_path / "train" / "images" / "torn.png").write_bytes(whole[: len(whole) - 30])
    put(tmp_path / "train" / "masks" / "torn.png", IDS)
    with pytest.raises(DataError, match=r"torn\.png"):
        check(open_dataset(tmp_path), ["train"])


def test_a_listed_image_that_is_missing_is_not_dropped(tmp_path: Path) -> None:
    home = voc(tmp_path, "a", "b")
    for name in ("a", "b"):
        put(home / "SegmentationClass" / f"{name}.png", np.zeros((3, 4), np.uint8))
    (home / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of .*\n.*b\.jpg is listed, but missing"):
        check(open_dataset(tmp_path), ["train"])


def test_pairs_of_unequal_size_are_not_read(tmp_path: Path) -> None:
    dataset = open_dataset(plain(tmp_path))
    photo(tmp_path / "val" / "images" / "good.png", 5, 4)
    with pytest.raises(DataError, match="differ in size"):
        read_pair(dataset, dataset.pairs("val")[0])


def test_missing_and_empty_splits_are_refused(tmp_path: Path) -> None:
    plain(tmp_path / "plain")
    (tmp_path / "plain" / "test" / "images").mkdir(parents=True)
    voc(tmp_path / "voc")
    for layout, empty in (("plain", "test"), ("voc", "train")):
        dataset = open_dataset(tmp_path / layout)
        with pytest.raises(DataError, match=f"no images in its split '{empty}'"):
            dataset.pairs(empty)
        with pytest.raises(DataError, match="no split 'night'"):
            check(dataset, ["night"])


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    photo(tmp_path / "half" / "JPEGImages" / "a.jpg")  # no SegmentationClass
    photo(tmp_path / "nameless" / "train" / "images" / "a.jpg")
    for name, words in {
        "gone": "no folder",
        "file": "no folder",
        "empty": "no data set",
        "half": "no data set",
        "nameless": r"no classes\.toml or classes\.txt",
    }.items():
        with pytest.raises(DataError, match=words) as caught:
            open_dataset(tmp_path / name)
        assert str(tmp_path / name) in caught.value.problem
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("classes.toml", "[[classes", "cannot be used"),
        ("classes.toml", "ignore_index = 11", "'classes'"),
        ("classes.toml", 'classes = ["Sky"]', "cannot be used"),
        ("classes.toml", "[[classes]]\ncolor = [0, 0, 0]", "'name'"),
        ("classes.toml", '[[classes]]\nname = "Sky"\ncolor = [0, 0]', "cannot be used"),
        ("classes.toml", '[[classes]]\nname = "Sky"\ncolor = [0, 0, 256]', "colour of Sky"),
        ("classes.toml", 'ignore_index = 0\n[[classes]]\nname = "Sky"', "also the class Sky"),
        ("classes.toml", 'ignore_index = "x"\n[[classes]]\nname = "Sky"', "cannot be used"),
        ("classes.toml", "classes = []", "0 classes"),
        ("classes.txt", "Sky\nSky\n", "same name"),
        ("classes.txt", "# none\n", "0 classes"),
        ("classes.txt", "\n".join(map(str, range(256))), "256"),
    ],
)
def test_broken_class_files_are_refused_by_name(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    plain(tmp_path, text, name=name)
    with pytest.raises(DataError, match=words) as caught:
        open_dataset(tmp_path)
    assert str(tmp_path / name) in caught.value.problem


@pytest.mark.parametrize(
    "name",
    [
        "classes.toml",
        "classes.txt",
    ],
)
def test_class_files_that_are_not_utf8_are_refused(tmp_path: Path, name: str) -> None:
    plain(tmp_path, name=name)
    (tmp_path / name).write_bytes(b'[[classes]]\nname = "Fu\xdfg\xe4nger"\n')
    with pytest.raises(DataError, match=name):
        open_dataset(tmp_path)


CAMVID = Path(__file__).parents[2] / "shared" / "data" / "camvid"


@pytest.mark.skipif(not CAMVID.exists(), reason="CamVid is not at hand")
def test_every_pair_of_camvid_is_sound() -> None:
    dataset = open_dataset(CAMVID)
    assert dataset.classes[0] == "Sky"
    assert dataset.palette[-1] == (0, 128, 192)
    sound = check(dataset, ["train", "val"])
    assert {split: len(pairs) for split, pairs in sound.items()} == {"train": 367, "val": 101}
    assert {hw for pairs in sound.values() for _, hw in pairs} == {(360, 480)}
    labels = dataset.labels(sound["val"][0][0].mask)
    assert set(np.unique(labels)) <= {*range(11), IGNORE}


def test_the_samples_are_a_sound_data_set() -> None:
    dataset = open_dataset(Path(__file__).parents[1] / "samples")
    sound = check(dataset, ["train", "val"])
    assert {split: len(pairs) for split, pairs in sound.items()} == {"train": 24, "val": 8}
    assert not any(size % 32 == 0 for pairs in sound.values() for _, hw in pairs for size in hw)
    labels = [dataset.labels(pair.mask) for pair, _ in sound["val"]]
    assert set(range(7)) <= {int(label) for mask in labels for label in np.unique(mask)}
