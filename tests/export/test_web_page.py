"""The exported page in real Chromium, held to `Predictor`.

`UNISOLO_CHECKPOINT` names a checkpoint or an exported .onnx with its checkpoint beside it (else an
untrained model with many instances is used), `UNISOLO_IMAGES` a folder of images (else generated
scenes), and `UNISOLO_WEB_RUNTIME` the runtime (else the cache, or npm).
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_model import lively_model

from unisolo import Predictor, Result, UniSolo
from unisolo.data.shapes import generate_shapes
from unisolo.export.web import export_web, graph_to_web
from unisolo.zoo import load_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder of files on this machine and remembers what was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path, headers: dict[str, str] | None = None) -> None:
        self.asked: list[str] = []
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path)
                super().do_GET()

            def end_headers(self) -> None:
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                super().end_headers()

            def log_message(self, *args: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/"


@pytest.fixture(scope="module")
def model() -> UniSolo:
    path = os.environ.get("UNISOLO_CHECKPOINT")
    if not path:
        return lively_model()
    return load_model(Path(path).with_suffix(".safetensors"))


@pytest.fixture(scope="module")
def site(model: UniSolo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder, two folders below the one that is served."""
    if shutil.which("npm") is None and "UNISOLO_WEB_RUNTIME" not in os.environ:
        pytest.skip("npm, which fetches the runtime, is not on this machine")
    out = tmp_path_factory.mktemp("served") / "some" / "page"
    given = Path(os.environ.get("UNISOLO_CHECKPOINT", ""))
    settings: dict[str, Any] = {"runtime": os.environ.get("UNISOLO_WEB_RUNTIME"), "name": "Toys"}
    if given.suffix == ".onnx":  # exporting a large model takes minutes
        graph_to_web(given, out, **settings)
    else:
        export_web(model, out, images=None, **settings)
    return out


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Server]:
    with Server(site.parents[1]) as server:
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three images as PNG, which every decoder reads alike."""
    folder = tmp_path_factory.mktemp("pictures")
    found = os.environ.get("UNISOLO_IMAGES")
    if found:
        paths = sorted(path for path in Path(found).iterdir() if path.suffix in (".jpg", ".png"))
    else:
        paths = []
        for seed, size in enumerate([(60, 90), (64, 64), (200, 133)]):
            root = generate_shapes(
                folder / f"{seed}", num_train=1, num_val=1, image_size=size, seed=seed
            )
            paths += (root / "val2017").iterdir()
    made = []
    for place, path in enumerate(paths[:3]):
        made.append(folder / f"picture {place}.png")
        Image.open(path).convert("RGB").save(made[-1])
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = [
            "--no-sandbox",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
            "--enable-unsafe-webgpu",
            "--use-webgpu-adapter=swiftshader",
        ]
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield browser
        browser.close()


class Page:
    """A page that has started, and all that went wrong in it."""

    def __init__(self, browser: Any, address: str, backend: str = "wasm") -> None:
        self.context = browser.new_context(accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(300_000)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"{address}?backend={backend}")
        self.page.wait_for_selector("body[data-ready], #status.error")
        assert self.page.query_selector("#status.error") is None, self.status
        self.backend = self.page.evaluate("document.body.dataset.ready")

    @property
    def status(self) -> str:
        return self.page.inner_text("#status-text")

    def give(self, path: Path) -> None:
        """Choose a file and wait for its results, or for what is said instead."""
        done = int(self.page.evaluate("document.body.dataset.done ?? 0"))
        self.page.evaluate("document.getElementById('status').className = ''")
        self.page.set_input_files("#file", str(path))
        self.page.wait_for_selector(f"body[data-done='{done + 1}'], #status.error")

    def save(self, kind: str, folder: Path) -> Path:
        with self.page.expect_download() as waiting:
            self.page.click(f"#save-{kind}")
        target = folder / waiting.value.suggested_filename
        waiting.value.save_as(target)
        return target

    def coco(self, folder: Path) -> dict[str, Any]:
        return json.loads(self.save("coco", folder).read_text())


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Page]:
    page = Page(browser, f"{server.url}some/page/")
    yield page
    page.context.close()
    assert page.problems == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in page.requests)


def check_equal(found: dict[str, Any], panoptic: Path | None, expected: Result) -> None:
    """Hold the files that a page saved to a result of `Predictor`."""
    theirs = expected.to_coco(1)
    ours = found["annotations"]
    assert found["images"][0]["height"] == expected.image_size[0]
    assert [one["category_id"] for one in ours] == [one["category_id"] for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert abs(one["score"] - other["score"]) <= 1e-3
        iou = coco_mask.iou([one["segmentation"]], [other["segmentation"]], [0])
        assert iou[0, 0] >= 0.99
        assert one["area"] == coco_mask.area(one["segmentation"])
        assert one["bbox"] == list(coco_mask.toBbox(one["segmentation"]))
    if panoptic is None:
        return
    assert expected.panoptic_seg is not None and expected.segments_info is not None
    rgb = np.asarray(Image.open(panoptic).convert("RGB")).astype(int)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    assert (ids == expected.panoptic_seg.numpy()).mean() >= 0.999
    segments = found["panoptic"]["segments_info"]
    assert found["panoptic"]["file_name"] == panoptic.name
    pairs = [(one.id, one.category_id) for one in expected.segments_info]
    assert [(one["id"], one["category_id"]) for one in segments] == pairs
    assert [one["area"] for one in segments] == [int((ids == one["id"]).sum()) for one in segments]


def check_near(found: dict[str, Any], expected: Result) -> None:
    """Hold nearly all instances to a result: enough to notice an image that is read otherwise.

    The cells of an untrained model may lie so near a threshold that native and WebAssembly code
    disagree on one, which moves a score.
    """
    theirs, ours = expected.to_coco(1), found["annotations"]
    assert found["images"][0]["height"] == expected.image_size[0]
    partners = [
        one
        for other in theirs
        for one in ours
        if one["category_id"] == other["category_id"]
        and abs(one["score"] - other["score"]) <= 0.02
        and coco_mask.iou([one["segmentation"]], [other["segmentation"]], [0])[0, 0] >= 0.99
    ]
    assert len({one["id"] for one in partners}) >= 0.9 * max(len(theirs), len(ours))


def test_results_are_the_predictor_s(
    page: Page, model: UniSolo, pictures: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor(model)
    seen = 0
    for path in pictures:
        page.give(path)
        page.context.set_offline(True)  # nothing more is needed from here on
        expected = predictor.predict(path)
        check_equal(page.coco(tmp_path), page.save("panoptic", tmp_path), expected)
        seen += len(expected)
    assert seen >= 3 and "WebAssembly" in page.backend


def test_nothing_leaves_the_page(page: Page, tmp_path: Path) -> None:
    """The policy holds in the worker too, where the image is."""
    (tmp_path / "secret").write_text("x")
    with Server(tmp_path) as other:
        (worker,) = page.page.workers
        for place in (page.page, worker):
            with pytest.raises(playwright.Error, match=r"Failed to fetch|violates"):
                place.evaluate("(url) => fetch(url, {mode: 'no-cors'})", f"{other.url}secret")
        other.shutdown()
        assert other.asked == []
    assert all("Content Security Policy" in text for text in page.problems)
    page.problems.clear()


def test_views_and_scores(page: Page, pictures: list[Path], tmp_path: Path) -> None:
    page.give(pictures[0])
    width, height = Image.open(pictures[0]).size
    listed = {}
    for view in ("instances", "boxes", "panoptic"):
        page.page.click(f"#view-{view}")
        page.page.wait_for_selector(f"body[data-redrawn^='{view}']")
        listed[view] = page.page.eval_on_selector_all("#list li", "items => items.length")
        saved = Image.open(page.save("picture", tmp_path))
        assert saved.width % width == 0 and saved.width * height == saved.height * width
        assert len(saved.convert("RGB").getcolors(2**24) or []) > 50
    assert listed["instances"] == listed["boxes"] == len(page.coco(tmp_path)["annotations"])
    page.page.hover("#list li")
    assert page.page.is_visible("#list li.marked")
    page.page.hover("#canvas")
    assert page.page.is_visible("#tip") == bool(page.page.query_selector("#list li.marked"))
    page.page.click("#view-instances")
    page.page.fill("#threshold", "0.95")
    page.page.wait_for_selector("body[data-redrawn='instances 0.95']")
    kept = [one["score"] for one in page.coco(tmp_path)["annotations"]]
    assert len(kept) < listed["instances"] and all(score >= 0.95 for score in kept)


def test_awkward_images(page: Page, site: Path, pictures: list[Path], tmp_path: Path) -> None:
    predictor = Predictor(site / "model.onnx")
    rng = np.random.default_rng(0)
    dot, grey, turned = (tmp_path / name for name in ("dot.png", "grey.png", "turned.png"))
    Image.new("RGB", (1, 1), (200, 30, 40)).save(dot)
    levels = np.asarray(Image.open(pictures[0]).convert("L"))
    alpha = np.where(np.arange(levels.shape[1]) % 3 == 0, 0, 255).astype(np.uint8)
    both = np.stack([levels, np.broadcast_to(alpha, levels.shape)], axis=2)
    Image.fromarray(both).save(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(pictures[2]).save(turned, exif=exif)
    for path in (dot, grey, turned):
        page.give(path)
        assert page.status == "Done", page.status
        check_near(page.coco(tmp_path), predictor.predict(path))
    large = tmp_path / "large.jpg"
    blocks = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize((4000, 3000), Image.Resampling.BICUBIC).save(large)
    page.give(large)
    assert page.status == "Done", page.status
    assert page.coco(tmp_path)["images"][0]["width"] == 4000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty"),
        (b"hello", "is not an image that the browser can read"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is not an image that the browser can read"),
    ],
    ids=["empty", "text", "damaged"],
)
def test_files_that_are_no_images(
    page: Page, pictures: list[Path], tmp_path: Path, content: bytes, said: str
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(content)
    page.give(broken)
    assert said in page.status and "broken.png" in page.status
    page.give(pictures[0])  # and the page goes on
    assert page.status == "Done"


def test_camera(page: Page) -> None:
    page.page.click("#camera")
    page.page.wait_for_selector("body[data-done='2']")
    page.page.click("#camera")
    assert page.page.inner_text("#camera") == "Camera"
    assert page.page.is_visible("#canvas")


def test_isolated_pages_have_threads(
    browser: Any, site: Path, model: UniSolo, pictures: list[Path], tmp_path: Path
) -> None:
    with Server(site, ISOLATED) as server:
        page = Page(browser, server.url)
        cores = page.page.evaluate("navigator.hardwareConcurrency")
        wanted = "1 thread" if cores == 1 else f"{min(cores, 8)} threads"
        assert page.backend == f"WebAssembly, {wanted}"
        page.give(pictures[0])
        expected = Predictor(model).predict(pictures[0])
        check_equal(page.coco(tmp_path), page.save("panoptic", tmp_path), expected)
        page.context.close()
        server.shutdown()
    assert page.problems == []


def test_webgpu(
    browser: Any, server: Server, model: UniSolo, pictures: list[Path], tmp_path: Path
) -> None:
    """On a processor that stands in for a GPU; left alone it would not be chosen."""
    page = Page(browser, f"{server.url}some/page/", "webgpu")
    if page.backend != "WebGPU":
        pytest.skip(f"WebGPU is not used here: {page.page.get_attribute('#backend', 'title')}")
    page.give(pictures[1])
    expected = Predictor(model).predict(pictures[1])
    check_equal(page.coco(tmp_path), page.save("panoptic", tmp_path), expected)
    page.context.close()
    automatic = Page(browser, f"{server.url}some/page/", "auto")
    assert "WebAssembly" in automatic.backend
    assert automatic.page.get_attribute("#backend", "title") == "WebGPU is emulated here"
    automatic.context.close()


def test_opened_as_a_file_it_says_so(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.wait_for_timeout(3000)
    assert page.is_visible("#not-started")
    assert re.search("serve its folder", page.inner_text("#not-started"))
    page.close()


def test_second_export_replaces_the_first(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    runtime = site / "runtime"  # a folder with the files will do
    graph_to_web(site / "model.onnx", out, runtime=runtime, name="One")
    (out / "CNAME").write_text("mine")
    before = {path.relative_to(out) for path in out.rglob("*")}
    report = graph_to_web(site / "model.onnx", out, runtime=runtime, name="Two")
    assert {path.relative_to(out) for path in out.rglob("*")} == before
    assert json.loads((out / "facts.json").read_text())["name"] == "Two"
    assert (out / "CNAME").read_text() == "mine"
    whole = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert report.size == whole - len("mine")
    assert {"LICENSE", "ThirdPartyNotices.txt"} <= {path.name for path in runtime.iterdir()}
