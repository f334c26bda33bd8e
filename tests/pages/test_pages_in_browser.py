"""The pages in headless Chromium: alone with their file, by mouse, finger and keyboard."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from page_records import benchmark_record, verification_record
from PIL import Image

from fcn_deploy.pages.benchmark import write_benchmark_page
from fcn_deploy.pages.verification import write_verification_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Locator, Page

pytest_plugins = ("page_fixtures",)

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESKTOP = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"There is no browser here: none of {', '.join(BROWSERS)}.")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, who runs the tests in most containers.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(
    report_page: Path, gallery_page: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    write_benchmark_page(folder / "benchmark.html", benchmark_record())
    write_verification_page(folder / "verification.html", verification_record())
    return {
        "report": report_page,
        "gallery": gallery_page,
        "benchmark": folder / "benchmark.html",
        "verification": folder / "verification.html",
    }


class Visit:
    """A page opened from disk, and everything that went wrong on it."""

    def __init__(self, context: BrowserContext, path: Path) -> None:
        self.requests: list[str] = []
        self.troubles: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.page.goto(path.as_uri(), wait_until="load")

    def clip(self) -> float:
        """Where the first mask begins, in percent of the width."""
        style: str = self.page.locator(".over").first.evaluate("e => getComputedStyle(e).clipPath")
        left = style.removeprefix("inset(").rstrip(")").split()[-1]
        assert left.endswith("%"), style
        return float(left[:-1])

    def first(self) -> Locator:
        return self.page.locator(".compare").first

    def shown(self) -> list[str]:
        """Which layers of the first image can be seen."""
        layers = self.page.locator(".over").first.locator("img")
        return [str(one.get_attribute("class")) for one in layers.all() if one.is_visible()]


def visit(browser: Browser, path: Path, size: tuple[int, int] = DESKTOP, **options: bool) -> Visit:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]},
        has_touch=options.get("touch", False),
        java_script_enabled=options.get("scripts", True),
        color_scheme="dark" if options.get("dark") else "light",
    )
    context.set_default_timeout(20_000)
    return Visit(context, path)


@pytest.mark.parametrize("name", ["report", "gallery", "benchmark", "verification"])
def test_it_opens_from_disk_and_asks_for_nothing(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    seen = visit(browser, pages[name])
    outside = [url for url in seen.requests if not url.startswith("data:")]
    assert outside == [pages[name].as_uri()]
    assert seen.troubles == []
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert seen.page.evaluate(broken) == 0


@pytest.mark.parametrize("name", ["report", "gallery", "benchmark", "verification"])
def test_nothing_is_wider_than_a_phone(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    seen = visit(browser, pages[name], PHONE, touch=True)
    for details in seen.page.locator("summary").all():
        details.click()
    assert seen.page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    assert seen.page.evaluate("visualViewport.scale") == 1


@pytest.mark.parametrize("name", ["report", "gallery"])
def test_the_divider_follows_the_mouse(name: str, browser: Browser, pages: dict[str, Path]) -> None:
    seen = visit(browser, pages[name])
    assert seen.clip() == 50
    first = seen.first()
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    mouse = seen.page.mouse
    mouse.move(box["x"] + box["width"] / 2, middle)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.25, middle, steps=4)
    assert seen.clip() == pytest.approx(25, abs=0.5)
    mouse.move(box["x"] - 50, middle)
    assert seen.clip() == 0
    mouse.up()
    mouse.move(box["x"] + box["width"] * 0.7, middle)
    assert seen.clip() == 0
    assert seen.troubles == []


def test_the_divider_follows_a_finger(browser: Browser, pages: dict[str, Path]) -> None:
    seen = visit(browser, pages["gallery"], PHONE, touch=True)
    first = seen.first()
    first.scroll_into_view_if_needed()
    box = first.bounding_box()
    assert box is not None
    seen.page.touchscreen.tap(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    assert seen.clip() == pytest.approx(80, abs=1)
    session = seen.page.context.new_cdp_session(seen.page)
    y = box["y"] + box["height"] / 2
    for kind, share in (("Start", 0.8), ("Move", 0.6), ("Move", 0.4), ("Move", 0.3)):
        point = {"x": box["x"] + box["width"] * share, "y": y}
        session.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": [point]})
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert seen.clip() == pytest.approx(30, abs=1)


@pytest.mark.parametrize("name", ["report", "gallery"])
def test_everything_is_reached_and_moved_by_keys(
    name: str, browser: Browser, pages: dict[str, Path]
) -> None:
    seen = visit(browser, pages[name])
    keys, focused = seen.page.keyboard, []
    describe = """() => { const e = document.activeElement;
        return e.classList.contains("handle") ? "divider" : e.getAttribute("href") || e.type
            || e.getAttribute("role") || e.tagName }"""
    for _ in range(60):
        keys.press("Tab")
        focused.append(seen.page.evaluate(describe))
        if focused[-1] == "divider":
            break
    assert focused[0] == "#content"
    assert focused[-1] == "divider"
    assert "range" in focused
    if name == "report":
        assert focused[1:3] == ["#card", "#training"]
        assert "radio" in focused
        assert "region" in focused
    for key, place in (("ArrowRight", 51), ("ArrowLeft", 50), ("ArrowLeft", 49), ("Home", 0)):
        keys.press(key)
        assert seen.clip() == place
    focus = seen.page.locator(".divider").first.evaluate(
        "e => getComputedStyle(e, '::after').outlineStyle"
    )
    assert focus == "solid"


def test_prediction_truth_and_errors_take_turns(browser: Browser, pages: dict[str, Path]) -> None:
    seen = visit(browser, pages["report"])
    assert seen.shown() == ["prediction"]
    for name in ("truth", "errors", "prediction"):
        seen.page.locator(f'label:has([value="{name}"])').click()
        assert seen.shown() == [name]
    slider = seen.page.locator(".opacity input")
    slider.focus()
    slider.press("Home")
    opacity = "e => getComputedStyle(e).opacity"
    assert seen.page.locator(".over .prediction").first.evaluate(opacity) == "0"


def test_without_scripts_half_of_the_mask_is_there(
    browser: Browser, pages: dict[str, Path]
) -> None:
    seen = visit(browser, pages["report"], scripts=False)
    clip = seen.page.locator(".over").first.bounding_box()
    assert clip is not None
    assert seen.page.locator(".over .prediction").first.is_visible()
    assert seen.page.locator(".divider").first.is_visible()
    assert not seen.page.locator(".opacity").is_visible()
    seen.page.locator('label:has([value="errors"])').click()
    assert seen.shown() == ["errors"]


def brightness(picture: bytes) -> tuple[float, int]:
    """Mean gray value, and number of different colours."""
    with Image.open(io.BytesIO(picture)) as image:
        small = image.convert("RGB").resize((160, 160))
    gray = small.convert("L").histogram()
    mean = sum(value * count for value, count in enumerate(gray)) / (160 * 160)
    return mean, len(small.getcolors(160 * 160) or [])


@pytest.mark.parametrize("name", ["report", "gallery", "benchmark", "verification"])
@pytest.mark.parametrize(
    ("look", "size", "dark"),
    [("desktop", DESKTOP, False), ("phone", PHONE, False), ("dark", DESKTOP, True)],
)
def test_screenshots(
    name: str,
    look: str,
    size: tuple[int, int],
    dark: bool,
    browser: Browser,
    pages: dict[str, Path],
    tmp_path: Path,
) -> None:
    seen = visit(browser, pages[name], size, dark=dark)
    target = tmp_path / f"{name}-{look}.png"
    mean, colors = brightness(seen.page.screenshot(path=target, full_page=True))
    print(f"Screenshot: {target}")  # noqa: T201 - for whoever runs this with -s or -rP
    assert colors > 50
    assert mean < 90 if dark else mean > 150
    # Charts are as readable on dark as on light: their letters have the page's colour.
    for text in seen.page.locator(".chart svg text").all()[:4]:
        color = text.evaluate("e => getComputedStyle(e).fill")
        assert color == seen.page.evaluate("getComputedStyle(document.body).color")


def test_matrix_of_many_classes(browser: Browser, tmp_path: Path) -> None:
    """One hundred and fifty classes are a picture, not 22,500 shapes."""
    import numpy as np

    from fcn_deploy.pages.charts import class_bars, confusion_heat_map
    from fcn_deploy.spec import voc_palette

    names = tuple(f"class {number}" for number in range(150))
    matrix = np.random.default_rng(0).integers(0, 99, (150, 150))
    chart = confusion_heat_map(names, matrix)
    bars = class_bars(names, voc_palette(150), tuple(number / 150 for number in range(150)))
    assert len(chart.svg) < 400_000
    (tmp_path / "page.html").write_text(f"<!doctype html><body>{chart.svg}{bars.svg}</body>")
    seen = visit(browser, tmp_path / "page.html")
    assert seen.page.locator("svg image").count() == 1
    assert seen.troubles == []


def test_the_records_of_these_tests_are_json() -> None:
    assert json.loads(json.dumps(benchmark_record(), allow_nan=False))
    assert json.loads(json.dumps(verification_record(), allow_nan=False))
