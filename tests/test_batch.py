"""Many images: each gets its own mask, of its own geometry, whatever its name and place."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fakes import WithoutScores
from fcn_deploy.backends import ShapeLimits
from fcn_deploy.batch import ItemReport, segment_items
from fcn_deploy.errors import DataError, EnvironmentFault, UsageError
from fcn_deploy.items import Item, list_items
from fcn_deploy.segment import Segmenter
from fcn_deploy.spec import ModelSpec, voc_palette
from fcn_deploy.tiling_options import Tiling

Labels = NDArray[np.uint8]


class BrightnessBackend(WithoutScores):
    """Four classes of brightness: a pixel in the wrong place gets the wrong class."""

    spec = ModelSpec(("black", "dark", "light", "white"), voc_palette(4))
    name = "eager"
    provider = "cpu"
    precision = "fp32"
    limits = ShapeLimits(max_batch=3)

    def logits(self, crops: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.limits.check(crops.shape)
        level = crops.mean(axis=3, dtype=np.float32)[:, None]
        centers = np.array([32, 96, 160, 224], np.float32)[:, None, None]
        logits: NDArray[np.float32] = -np.abs(level - centers) / 64
        return logits

    def labels(self, crops: NDArray[np.uint8]) -> NDArray[np.uint8]:
        labels: NDArray[np.uint8] = self.logits(crops).argmax(1).astype(np.uint8)
        return labels


MODEL = Segmenter(BrightnessBackend())


def some_labels(seed: int, height: int = 19, width: int = 34) -> Labels:
    return np.random.default_rng(seed).integers(0, 4, (height, width)).astype(np.uint8)


def photo(path: Path, labels: Labels, *, orientation: int = 1) -> Path:
    """A gray picture that the backend sees exactly these labels in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    gray = Image.fromarray(32 + 64 * labels).convert("RGB")
    kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    gray.save(path, kind, exif=exif, quality=100)
    return path


def mask(path: Path) -> Labels:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.array(image)


def tree(folder: Path) -> list[str]:
    """Every file below a folder, temporary ones included."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


def named(sources: Sequence[str | Path], out: Path | None = None) -> dict[str, str]:
    return {str(item.source): item.name for item in list_items(sources, out)}


def run(sources: Sequence[str | Path], out: Path) -> list[ItemReport]:
    return segment_items(MODEL, list_items(sources, out), out)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path()


def test_a_folder_is_searched_to_the_bottom_and_names_are_kept(here: Path) -> None:
    expected = {}
    for seed, name in enumerate(("b.png", "deep/er/a.v2.png", "deep/b.PNG", "c d.jpg", ".x.bmp")):
        expected[name] = some_labels(seed, 8 + seed, 40 - seed)
        photo(here / "photos" / name, expected[name])
    (here / "photos" / "notes.txt").write_text("no image")
    os.mkfifo(here / "photos" / "pipe.png")
    (here / "photos" / "folder.png").mkdir()
    told: list[ItemReport] = []
    items = list_items(["photos"], Path("out"))
    reports = segment_items(MODEL, items, Path("out"), on_item=told.append)
    assert told == reports
    assert [report.status for report in reports] == ["done"] * 5
    assert tree(here / "out") == sorted(
        f"mask/{Path(name).with_suffix('').as_posix()}.png" for name in expected
    )
    for report in reports:
        labels = expected[Path(report.source).relative_to("photos").as_posix()]
        assert report.outputs is not None
        np.testing.assert_array_equal(mask(Path(report.outputs["mask"])), labels)
        assert (report.height, report.width) == labels.shape
        assert report.as_dict()["error"] == ""


def test_named_files_are_taken_whatever_their_suffix(here: Path) -> None:
    photo(here / "in" / "a[1].png", some_labels(1))  # also a pattern, which would match a1.png
    photo(here / "in" / "a1.png", some_labels(2))
    photo(here / "in" / "download", some_labels(3))
    found = named(["in/a[1].png", "in/download"])
    assert found == {"in/a[1].png": "a[1]", "in/download": "download"}
    run(list(found), Path("out"))
    np.testing.assert_array_equal(mask(here / "out/mask/a[1].png"), some_labels(1))
    np.testing.assert_array_equal(mask(here / "out/mask/download.png"), some_labels(3))


def test_patterns_keep_the_folders_below_their_fixed_part(here: Path) -> None:
    for name in ("a/x/1.png", "a/y/z/2.png", "a/3.png", "b/x/4.jpg", "a/x/note.txt"):
        photo(here / "in" / name, some_labels(0))
    assert named(["in/a/**/*.png"]) == {
        "in/a/3.png": "3",
        "in/a/x/1.png": "x/1",
        "in/a/y/z/2.png": "y/z/2",
    }
    assert named(["in/*/x/*"]) == {"in/a/x/1.png": "a/x/1", "in/b/x/4.jpg": "b/x/4"}
    assert named(["**/[34].*"]) == {"in/a/3.png": "in/a/3", "in/b/x/4.jpg": "in/b/x/4"}
    assert named([(here / "in").absolute() / "a" / "?.png"]) == {
        str((here / "in/a/3.png").absolute()): "3"
    }


def test_images_that_would_share_an_output_all_get_one(here: Path) -> None:
    expected = {}
    for seed, name in enumerate(
        ("one/a.jpg", "one/a.png", "one/a.jpg.png", "two/a.png", "one/s/b.png", "two/s/b.png")
    ):
        expected[name] = some_labels(seed)
        photo(here / name, expected[name])
    reports = run(["one", "two"], Path("out"))
    assert sorted(report.source for report in reports) == sorted(expected)
    outputs = [report.outputs["mask"] for report in reports if report.outputs]
    assert len(set(outputs)) == len(expected)
    assert len(tree(here / "out")) == len(expected)
    for report, output in zip(reports, outputs, strict=True):
        np.testing.assert_array_equal(mask(Path(output)), expected[report.source])


STEM = st.sampled_from(["a", "a.jpg", "a-2", "a.jpg-2", "s/a", "s/a.png"])
NAMES = st.lists(
    st.tuples(st.sampled_from(["one", "two"]), STEM, st.sampled_from([".jpg", ".png", ".PNG"])),
    min_size=1,
    max_size=12,
    unique=True,
)


@given(NAMES)
@settings(max_examples=60, deadline=None)
def test_no_set_of_names_makes_two_outputs_one(names: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for source, stem, suffix in names:
            path = Path(folder, source, stem + suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        sources = [path for path in (Path(folder, "one"), Path(folder, "two")) if path.is_dir()]
        items = list_items(sources)
        assert len({item.source for item in items}) == len(items) == len(names)
        assert len({item.name for item in items}) == len(items)
        assert items == list_items(sources)


def test_an_image_that_is_named_twice_is_done_once(here: Path) -> None:
    photo(here / "in" / "s" / "a.png", some_labels(0))
    assert len(list_items(["in", "in/s/a.png", "in/**/*.png", "./in/s"])) == 1


def test_an_image_is_the_same_by_another_path(here: Path) -> None:
    photo(here / "in" / "a.png", some_labels(0))
    items = list_items(["in", (here / "in").absolute(), "in/../in/a.png"])
    assert [item.name for item in items] == ["a"]


@pytest.mark.parametrize("out", ["photos", "photos/out", "out"])
def test_outputs_of_an_earlier_run_are_no_inputs(here: Path, out: str) -> None:
    photo(here / "photos" / "a.png", some_labels(0))
    photo(here / "photos" / "masks" / "b.png", some_labels(1))  # not ours
    kinds = ("mask", "overlay", "confidence")
    before = tree(here / "photos")
    content = (here / "photos" / "a.png").read_bytes()
    seen = []
    for _ in range(2):
        items = list_items(["photos"], Path(out))
        seen.append([item.source.as_posix() for item in items])
        segment_items(MODEL, items, Path(out), save=kinds)
        outputs = {
            f"{kind}/{name}" for kind in kinds for name in tree(here / out / kind) if name[0] != "."
        }
        assert len(outputs) == 6
    assert seen[0] == seen[1] == [f"photos/{name}" for name in before]
    assert (here / "photos" / "a.png").read_bytes() == content


def test_what_cannot_be_read_fails_alone(here: Path) -> None:
    photo(here / "in" / "a.png", some_labels(0))
    photo(here / "in" / "z.png", some_labels(1))
    (here / "in" / "empty.png").write_bytes(b"")
    (here / "in" / "text.jpg").write_text("no image")
    torn = photo(here / "in" / "torn.png", some_labels(2))
    torn.write_bytes(torn.read_bytes()[:-40])
    items = [*list_items(["in"]), Item(here / "in" / "vanished.png", "vanished")]
    reports = segment_items(MODEL, items, Path("out"))
    status = {Path(report.source).name: report.status for report in reports}
    assert status == {
        "a.png": "done",
        "z.png": "done",
        **dict.fromkeys(("empty.png", "text.jpg", "torn.png", "vanished.png"), "failed"),
    }
    for report in reports:
        if report.status == "failed":
            assert report.source in report.error
            assert report.outputs is None
            assert (report.height, report.width) == (0, 0)
    assert tree(here / "out") == ["mask/a.png", "mask/z.png"]


def test_large_images_fail_alone(here: Path) -> None:
    photo(here / "in" / "large.png", some_labels(0, 30, 40))
    photo(here / "in" / "small.png", some_labels(0, 20, 20))
    reports = segment_items(MODEL, list_items(["in"]), Path("out"), max_pixels=1199)
    assert [report.status for report in reports] == ["failed", "done"]
    assert "1,199" in reports[0].error


def test_masks_lie_as_viewers_show_the_image(here: Path) -> None:
    shown = some_labels(7, 21, 45)
    photo(here / "in" / "turned.png", np.ascontiguousarray(np.rot90(shown)), orientation=6)
    (report,) = run(["in"], Path("out"))
    assert (report.height, report.width) == (21, 45)
    np.testing.assert_array_equal(mask(here / "out/mask/turned.png"), shown)


@pytest.mark.parametrize("hw", [(1, 1), (1, 70), (65, 1), (32, 64), (33, 31)])
def test_masks_have_exactly_the_size_of_the_image(here: Path, hw: tuple[int, int]) -> None:
    labels = some_labels(3, *hw)
    photo(here / "in" / "a.png", labels)
    save = ("confidence", "overlay", "mask")
    (report,) = segment_items(MODEL, list_items(["in"]), Path("out"), save=save)
    assert report.outputs is not None
    assert list(report.outputs) == list(save)
    np.testing.assert_array_equal(mask(here / "out/mask/a.png"), labels)
    for output in report.outputs.values():
        with Image.open(output) as image:
            assert image.size == hw[::-1]


def test_overlay_and_confidence_show_the_same_pixels(here: Path) -> None:
    labels = some_labels(5, 6, 10).repeat(16, 0).repeat(16, 1)  # blocks, which JPEG keeps
    photo(here / "in" / "a.png", labels)
    segment_items(MODEL, list_items(["in"]), Path("out"), save=("overlay", "confidence"))
    assert tree(here / "out") == ["confidence/a.png", "overlay/a.jpg"]
    logits = -np.abs(np.arange(4)[:, None] - np.arange(4)) / 1.0
    probability = (np.exp(logits) / np.exp(logits).sum(0)).max(0)
    with Image.open(here / "out/confidence/a.png") as image:
        assert image.mode == "L"
        np.testing.assert_allclose(np.array(image), 255 * probability[labels], atol=1)
    mixed = 0.45 * (32 + 64 * labels[:, :, None]) + 0.55 * np.array(voc_palette(4))[labels]
    with Image.open(here / "out/overlay/a.jpg") as image:
        centers = np.array(image).astype(float)[8::16, 8::16]
    np.testing.assert_allclose(centers, mixed[8::16, 8::16], atol=12)


@pytest.mark.parametrize("overlap", [0, 32, 64])
def test_crops_do_not_show_in_masks(here: Path, overlap: int) -> None:
    labels = some_labels(9, 150, 211)
    photo(here / "in" / "a.png", labels)
    save = ("mask", "confidence")
    items = list_items(["in"])
    segment_items(MODEL, items, Path("tiled"), save=save, tiling=Tiling((96, 128), overlap))
    segment_items(MODEL, items, Path("whole"), save=save, tiling=Tiling(None))
    np.testing.assert_array_equal(mask(here / "tiled/mask/a.png"), labels)
    for name in ("mask/a.png", "confidence/a.png"):
        assert (here / "tiled" / name).read_bytes() == (here / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe.png", b"line\nbreak.png", b"-o.png", b"a" * 251 + b".png"]
)
def test_odd_names_are_names(here: Path, raw: bytes) -> None:
    name = os.fsdecode(raw)
    photo(here / "in" / name, some_labels(4))
    (report,) = run(["in"], Path("out"))
    assert report.status == "done"
    assert [os.fsencode(name) for name in os.listdir("out/mask")] == [raw]  # noqa: PTH208
    np.testing.assert_array_equal(mask(here / "out" / "mask" / name), some_labels(4))


def test_an_unknown_output_is_refused_before_anything_is_written(here: Path) -> None:
    photo(here / "in" / "a.png", some_labels(0))
    with pytest.raises(UsageError, match="'probability'") as caught:
        segment_items(MODEL, list_items(["in"]), Path("out"), save=("mask", "probability"))
    assert "mask, overlay, confidence" in caught.value.remedy
    assert not (here / "out").exists()


def test_a_tile_that_does_not_fit_the_model_is_refused(here: Path) -> None:
    photo(here / "in" / "a.png", some_labels(0))
    with pytest.raises(UsageError, match="multiple of the output stride"):
        segment_items(MODEL, list_items(["in"]), Path("out"), tiling=Tiling((100, 100)))


def test_an_output_folder_that_is_a_file_is_an_environment_fault(here: Path) -> None:
    photo(here / "in" / "a.png", some_labels(0))
    (here / "out").write_bytes(b"in the way")
    with pytest.raises(EnvironmentFault, match="out"):
        run(["in"], Path("out"))
    assert (here / "out").read_bytes() == b"in the way"


def test_sources_without_images_are_refused(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "empty" / "notes.txt").write_text("no image")
    for source in ("empty", "empty/*.txt"):
        with pytest.raises(DataError, match="no image in") as caught:
            list_items([source])
        assert source in caught.value.problem
        assert ".png" in caught.value.remedy
    photo(here / "in" / "a.png", some_labels(0))
    for source in ("gone", "gone/a.png", "in/*.jpg"):
        with pytest.raises(DataError, match="no file, folder or match"):
            list_items(["in", source])  # one wrong name is not made up for by the others


def test_links_to_images_are_images_and_links_to_folders_are_not_followed(here: Path) -> None:
    photo(here / "elsewhere" / "a.png", some_labels(0))
    photo(here / "in" / "b.png", some_labels(1))
    (here / "in" / "link.png").symlink_to(Path("../elsewhere/a.png"))
    (here / "in" / "loop").symlink_to(".")
    (here / "in" / "folder").symlink_to("../elsewhere")
    assert named(["in"]) == {"in/b.png": "b", "in/link.png": "link"}


def test_patterns_do_not_follow_links_to_folders_either(here: Path) -> None:
    photo(here / "in" / "z.png", some_labels(0))
    (here / "in" / "loop").symlink_to(".")
    assert named(["in/**/*.png"]) == {"in/z.png": "z"}


def test_a_dangling_link_is_reported_not_dropped(here: Path) -> None:
    photo(here / "in" / "a.png", some_labels(0))
    (here / "in" / "dangling.png").symlink_to("unmounted.png")
    (here / "in" / "self.png").symlink_to("self.png")
    status = {report.source: report.status for report in run(["in"], Path("out"))}
    assert status == {"in/a.png": "done", "in/dangling.png": "failed", "in/self.png": "failed"}


def test_an_image_too_wide_for_jpeg_does_not_stop_the_others(here: Path) -> None:
    photo(here / "in" / "a.png", some_labels(0, 1, 65_501))
    photo(here / "in" / "b.png", some_labels(1))
    reports = segment_items(MODEL, list_items(["in"]), Path("out"), save=("mask", "overlay"))
    assert reports[1].status == "done"
    if reports[0].status == "done":
        assert reports[0].outputs is not None
        assert Path(reports[0].outputs["overlay"]).is_file()
    else:
        assert "65" in reports[0].error


def test_names_too_long_for_an_output_do_not_stop_the_others(here: Path) -> None:
    for suffix in ("jpg", "png"):  # together they keep their suffixes, which makes 259 bytes
        photo(here / "in" / f"{'a' * 251}.{suffix}", some_labels(0))
    photo(here / "in" / "b.png", some_labels(1))
    status = {Path(report.source).name: report.status for report in run(["in"], Path("out"))}
    assert status["b.png"] == "done"
    assert len(status) == 3
