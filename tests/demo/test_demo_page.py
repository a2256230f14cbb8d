"""The page in a real browser, served by the real command."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from unisolo import Predictor
from unisolo.checkpoint import save_model
from unisolo.files import write_bytes

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = Path("/usr/bin/chromium")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium at /usr/bin/chromium"),
]

# The command itself, which also counts the forward passes of the model.
DRIVER = """
from torch.nn.modules.module import register_module_forward_hook
from unisolo.models import UniSolo

def count(module, inputs, outputs):
    if isinstance(module, UniSolo):
        print("FORWARD", flush=True)

register_module_forward_hook(count)
from unisolo.cli import app
app()
"""


class Server:
    """A running `unisolo demo`."""

    def __init__(self, log: Path, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-u", "-c", DRIVER, "demo", "--device", "cpu"]
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *arguments],
                stdout=sink,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def text(self) -> str:
        return self.log.read_text()

    def wait(self) -> None:
        wait_for(lambda: self.process.poll() is not None or "Ctrl-C" in self.text(), 180)
        assert self.process.poll() is None, self.text()

    def forwards(self) -> int:
        return self.text().count("FORWARD")


def wait_for(ready: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_model import lively_model

    path = tmp_path_factory.mktemp("runs") / "tiny" / "model.safetensors"
    path.parent.mkdir()
    save_model(lively_model(), path)
    return path


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("log") / "server.txt", "--checkpoint", str(checkpoint))
    try:
        server.wait()
        yield server
    finally:
        server.process.terminate()
        assert server.process.wait(timeout=30) == 0, server.text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as driver:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", *camera]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shared = Path(__file__).parents[3] / "shared" / "data" / "coco-mini" / "val2017"
    if shared.is_dir():
        return sorted(shared.glob("*.jpg"))[0]
    from unisolo.data.shapes import generate_shapes

    root = tmp_path_factory.mktemp("shapes")
    generate_shapes(root, num_train=1, num_val=1)
    return sorted((root / "val2017").iterdir())[0]


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screenshots stay."""
    folder = Path(os.environ.get("UNISOLO_ARTEFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Visitor:
    """One person with the page open; every request of the page is noted."""

    def __init__(self, browser: Any, url: str, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.hosts: set[str] = set()
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.hosts.add(urlparse(request.url).netloc))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector(".us-empty b")

    def shown(self) -> str:
        return self.page.locator(".us-frame").get_attribute("data-shown") or ""

    def change(self, action: Callable[[], Any]) -> None:
        """Do something and wait until the viewer shows another state."""
        before = self.shown()
        action()
        wait_for(lambda: self.shown() not in ("", before))

    def upload(self, path: Path) -> None:
        self.page.set_input_files("#us-input input[type=file]", str(path))

    def download(self, label: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.page.locator(".us-file").get_by_text(label, exact=True).click()
        return Path(waiting.value.path()).read_bytes()

    def shoot(self, path: Path) -> None:
        write_bytes(path, self.page.screenshot(full_page=True))


def test_a_visit(
    server: Server, browser: Any, photo: Path, checkpoint: Path, artefacts: Path
) -> None:
    visitor, forwards = Visitor(browser, server.url), server.forwards()
    page = visitor.page
    visitor.shoot(artefacts / "empty.png")
    visitor.change(lambda: visitor.upload(photo))
    score = 0.5
    predictor = Predictor(checkpoint, device="cpu")

    def expected(task: str, **more: Any) -> Any:
        other = Predictor(predictor.model, task=task)
        return other.predict(photo, score_threshold=score, **more)

    panoptic = expected("panoptic", panoptic_score_threshold=score)
    assert json.loads(visitor.download("COCO JSON")) == panoptic.to_coco(photo.stem)
    rgb, annotation = panoptic.to_panoptic(photo.stem, file_name=f"{photo.stem}_panoptic.png")
    assert np.array_equal(Image.open(io.BytesIO(visitor.download("Panoptic PNG"))), rgb)
    assert json.loads(visitor.download("Panoptic JSON")) == annotation
    assert np.array_equal(
        Image.open(io.BytesIO(visitor.download("Picture"))), panoptic.plot(Image.open(photo))
    )

    # Tasks and the slider.
    visitor.change(lambda: page.get_by_label("Objects").check(force=True))
    assert json.loads(visitor.download("COCO JSON")) == expected("instance").to_coco(photo.stem)
    visitor.shoot(artefacts / "instance.png")
    visitor.change(lambda: page.get_by_label("Boxes").check(force=True))
    assert json.loads(visitor.download("COCO JSON")) == expected("detection").to_coco(photo.stem)
    rows = page.locator(".us-table tbody tr").count()
    field = page.locator("#us-score input[type=number]")
    visitor.change(lambda: (field.fill("0.1"), field.press("Enter")))
    score = 0.1
    loose = expected("detection")
    assert json.loads(visitor.download("COCO JSON")) == loose.to_coco(photo.stem)
    assert page.locator(".us-table tbody tr").count() == len(loose) > rows
    visitor.change(lambda: page.get_by_label("Everything").check(force=True))

    # Categories.
    chip = page.locator(".us-chip").first
    name = chip.locator("span").inner_text()
    visitor.change(chip.click)
    assert page.locator(".us-chip").first.get_attribute("aria-pressed") == "false"
    assert name not in page.locator(".us-table tbody").inner_text()
    visitor.change(page.locator(".us-chip").first.click)
    assert name in page.locator(".us-table tbody").inner_text()

    # The pointer.
    result = expected("panoptic", panoptic_score_threshold=score)
    number = int(result.panoptic_seg.flatten().mode().values)
    segment = next(entry for entry in result.segments_info if entry.id == number)
    spots = np.argwhere(result.panoptic_seg.numpy() == number)
    y, x = spots[len(spots) // 2] + 0.5
    box = page.locator(".us-picture").bounding_box()
    height, width = result.image_size
    page.mouse.move(box["x"] + x / width * box["width"], box["y"] + y / height * box["height"])
    tip = page.locator(".us-tip").inner_text()
    assert result.categories[segment.label].name in tip
    assert not segment.isthing or f"{segment.score:.2f}" in tip
    visitor.shoot(artefacts / "hover.png")

    assert server.forwards() - forwards == 1
    assert visitor.hosts == {f"127.0.0.1:{server.port}"}
    assert visitor.faults == []
    fonts = page.evaluate("[...document.fonts].map((font) => font.family)")
    assert fonts == []
    visitor.context.close()


def test_the_camera(server: Server, browser: Any, artefacts: Path) -> None:
    visitor, forwards = Visitor(browser, server.url), server.forwards()
    page = visitor.page
    page.get_by_label("Capture from camera").click()
    page.get_by_title("grant webcam access").click()
    page.get_by_title("capture photo").wait_for(timeout=60_000)
    # A photo of a camera that gives no frames yet is no photo.
    page.wait_for_function("[...document.querySelectorAll('video')].some(v => v.videoWidth > 0)")
    visitor.change(page.get_by_title("capture photo").click)
    visitor.shoot(artefacts / "camera.png")
    assert server.forwards() - forwards == 1
    visitor.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_layout(
    server: Server, browser: Any, photo: Path, artefacts: Path, width: int, scheme: str
) -> None:
    visitor = Visitor(browser, server.url, width, scheme)
    visitor.change(lambda: visitor.upload(photo))
    visitor.shoot(artefacts / f"{scheme}_{width}.png")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visitor.page.locator("footer:visible").count() == 0
    visitor.context.close()


def test_sessions_do_not_mix(server: Server, browser: Any, tmp_path: Path) -> None:
    visitors = []
    for number, size in enumerate([(60, 40), (50, 80)]):
        path = tmp_path / f"picture{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        visitors.append((Visitor(browser, server.url), path, size))
    forwards = server.forwards()
    for visitor, path, _ in visitors:
        visitor.upload(path)
    for visitor, path, size in visitors:
        wait_for(visitor.shown)
        visitor.change(lambda page=visitor.page: page.get_by_label("Objects").check(force=True))
        entries = json.loads(visitor.download("COCO JSON"))
        assert entries and {entry["image_id"] for entry in entries} == {path.stem}
        assert entries[0]["segmentation"]["size"] == list(size[::-1])
    assert server.forwards() - forwards == 2
    keys = [visitor.shown().split("/")[1] for visitor, _, _ in visitors]
    assert keys[0] != keys[1]
    for visitor, _, _ in visitors:
        visitor.context.close()


def test_what_is_no_picture_is_told_in_the_page(
    server: Server, browser: Any, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300)).save(buffer, format="PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:90])
    (tmp_path / "notes.png").write_text("no picture at all")
    Image.new("1", (8000, 5000)).save(tmp_path / "huge.png")
    Image.new("1", (30000, 30000)).save(tmp_path / "bomb.png")
    visitor = Visitor(browser, server.url)
    for name, words in (
        ("cut.png", "damaged"),
        ("notes.png", "not an image"),
        ("huge.png", "megapixels"),
        ("bomb.png", "megapixels"),
    ):
        visitor.upload(tmp_path / name)
        problem = visitor.page.locator(".us-problem", has_text=name)
        problem.wait_for(timeout=60_000)
        assert words in problem.inner_text() and "Traceback" not in problem.inner_text()
        visitor.page.get_by_label("Remove Image").click()
        visitor.page.locator(".us-empty").wait_for(timeout=60_000)
    (tmp_path / "large.png").write_bytes(os.urandom(45 * 10**6))
    assert "Traceback" not in server.text()
    visitor.upload(tmp_path / "large.png")
    visitor.page.get_by_text(re.compile("exceed the maximum")).first.wait_for(timeout=60_000)
    visitor.context.close()


def test_files_of_the_machine_and_links_are_refused(server: Server, photo: Path) -> None:
    """A client that speaks to the server without the page gets no file and causes no connection."""
    import urllib.error
    import urllib.request

    def ask(address: str, body: Any = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            server.url + address, data, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read(4000).decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read(4000).decode(errors="replace")

    assert ask(f"/gradio_api/file={photo.resolve()}")[0] == 403
    assert ask("/shown/guessed/1/coco.json")[0] == 404
    assert ask("/docs")[0] == 404 and ask("/openapi.json")[0] == 404
    assert ask("/monitoring")[0] != 200
    forwards = server.forwards()
    for path in (str(photo.resolve()), "http://192.0.2.1/picture.png"):
        upload = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        data = [upload, None, "panoptic", 0.3, 0.5, 0.1, 0.5, 16]
        call = {"data": data, "fn_index": 0, "session_hash": "somebody"}
        ask("/gradio_api/queue/join", call)
        stream = ask("/gradio_api/queue/data?session_hash=somebody")[1]
        assert "coco.json" not in stream
    assert server.forwards() == forwards
    assert "the demo connects to nothing, and not to 192.0.2.1" in server.text()


def test_answers_in_a_machine_without_network(checkpoint: Path, tmp_path: Path) -> None:
    """In a network namespace that has nothing but its loopback, the page comes up all the same."""
    isolated = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*isolated, "ip", "link", "set", "lo", "up"], check=False).returncode:
        pytest.skip("this machine allows no network namespace")
    script = f"""
ip link set lo up
{sys.executable} -u -c 'from unisolo.cli import app; app()' demo \\
  --checkpoint {checkpoint} --port 7999 --host 0.0.0.0 > {tmp_path}/log 2>&1 &
for n in $(seq 120); do grep -q Ctrl-C {tmp_path}/log && break; sleep 1; done
{sys.executable} -c "import urllib.request as u; print(u.urlopen('http://127.0.0.1:7999').status)"
kill $!; wait $!; echo ended $?
"""
    done = subprocess.run(
        [*isolated, "sh", "-c", script], capture_output=True, text=True, timeout=240
    )
    log = (tmp_path / "log").read_text()
    assert done.stdout.split() == ["200", "ended", "0"], log
    assert "warning: everyone who can reach this machine" in log
