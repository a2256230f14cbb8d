"""The page in Chromium, as people open it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import evaluated, write_data

from unisolo.report import write_report

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no /usr/bin/chromium here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page, and all that it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str) -> None:
        self.troubles: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        self.page.on("request", self._requested)
        self.page.goto(path.as_uri())

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("data:image/jpeg", "file:")):
            self.troubles.append(request.url)

    def first_rows(self, count: int = 3) -> list[str]:
        return self.page.locator("table.sortable tbody th").all_inner_texts()[:count]


def test_133_categories_open_sort_and_choose(browser: Any, many: Path, tmp_path: Path) -> None:
    opened = Opened(browser, write_report(many, out=tmp_path / "page.html"), 400, "dark")
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert opened.first_rows()[0] == "<script>alert(1)</script>"

    head = page.locator("table.sortable thead th", has_text="ground truth")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    counts = page.locator("table.sortable tbody tr td:nth-child(3)").all_inner_texts()
    assert list(map(int, counts)) == sorted(map(int, counts), reverse=True)
    page.locator("table.sortable thead th", has_text="mask AP").get_by_role("button").click()
    cells = page.locator("table.sortable tbody tr td:nth-child(5)").all_inner_texts()
    numbers = [float(cell) for cell in cells if cell != "-"]
    assert numbers == sorted(numbers, reverse=True)
    assert cells[len(numbers) :] == ["-"] * (133 - len(numbers))
    assert head.get_attribute("aria-sort") is None

    page.select_option("#choice", index=1)
    chosen = page.locator("#chosen .name").inner_text()
    assert chosen == page.locator("#choice option").nth(1).inner_text()
    pair = page.locator(".pairs figure").first
    pair.get_by_role("button").press("Enter")
    assert "wide" in (pair.get_attribute("class") or "")
    images = page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert images
    assert opened.troubles == []
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("task", ["panoptic", "instance", "detection"])
def test_every_page_fits_and_prints(
    browser: Any, task: str, scheme: str, width: int, tmp_path: Path
) -> None:
    maps = write_data(tmp_path / "data", images=6, things=5, stuff=2)
    evaluated(tmp_path / "data", tmp_path / "out", maps=maps, task=task)
    opened = Opened(browser, write_report(tmp_path / "out"), width, scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    back = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    opened.page.emulate_media(media="print")
    back = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == "rgb(255, 255, 255)"
    opened.page.evaluate(
        "addEventListener('beforeprint', () => "
        "{ window.opened = document.querySelectorAll('details[open]').length })"
    )
    pdf = opened.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert opened.page.evaluate("window.opened") == 1  # the settings, which paper cannot unfold
    assert opened.troubles == []
    opened.page.close()


@pytest.mark.slow
def test_without_script_everything_is_there(browser: Any, many: Path, tmp_path: Path) -> None:
    path = write_report(many, out=tmp_path / "page.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("table.sortable tbody tr").count() == 133
    assert page.locator("table.sortable thead button").count() == 0
    assert not page.locator("#choice").is_visible()
    page.locator("#each-details summary").click()
    assert page.locator("#each figure").first.is_visible()
    context.close()
