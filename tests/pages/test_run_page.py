"""``report``: what is on the page, what is said of what is missing, and that names stay names."""

from __future__ import annotations

import html
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_records import HOSTILE, HOSTILE_CLASS, HOSTILE_IMAGE, call

from fcn_deploy.describe import describe
from fcn_deploy.pages.run_page import read_records, write_run_page

pytest_plugins = ("page_fixtures",)

SECTIONS = ("card", "training", "classes", "confusion", "gallery", "verification", "benchmark")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Page(HTMLParser):
    """Every element of a page, and its text outside of scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002 - the parser calls it so
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(report_page: Path) -> Page:
    return Page(report_page)


def test_it_has_every_section_and_a_link_to_each(page: Page) -> None:
    assert tuple(section["id"] for section in page.all("section")) == SECTIONS
    assert tuple(link["href"] for link in page.all("a"))[1:] == tuple(f"#{s}" for s in SECTIONS)


def test_names_are_text_and_never_markup(page: Page, report_page: Path) -> None:
    for name in (HOSTILE_CLASS, HOSTILE_IMAGE, "ru<b>n", "da<b>ta"):
        assert name in page.text
    assert f"Labels are equal on 71 % only {HOSTILE}." in page.text
    # On axes names are shortened, and dollars are no formula: bars, both sides of the matrix.
    assert page.text.count(f"{HOSTILE_CLASS[:21]}…") == 3
    assert f"A remark {HOSTILE}" in page.text
    # Our own script, and nothing that came with a name: no element, no attribute that runs.
    assert len(page.all("script")) == 1
    assert not page.all("b") or all("class" in bold for bold in page.all("b"))
    assert not [name for _, found in page.elements for name in found if name.startswith("on")]
    for markup in ("<script>alert", "<img src=x", "ru<b>n", "da<b>ta"):
        assert markup not in report_page.read_text()


def test_nothing_on_it_is_elsewhere(page: Page) -> None:
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policy == [POLICY]
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster")
    ]
    assert len(addresses) > 15
    assert all(str(address).startswith(("data:image/", "#")) for address in addresses)
    assert not page.all("link")
    assert not page.all("iframe")


def test_its_figures_are_those_of_evaluate(
    page: Page, hostile_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("evaluate", hostile_run, "--json", "e.json")
    assert result.exit_code == 0, result.output
    figures = json.loads(Path("e.json").read_text())
    assert f"{figures['mean_iou']:.3f}" in page.text
    assert f"{100 * figures['pixel_accuracy']:.1f} %" in page.text
    for name, iou in figures["class_iou"].items():
        share = 100 * figures["class_frequency"][name]
        row = f"{name}{iou:.3f}{figures['class_accuracy'][name]:.3f}{share:.2f} %"
        assert row in page.text
    taken = {
        f"{100 * count / sum(row):.1f} % of {true} was taken for {other}."
        for true, row in zip(figures["class_iou"], figures["confusion"], strict=True)
        for other, count in zip(figures["class_iou"], row, strict=True)
        if true != other
    }
    listed = re.findall(r"[\d.]+ % of .*? was taken for .*?\.(?=\d|\n)", page.text)
    assert listed
    assert set(listed) <= taken


def test_the_gallery_is_from_the_worst_to_the_best(page: Page) -> None:
    figures = [float(iou) for iou in re.findall(r"mean IoU (\d\.\d{3})", page.text)]
    assert len(figures) == 3
    assert figures == sorted(figures)


def test_every_picture_has_words(page: Page) -> None:
    assert all(image["alt"] for image in page.all("img"))
    charts = [figure for figure in page.all("figure") if figure.get("role") == "img"]
    # Loss, accuracy, classes, matrix; errors, margins; two latencies, throughput, stages.
    assert len(charts) == len(page.all("svg")) == 10
    assert all(len(str(chart["aria-label"])) > 30 for chart in charts)
    assert all(slider.get("aria-label") for slider in page.all("input") if "handle" in slider)


def test_identifiers_are_unique(report_page: Path) -> None:
    found = re.findall(r'\sid="([^"]*)"', report_page.read_text())
    assert len(found) > 50
    assert len(set(found)) == len(found)


def test_what_verify_and_benchmark_found_is_there(page: Page) -> None:
    for text in (
        "2 of 3",
        "against eager fp32 on 3 images",
        "92.0 ms",
        "There is no NVIDIA GPU on this machine.",
        "ONNX Runtime fp16, 320x480, batch 4: Too many at once.",
        "0.65 (0.61 to 0.70)",
        "126, of 1 size",
        "scene: 99.910 %",
        "A card <script>",
        "It looks as if red and blue were swapped.",
        "scene, row 12, column 99: sky became road, margin 4.0e-04",
    ):
        assert text in page.text
    # As good as all is not all.
    assert "> 99.9999 %" in page.text
    assert "100.0000 %" not in page.text


def test_the_card_says_what_is_known_and_no_more(page: Page, hostile_run: Path) -> None:
    import hashlib

    digest = hashlib.sha256((hostile_run / "best.safetensors").read_bytes()).hexdigest()
    assert digest in page.text
    assert "uint8 [batch, 32*rows, 32*columns, 3]" in page.text
    assert "3 images of da<b>ta, split val" in page.text
    assert re.search(r"0\.\d+ % of the pixels carry no label", page.text)


def test_what_is_missing_is_said_with_the_command_that_makes_it(
    hostile_run: Path, tmp_path: Path
) -> None:
    shutil.copy(hostile_run / "best.safetensors", tmp_path)
    result = call("report", tmp_path)
    assert result.exit_code == 0, result.output
    assert "The data of this run is not here." in result.stderr
    text = Page(tmp_path / "report.html").text
    for command in (
        "fcn-deploy train DATA",
        "fcn-deploy report --data DATA",
        "fcn-deploy verify",
        "fcn-deploy benchmark",
    ):
        assert command in text
    assert "Its accuracy was not measured for this page." in text


def test_without_evaluating(hostile_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = call("report", hostile_run, "--no-evaluate", "-o", page)
    assert result.exit_code == 0, result.output
    assert "The model was not judged, as asked." in Page(page).text
    assert "Training loss" in page.read_text()
    assert not page.read_text().count("image/jpeg")


@pytest.mark.parametrize("images", [0, 2])
def test_as_many_images_as_asked_for(images: int, hostile_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = call("report", hostile_run, "--images", images, "-o", page)
    assert result.exit_code == 0, result.output
    assert page.read_text().count("data:image/jpeg") == images
    assert "3 images, da<b>ta/val" in Page(page).text


def test_the_same_run_is_the_same_page(hostile_run: Path, tmp_path: Path) -> None:
    facts = describe(hostile_run / "best.safetensors")
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        write_run_page(
            page, read_records(hostile_run), facts, None, unjudged=("", ""), made="2026-11-22"
        )
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert b"2026-11-22" in pages[0].read_bytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.json", "{"),
        ("train.json", '{"history": [{"epoch": 1}]}'),
        ("verify.json", '{"rungs": 3}'),
        ("benchmark.json", "[]"),
        ("benchmark.json", '{"rows": [{}]}'),
    ],
)
def test_a_damaged_record_is_refused_before_the_work(
    name: str, content: str, hostile_run: Path, tmp_path: Path
) -> None:
    shutil.copy(hostile_run / "best.safetensors", tmp_path)
    (tmp_path / name).write_text(content)
    result = call("report", tmp_path, "--data", tmp_path / "nowhere")
    assert result.exit_code == 4
    assert name in result.stderr
    assert len(result.stderr.splitlines()) <= 4
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_before_the_work(
    package: str, hostile_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = call("report", hostile_run, "-o", tmp_path / "page.html")
    assert result.exit_code == 5
    assert f"{package} is not installed" in result.stderr
    assert 'pip install "fcn-deploy[report]"' in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_none_is_a_usage_error(tmp_path: Path) -> None:
    result = call("report", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "is no run folder" in result.stderr


def test_text_is_escaped_once(report_page: Path) -> None:
    assert html.escape(html.escape("<b>")) not in report_page.read_text()


@pytest.mark.parametrize(
    ("stamp", "shown"),
    [
        ({"passed": True, "against": "best.safetensors", "images": 7}, "passed verified"),
        ({"passed": False, "against": "best.safetensors", "images": 7}, "failed verified"),
        ({"passed": True}, ""),
        (None, "99.990 % labels equal"),
    ],
)
def test_without_verify_json_the_file_tells_what_it_knows(
    stamp: dict[str, object] | None, shown: str, hostile_run: Path, tmp_path: Path
) -> None:
    facts = describe(hostile_run / "best.safetensors") | {
        "verified": stamp,
        "parity": {
            "candidate": "ort fp32",
            "reference": "eager fp32",
            "crops": 9,
            "label_agreement": 0.9999,
        },
    }
    run, page = tmp_path / "run", tmp_path / "page.html"
    run.mkdir()
    write_run_page(page, read_records(run), facts, None, unjudged=("", ""), made="2026-11-22")
    headlines = re.findall(r"<li><b class=\"\w*\">(.*?)</b> <span>(.*?)</span>", page.read_text())
    assert [" ".join(headline) for headline in headlines] == ([shown] if shown else [])
