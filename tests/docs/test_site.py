"""The site as a browser sees it: built without a warning, no request to elsewhere, no error."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; the build stops at any warning (dead links and anchors are some)."""
    pytest.importorskip("mkdocstrings", reason="mkdocs is not installed (extra docs)")
    out = tmp_path_factory.mktemp("site")
    build = ["build", "--strict", "--config-file", "tools/docs/mkdocs.yml", "--site-dir", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *build],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


@pytest.mark.slow
def test_generated_and_shared_text_is_in_the_site(site: Path) -> None:
    text = {path.name: path.read_text() for path in site.glob("*.html")}
    assert "train.lr_batch_size" in text["configuration.html"]
    assert "none | group | batch" in text["configuration.html"]  # one cell, no escape
    assert "--score-threshold" in text["commands.html"]
    assert "0.1.0" in text["changelog.html"]
    assert "make test-all" in text["contributing.html"]
    assert 'id="unisolo.predictor.Predictor.predict"' in text["api.html"]
    assert "<!-- insert" not in "".join(text.values())


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def failure(request: Any) -> list[str]:
    """What failed; a page that is left while it loads (its search does so last) is no failure."""
    return [] if request.failure == "net::ERR_ABORTED" else [f"{request.url}: {request.failure}"]


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.is_file():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox"], timeout=120_000
        )
        yield browser
        browser.close()


@pytest.mark.slow
def test_search_works_without_a_network(address: str, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{address}/index.html", wait_until="networkidle", timeout=120_000)
    page.click(".md-search__input")
    page.locator(".md-search__input").press_sequentially("points NMS", delay=50)
    links = page.locator(".md-search-result__link")
    links.first.wait_for(timeout=120_000)
    found = [links.nth(n).get_attribute("href") for n in range(links.count())]
    assert any("concepts.html" in link for link in found)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_pages_in_a_browser(
    site: Path, address: str, browser: Any, scheme: str, width: int
) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    requests: list[str] = []
    faults: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("requestfailed", lambda request: faults.extend(failure(request)))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "console",
        lambda message: faults.append(message.text) if message.type == "error" else None,
    )
    for name in sorted(path.name for path in site.glob("*.html")):
        page.goto(f"{address}/{name}", wait_until="load", timeout=120_000)
        assert not faults, (name, faults)
        # Wide tables and code scroll inside themselves; the page does not.
        overflow = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert overflow <= 0, (name, overflow)
        shown = page.evaluate("document.body.getAttribute('data-md-color-scheme')")
        assert shown == {"light": "default", "dark": "slate"}[scheme], name
    elsewhere = [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert requests
    assert not elsewhere
