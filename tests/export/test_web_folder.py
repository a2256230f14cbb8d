"""What `--format web` writes, without a browser; test_web_page.py has one."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest
from tiny_model import CATEGORIES, tiny_config, tiny_model
from typer.testing import CliRunner

import unisolo
from unisolo.cli import app
from unisolo.export.web import export_web, graph_to_web, runtime_files
from unisolo.export.web.folder import page_facts
from unisolo.graphs import GraphError, GraphFacts
from unisolo.visualize.regions import stuff_color, thing_color

PAGE = Path(unisolo.__file__).parent / "export" / "web" / "page"


def facts(task: str = "panoptic") -> GraphFacts:
    config = tiny_config(f"task={task}", "inference.panoptic_score_threshold=0.2")
    return GraphFacts(config=config, categories=CATEGORIES, size="stride4", outputs=("scores",))


def test_page_facts_say_what_the_graph_s_facts_say() -> None:
    found = json.loads(json.dumps(page_facts(facts(), "Toys <&>", 123)))
    assert found["name"] == "Toys <&>" and found["model"]["bytes"] == 123
    assert (found["panoptic"], found["masks"]) == (True, True)
    assert found["input"]["image_size"] == 64 and found["input"]["max_size"] == 96
    assert (found["input"]["divisor"], found["input"]["stride"]) == (32, 4)
    assert found["thresholds"]["panoptic_score"] == 0.2
    assert found["thresholds"]["stuff_area"] == 16
    assert [one["id"] for one in found["categories"]] == [one.id for one in CATEGORIES]
    for label, (entry, category) in enumerate(zip(found["categories"], CATEGORIES, strict=True)):
        for place, color in enumerate(entry["paint"] * 2):  # they repeat as the package's do
            expected = (
                thing_color(label, place) if category.isthing else stuff_color(category.color)
            )
            assert tuple(color) == expected
    detection = page_facts(facts("detection"), "", 1)
    assert (detection["panoptic"], detection["masks"]) == (False, False)
    assert detection["name"] == "Model"


def test_page_loads_nothing_from_elsewhere() -> None:
    """Addresses would be refused by the page's own policy; a name space is none."""
    for path in PAGE.iterdir():
        found = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path.name
    page = (PAGE / "index.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]+)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules["default-src"] == rules["connect-src"] == "'self'"
    assert rules["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert "unsafe-inline" not in policy[1]


def test_files_of_the_page_exist() -> None:
    names = {path.name for path in PAGE.iterdir()}
    used = set(re.findall(r'(?:src|href)="([^"#]+)"', (PAGE / "index.html").read_text()))
    for path in PAGE.glob("*.js"):
        text = path.read_text()
        used |= set(re.findall(r'from "\./([\w-]+\.js)"', text))
        used |= set(re.findall(r'new URL\("([\w-]+\.js)"', text))
    assert used <= names and names - used == {"index.html"}


def test_other_runtimes_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="no such file"):
        runtime_files(out, tmp_path / "missing.tgz")
    other = tmp_path / "onnxruntime-web-1.30.0.tgz"
    with tarfile.open(other, "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"is not onnxruntime-web-1\.30\.0\.tgz"):
        runtime_files(out, other)
    with pytest.raises(ValueError, match="holds no onnxruntime-web"):
        runtime_files(out, tmp_path)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "ort.wasm.min.mjs").write_text("export {}")
    with pytest.raises(ValueError, match=r"another version than 1\.30\.0"):
        runtime_files(out, tmp_path)


def test_without_npm_the_way_by_hand_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNISOLO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UNISOLO_OFFLINE", "1")
    with pytest.raises(OSError, match="UNISOLO_OFFLINE is set: run `npm pack onnxruntime-web@"):
        runtime_files(tmp_path / "out")
    monkeypatch.delenv("UNISOLO_OFFLINE")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match=r"is not installed: install Node\.js, or run `npm pack"):
        runtime_files(tmp_path / "out")
    assert not list((tmp_path / "home" / "runtimes").iterdir())


def test_npm_s_own_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not on this machine")
    monkeypatch.setenv("UNISOLO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    with pytest.raises(OSError, match=r"npm could not fetch .*ECONNREFUSED.*as --runtime"):
        runtime_files(tmp_path / "out")
    assert not list((tmp_path / "home" / "runtimes").iterdir())


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("someone's page")
    with pytest.raises(ValueError, match="holds another page"):
        export_web(tiny_model(), tmp_path, runtime=tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        export_web(tiny_model(), tmp_path / "index.html", runtime=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]
    with pytest.raises(ValueError, match="holds no onnxruntime-web"):
        export_web(tiny_model(), tmp_path / "new", runtime=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]  # nothing half-written
    with pytest.raises(GraphError, match=r"needs an \.onnx file"):
        graph_to_web(tmp_path / "model.xml", tmp_path / "new")


def test_options_that_belong_elsewhere_are_refused(tmp_path: Path) -> None:
    words = ["export", "model.safetensors", "--out", str(tmp_path / "page")]
    for extra, said in (
        (["--format", "web", "--size", "input"], "a web page needs --size stride4"),
        (["--format", "web", "--batch", "2"], "a web page needs --size stride4 and --batch 1"),
        (["--runtime", str(tmp_path)], "--runtime belongs to --format web"),
    ):
        run = CliRunner().invoke(app, [*words, *extra])
        assert run.exit_code == 2 and said in " ".join(run.output.split()), run.output
