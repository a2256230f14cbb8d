"""Published weights by name, served by a real server in the form that mmdetection publishes."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_coco import SPLIT, write_tiny_coco
from tiny_model import tiny_model
from typer.testing import CliRunner
from weight_server import WeightServer, serving

from unisolo import Predictor, list_models, load_model, save_model
from unisolo.checkpoint import CheckpointError, load_checkpoint
from unisolo.cli import app
from unisolo.convert import convert_checkpoint
from unisolo.download import DownloadError
from unisolo.zoo import MODELS, ModelEntry, cached_path, model_path, print_models

NAME = "solov2_light_r18_fpn_3x_coco"
REAL = next(entry for entry in MODELS if entry.name == NAME)
KEYS = "keys_mm_solov2-light_r18_fpn_ms-3x_coco"


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with names and shapes of the real one."""
    state = foreign.drawn(foreign.key_list(KEYS))
    path = tmp_path_factory.mktemp("foreign") / "weights.pth"
    return foreign.write(state, "mmdetection", path).read_bytes()


@pytest.fixture(scope="module")
def expected(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("expected")
    (folder / "weights.pth").write_bytes(content)
    convert_checkpoint(folder / "weights.pth", folder / "model.safetensors")
    return folder / "model.safetensors"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("UNISOLO_HOME", str(tmp_path / "home"))
    # Nothing in these tests may reach the real addresses.
    monkeypatch.setenv("UNISOLO_MIRROR", "http://127.0.0.1:9")
    monkeypatch.delenv("UNISOLO_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightServer]:
    with serving(WeightServer(content)) as running:
        monkeypatch.setenv("UNISOLO_MIRROR", running.base)
        yield running


@pytest.fixture
def table(content: bytes) -> list[ModelEntry]:
    return [replace(REAL, sha256=hashlib.sha256(content).hexdigest()[:8])]


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_name_is_fetched_converted_and_kept(
    server: WeightServer,
    table: list[ModelEntry],
    expected: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = load_model(NAME, table=table)
    assert same_weights(model, load_checkpoint(expected)) and not model.training
    config = model.config
    assert (config.data.image_size, config.data.max_size) == REAL.input_size
    assert config.task == REAL.task and config.data.resize == "opencv"
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"{NAME}: weights of mmdetection, licence: Apache-2.0"
    original = home / "models" / NAME / REAL.file_name
    address = server.base + REAL.url.removeprefix("https://download.openmmlab.com")
    assert lines[1] == f"{NAME}: from {address} to {original}"
    size = f"{len(server.content) / 1e6:.1f}"
    assert f"{REAL.file_name}: {size} of {size} MB" in lines
    assert [seen.path for seen in server.seen] == [address.removeprefix(server.base)]
    assert files(home) == [f"models/{NAME}/model.safetensors", f"models/{NAME}/{REAL.file_name}"]

    # From now on neither network nor the foreign file.
    original.unlink()
    monkeypatch.setenv("UNISOLO_OFFLINE", "1")
    assert same_weights(load_model(Path(NAME), task="detection", table=table), model)
    assert capsys.readouterr().err == "" and len(server.seen) == 1
    check_doors_take_names(home.parent)


def check_doors_take_names(folder: Path) -> None:
    """What takes a checkpoint takes a name; the weights are in the cache."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    predictor = Predictor(NAME, device="cpu")
    assert predictor.preprocess(noise).image.shape == (3, 448, 672)
    Image.fromarray(noise).save(folder / "a.png")
    arguments = ["predict", folder / "a.png", "--checkpoint", NAME, "--out", folder / "out"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    assert done.exit_code == 0 and "1 image, " in done.output


@pytest.mark.parametrize("tool", ["evaluate", "compare", "predict"])
def test_the_commands_tell_a_wrong_name(tool: str, tmp_path: Path) -> None:
    root = write_tiny_coco(tmp_path / "data").root
    arguments = {
        "evaluate": ["--data", root],
        "compare": ["--data", root, "--split", SPLIT, "--out", tmp_path / "a.jpg"],
        "predict": [root / SPLIT, "--out", tmp_path / "out"],
    }[tool]
    done = CliRunner().invoke(app, [tool, "--checkpoint", "solov2_r50_3x", *map(str, arguments)])
    assert done.exit_code == 2
    assert "no model of that name; did you mean solov2_r50_fpn_3x_coco" in done.output


def test_an_interrupted_fetch_goes_on(
    server: WeightServer, table: list[ModelEntry], expected: Path
) -> None:
    server.manners = ["cut"]
    path = model_path(NAME, table=table, quiet=True)
    assert same_weights(load_checkpoint(path), load_checkpoint(expected))
    assert [seen.range for seen in server.seen] == [None, f"bytes={len(server.content) // 2}-"]


def test_a_wrong_hash_is_refused(server: WeightServer, home: Path) -> None:
    """The real entry's, which a made-up file cannot have."""
    with pytest.raises(DownloadError, match=rf"where {REAL.sha256} is published; it was deleted"):
        load_model(NAME)
    assert len(server.seen) == 1 and files(home) == []


def test_a_file_that_is_no_model_is_named(server: WeightServer, home: Path) -> None:
    """Where no hash is published, the converter is the check."""
    server.content = b"not weights"
    with pytest.raises(
        CheckpointError, match=r"(?s)cannot be read.*delete \S+\.pth to fetch it again"
    ):
        load_model(NAME, table=[replace(REAL, sha256="")], quiet=True)
    assert files(home) == [f"models/{NAME}/{REAL.file_name}"]


def test_a_file_put_by_hand(
    table: list[ModelEntry],
    content: bytes,
    expected: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNISOLO_OFFLINE", "1")
    place = home / "models" / NAME / REAL.file_name
    with pytest.raises(DownloadError) as caught:
        load_model(NAME, table=table)
    assert f"fetch {REAL.url} on another machine and put the file here: {place}" in str(
        caught.value
    )
    place.write_bytes(content[:-1])
    with pytest.raises(DownloadError, match="is damaged or another file"):
        load_model(NAME, table=table)
    place.write_bytes(content)
    assert same_weights(load_model(NAME, table=table), load_checkpoint(expected))


def test_two_processes_at_once(
    server: WeightServer, table: list[ModelEntry], expected: Path, home: Path
) -> None:
    code = (
        "import sys; from dataclasses import replace; from unisolo.zoo import MODELS, load_model\n"
        "table = [replace(entry, sha256=sys.argv[2]) for entry in MODELS]\n"
        "model = load_model(sys.argv[1], table=table)\n"
        "print(sum(p.detach().double().sum().item() for p in model.parameters()))\n"
    )
    server.delay = 2.0  # both have asked for the file when it comes
    command = [sys.executable, "-c", code, NAME, table[0].sha256]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    weights = load_checkpoint(expected).parameters()
    total = sum(p.detach().double().sum().item() for p in weights)
    assert [float(out) for out, _ in printed] == pytest.approx([total, total])
    assert len(server.seen) == 1
    assert sum("converted to" in errors for _, errors in printed) == 1
    assert files(home) == [f"models/{NAME}/model.safetensors", f"models/{NAME}/{REAL.file_name}"]


def test_a_damaged_cache_says_what_to_delete(home: Path) -> None:
    path = cached_path(REAL)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * 1000)
    with pytest.raises(CheckpointError, match=rf"damaged.*; delete {path} to have it made again"):
        load_model(NAME)


def test_a_task_it_cannot_answer_is_told_before_anything_is_fetched(
    server: WeightServer, home: Path
) -> None:
    with pytest.raises(CheckpointError, match="no stuff branch"):
        load_model(NAME, task="panoptic")
    with pytest.raises(ValueError, match="boxes"):
        load_model(NAME, task="boxes")
    assert not server.seen and not home.exists()


def test_files_come_before_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny_model()
    save_model(model, tmp_path / "a.safetensors").rename(NAME)
    assert same_weights(load_model(NAME), model)
    assert same_weights(Predictor(NAME, device="cpu").model, model)
    (tmp_path / "folder").mkdir()
    for path, words in (
        ("folder", "a folder"),
        ("none.safetensors", "no such checkpoint file"),
        ("none/solov2", "no such checkpoint file"),
        ("", "a folder"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_model(path)


def test_a_foreign_file_is_told_to_be_converted(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a safetensors file.*unisolo convert` first"):
        load_model(path)
    save_model(tiny_model(), path)
    assert load_model(path).config is not None  # ours under their ending


@pytest.mark.parametrize("name", ["model.onnx", "model.XML", "model.pt2"])
def test_an_exported_graph_is_no_model_to_load(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        load_model(tmp_path / name)
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{name}.*open it with Predictor"):
        load_model(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("SOLOv2_R50_3x", "solov2_r50_fpn_3x_coco"),
        ("solov2_light_r18", "solov2_light_r18_fpn_3x_coco"),
        ("official_solov2_r101_dcn", "official_solov2_r101_dcn_3x"),
        ("adelaidet-solov2-r50", "adelaidet_solov2_r50_3x"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    for call in (load_model, Predictor, model_path):
        with pytest.raises(CheckpointError, match=rf"did you mean [^?]*\b{near}\b"):
            call(name)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"no model of that name; unisolo.list_models"):
        load_model("zzz")


def test_the_cache_is_where_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tail = Path("models") / NAME / "model.safetensors"
    assert cached_path(REAL) == tmp_path / "home" / tail
    monkeypatch.delenv("UNISOLO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cached_path(REAL) == tmp_path / "xdg" / "unisolo" / tail
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cached_path(REAL) == tmp_path / ".cache" / "unisolo" / tail


def test_the_table_holds_together() -> None:
    assert len({entry.name for entry in MODELS}) == len({entry.url for entry in MODELS}) == 19
    for entry in MODELS:
        assert entry.url.startswith("https://") and entry.file_name.endswith(".pth")
        assert set(entry.sha256) <= set("0123456789abcdef")
        assert len(entry.sha256) in (0, 8, 64) and 29 < entry.mask_ap < 43
        assert entry.schedule in ("1x", "3x") and entry.schedule in entry.name
        if entry.source == "mmdetection":
            assert entry.url.endswith(f"-{entry.sha256}.pth") and entry.licence == "Apache-2.0"
        else:
            assert "non-commercial" in entry.licence
        assert (entry.input_size == (800, 1333)) == ("light" not in entry.name)
        assert ("DCN" in entry.backbone) == ("dcn" in entry.name)


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "weights.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `") and "_solo" in line]
    rows += [line for line in page.splitlines() if line.startswith("| `solov2_")]
    expected = {
        f"| `{e.name}` | {e.source} | {e.backbone}, {e.schedule} | {e.input_size[0]} x "
        f"{e.input_size[1]} | {e.mask_ap:.1f} |"
        for e in MODELS
    }
    assert set(rows) == expected
    for entry in MODELS:
        assert entry.sha256 or f"`{entry.name}`" in page.split("the hash is not known here")[1]


def test_lists_and_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_models() == list(MODELS)
    assert {entry.source for entry in list_models("ADELAI")} == {"AdelaiDet"}
    assert len(list_models("light_448")) == 3 and len(list_models("apache")) == 8
    assert list_models("nothing like it") == []
    cached_path(REAL).parent.mkdir(parents=True)
    cached_path(REAL).write_bytes(b"")
    print_models("light_r")
    lines = [line for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert len(lines) == 3
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells[0] == [
        NAME, "mmdetection", "R18, 3x", "448 x 768", "29.7", "Apache-2.0", "yes",
    ]  # fmt: skip
    assert [row[-1] for row in cells] == ["yes", "no", "no"]
    print_models("light_r18", json=True)
    facts = json.loads(capsys.readouterr().out)
    assert facts[0]["cached"] is True and facts[0]["path"] == str(cached_path(REAL))
    assert facts[0]["url"] == REAL.url and facts[0]["input_size"] == [448, 768]
    print_models("nothing like it", json=True)
    assert json.loads(capsys.readouterr().out) == []
