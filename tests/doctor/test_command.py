"""The command as people run it, and what it writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS, Copy
from typer.testing import CliRunner

from unisolo.choose import choose
from unisolo.cli import app
from unisolo.config import Config
from unisolo.doctor import examine
from unisolo.doctor.page import render_page

EVIL = "<script>alert(1)</script><img src=http://evil.example/x.png onerror=alert(2)>"


def doctor(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


class Page(HTMLParser):
    """Collects what a browser would load or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def test_healthy_data_exit_with_0(healthy: Path, tmp_path: Path) -> None:
    done = doctor(healthy, "--json", tmp_path / "report.json", "--html", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    assert "0 errors, 0 warnings, 2 notes; it can be trained on" in " ".join(done.output.split())
    assert "Split train2017" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["errors"], report["warnings"]) == (0, 0)
    assert report["statistics"]["train2017"]["images"] == 30
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_grids_are_those_of_the_training(healthy: Path) -> None:
    done = doctor(healthy, "--split", "train2017", "--split", "val2017")
    size = re.search(r"as `unisolo train` would choose: image size (\d+)\n", done.stderr)
    assert size is not None
    chosen = choose(healthy, overrides=["model.pretrained=false"]).config
    assert int(size[1]) == chosen.data.image_size
    ranges = re.findall(r"│ +(\d+) x \1 │ +(\d+ to \d+) │", done.stdout)
    half = len(ranges) // 2
    assert half >= 3 and ranges[:half] == ranges[half:]  # one model for both splits
    given = doctor(healthy, "data.image_size=96", "model.scale_ranges=scaled")
    assert "image size 96" in given.stderr


def test_errors_exit_with_1_and_can_be_mended(copy: Copy, tmp_path: Path) -> None:
    copy.image(0).unlink()
    mended = tmp_path / "mended"
    done = doctor(copy.root, "--fix", mended)
    assert done.exit_code == 1
    assert f"{copy.image(0).name}, image id {copy.id(0)}: no such image file" in " ".join(
        done.output.replace("│", " ").split()
    )
    assert "1 x image-missing: image dropped with its annotations" in done.output
    assert doctor(mended).exit_code == 0
    again = doctor(copy.root, "--fix", mended)
    assert again.exit_code == 2
    assert "is not empty" in again.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such folder"),
        ([".", "--task", "boxes"], "boxes"),
        ([".", "data.image_sise=3"], "did you mean 'image_size'"),
        ([".", "--overfit", "2", "--html", "x.html"], "--overfit trains instead of examining"),
        ([".", "--overfit", "0"], "--overfit"),
        ([], "DATA"),
    ],
)
def test_mistakes_exit_with_2(arguments: list[str], words: str) -> None:
    done = doctor(*arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_a_folder_without_data_is_an_error_not_a_crash(tmp_path: Path) -> None:
    done = doctor(tmp_path)
    assert done.exit_code == 1
    assert "json-unusable" in done.output
    assert "formats: unisolo convert-data " in done.stderr


def test_json_on_stdout_is_strict_and_alone(copy: Copy) -> None:
    for fault in FAULTS:
        fault.plant(copy)
    copy.save()
    done = doctor(copy.root, "--json", "-")
    assert done.exit_code == 1

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads(done.stdout, parse_constant=refuse)
    assert {group["code"] for group in report["findings"]} >= {fault.code for fault in FAULTS}
    for group in report["findings"]:
        assert set(group) == {"code", "severity", "count", "what", "fix", "entries"}
        assert group["count"] == len(group["entries"])
    assert "errors" in done.stderr


@pytest.fixture
def hostile_page(copy: Copy, settings: Callable[..., Config]) -> str:
    for fault in FAULTS:
        fault.plant(copy)
    for tree in (copy.instances, copy.panoptic):
        tree["categories"].append({"id": 991, "name": EVIL, "isthing": 1})
        tree["images"].append({"id": 992, "file_name": EVIL, "height": 9, "width": 9})
        tree["images"].append({"id": EVIL, "file_name": EVIL, "height": EVIL, "width": 9})
    copy.objects(22)[6]["bbox"] = [EVIL, '"><b>', 1, 1]
    copy.save()
    return render_page(examine(settings(copy.root)))


def test_the_page_escapes_names_and_loads_nothing(hostile_page: str) -> None:
    page = Page(hostile_page)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert not page.handlers
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert not re.search(r"url\(|@import|<link", hostile_page)
    assert "&lt;script&gt;" in hostile_page
    assert "prefers-color-scheme: dark" in hostile_page
    assert len(hostile_page) < 10_000_000
    assert hostile_page.count("data:image/jpeg") > 10


def test_the_page_stays_small(copy: Copy, settings: Callable[..., Config], monkeypatch) -> None:
    monkeypatch.setattr("unisolo.doctor.page._MAX_BYTES", 20_000)
    for entry in copy.instances["annotations"]:
        entry["bbox"] = [0, 0, 1, 1]
    copy.save()
    text = render_page(examine(settings(copy.root)))
    assert sum(map(len, re.findall(r'src="data:[^"]*"', text))) < 20_500
    assert "--json lists them all" in text or text.count("<li>") >= 30


def test_names_cannot_steer_the_terminal(copy: Copy) -> None:
    name = "[bold red]\x1b[2J\x07name.jpg"
    copy.panoptic["categories"].append({"id": 990, "name": name, "isthing": 0})
    copy.panoptic["images"][0]["file_name"] = name
    (copy.root / "train2017" / name).write_bytes(copy.image(1).read_bytes())
    copy.save()
    done = doctor(copy.root)
    assert "\x1b[2J" not in done.output
    assert "\x07" not in done.output
    assert "[bold red]" in done.output
