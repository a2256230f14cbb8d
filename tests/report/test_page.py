"""The page itself: nothing is loaded, nothing runs but its own script, everything can be read."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from unisolo.report import write_report


class Page(HTMLParser):
    """Tags, their attributes, and the text of the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


@pytest.fixture(scope="module")
def text(many: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    return write_report(many, out=out).read_text("utf-8")


def test_names_are_text_and_one_script_runs(text: str) -> None:
    page = Page(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}'" in policy
    assert not [name for _, a in page.tags for name in a if name.startswith("on")]


def test_nothing_is_loaded_from_elsewhere(text: str) -> None:
    page = Page(text)
    addresses = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert any(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|<link|https?:", text)
    places = {a["id"] for _, a in page.tags if "id" in a}
    assert {address[1:] for address in addresses if address.startswith("#")} <= places


def test_tables_and_charts_say_what_they_are(text: str) -> None:
    page = Page(text)
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert all(a.get("aria-label") for tag, a in page.tags if tag == "svg")
    assert all(a.get("alt") for tag, a in page.tags if tag == "img")
    assert [tag for tag, _ in page.tags].count("h1") == 1


def test_133_categories_stay_small(text: str, many: Path) -> None:
    assert len(text.encode()) < 10_000_000
    assert text.count('<th scope="row"><span class="swatch"') == 133


def colors(style: str) -> list[dict[str, tuple[float, ...]]]:
    """The CSS colours of the light and of the dark page, 0..255."""
    schemes = ({}, {})
    dark = re.findall(r"@media \(prefers-color-scheme: dark\) \{(.*?\})\s*\}", style, re.S)
    light = re.sub(r"@media.*?\}\s*\}", "", style, flags=re.S)
    for found, part in zip(schemes, (light, light + "".join(dark)), strict=True):
        for name, value in re.findall(r"--([\w-]+): #([0-9a-f]+);", part):
            digits = value if len(value) == 6 else "".join(2 * digit for digit in value)
            found[name] = tuple(int(digits[n : n + 2], 16) for n in (0, 2, 4))
        for values in re.findall(r"--shade: (\d+ \d+ \d+);", part):
            found["shade"] = tuple(map(int, values.split()))
    return list(schemes)


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2.1, "contrast ratio"."""

    def luminance(color: tuple[float, ...]) -> float:
        linear = [
            v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4
            for v in (value / 255 for value in color)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_everything_can_be_read_in_light_and_dark(text: str) -> None:
    style = text.split("<style>")[1].split("</style>")[0]
    strongest = max(map(float, re.findall(r"rgb\(var\(--shade\) / ([\d.]+)\)", style)))
    light, dark = colors(style)
    assert light["back"] != dark["back"]
    for scheme in (light, dark):
        for back in (scheme["back"], scheme["card"]):
            for name in ("text", "dim", "warning", "good", "s0"):
                assert contrast(scheme[name], back) >= 4.5, (name, back)
            for name in ("s1", "s2", "s3"):  # lines
                assert contrast(scheme[name], back) >= 3, (name, back)
        shaded = tuple(
            strongest * over + (1 - strongest) * under
            for over, under in zip(scheme["shade"], scheme["back"], strict=True)
        )
        assert contrast(scheme["text"], shaded) >= 4.5
