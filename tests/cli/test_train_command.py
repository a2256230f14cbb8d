"""`unisolo train --data DIR` on a small generated set, and the answers for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unisolo.cli import app
from unisolo.data.shapes import generate_shapes

SMALL = (
    *("model.backbone=test_resnet", "model.pretrained=false", "model.fpn_channels=16"),
    *("model.head_channels=16", "model.kernel_channels=16", "model.mask_channels=16"),
    *("data.image_size=64", "data.workers=0", "train.device=cpu", "train.tensorboard=false"),
)


def run(*arguments: object, code: int = 0) -> Any:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done


def losses(folder: Path) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    timeless = ("step", "loss", "grad_norm", "lr")
    return [
        {name: value for name, value in row.items() if name in timeless or name.startswith("loss_")}
        for row in rows
        if "loss" in row
    ]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set and what `train --data` made of it."""
    folder = tmp_path_factory.mktemp("train")
    generate_shapes(folder / "data", num_train=4, num_val=2, image_size=(64, 64), seed=3)
    first = ("train", "--data", folder / "data", "--out", folder / "first")
    done = run(*first, *SMALL, "train.steps=2", "--json")
    (folder / "answer.json").write_text(done.stdout)
    (folder / "told.txt").write_text(done.stderr)
    return folder


def test_what_was_chosen_is_told_and_kept(work: Path) -> None:
    told = (work / "told.txt").read_text()
    assert told.startswith("Chosen from the data and this machine\n")
    for words in ("train2017, val2017", "panoptic", "5 things, 5 stuff", "2 steps = 2.0 epochs"):
        assert words in told
    assert told.index("Chosen") < told.index("chosen.yaml") < told.index("step 2/2")
    assert all(line == line.rstrip() for line in told.splitlines()[:12])
    assert "\x1b[" not in told


def test_the_answer_is_one_document(work: Path) -> None:
    found = json.loads((work / "answer.json").read_text())
    assert found["checkpoint"] == str(work / "first" / "model.safetensors")
    assert found["steps"] == 2
    assert "panoptic/PQ" in found["metrics"]
    assert {"what": "task", "value": "panoptic"}.items() <= found["chosen"][1].items()


def test_the_kept_file_trains_the_same(work: Path) -> None:
    chosen = work / "first" / "chosen.yaml"
    run("train", "--config", chosen, "--out", work / "again")
    assert losses(work / "again") == losses(work / "first")
    assert not (work / "again" / "chosen.yaml").exists()  # nothing was chosen


def test_a_finished_run_is_neither_chosen_for_nor_replaced(work: Path) -> None:
    before = (work / "first" / "chosen.yaml").read_bytes()
    other = ("train", "--data", work / "data", "--out", work / "first", *SMALL, "train.steps=9")
    done = run(*other, code=2)
    assert "already holds a run" in done.stderr
    assert (work / "first" / "chosen.yaml").read_bytes() == before


@pytest.mark.slow
def test_going_on_needs_no_settings(work: Path) -> None:
    done = run("train", "--data", work / "data", "--out", work / "first", "--resume")
    assert "Chosen" not in done.stdout
    assert "trained 2 steps" in done.stdout
    assert losses(work / "first")[-1]["step"] == 2
    done = run("train", "--out", work / "first", "--auto-resume")
    assert "trained 2 steps" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{data}"], "is no setting: did you mean --data {data}?"),
        (["{first}/chosen.yaml"], "is no setting: did you mean --config {first}/chosen.yaml?"),
        (["--data", "{data}/annotations"], "no data set in COCO's layout"),
        (["--data", "{data}", "model.backbone=resnet5"], "did you mean"),
        (["--data", "{data}", "--resume", "--overwrite"], "give one of --resume"),
        (["--data", "{data}", "--resume", "--out", "none"], "none: no run to go on with"),
        (["--resume"], "no run to go on with; give its folder: --out DIR"),
        ([], "give --data DIR"),
    ],
)
def test_mistakes_are_a_sentence(
    work: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"data": work / "data", "first": work / "first"}
    done = run("train", *(text.format(**places) for text in arguments), code=2)
    assert words.format(**places) in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_evaluate_and_predict_answer_programs(work: Path) -> None:
    checkpoint = work / "first" / "model.safetensors"
    out = ("--out", work / "eval", "--device", "cpu", "--json")
    done = run("evaluate", "--checkpoint", checkpoint, "--data", work / "data", *out)
    found = json.loads(done.stdout)
    assert found["split"] == "val2017" and found["task"] == "panoptic"
    trained = json.loads((work / "answer.json").read_text())["metrics"]
    assert found["metrics"] == trained
    images = work / "images"
    images.mkdir()
    for path in list((work / "data" / "val2017").iterdir())[:1]:
        (images / path.name).write_bytes(path.read_bytes())
    (images / "broken.png").write_bytes(b"x")
    out = ("--out", work / "seen", "--device", "cpu", "--json")
    done = run("predict", images, "--checkpoint", checkpoint, *out, code=1)
    found = json.loads(done.stdout)
    assert found["predicted"] == 1
    assert len(found["broken"]) == 1 and "broken.png" in found["broken"][0]
    assert "skipped: " in done.stderr


def test_models_answer_programs() -> None:
    found = json.loads(run("models", "r50", "--json").stdout)
    assert all("r50" in entry["name"] for entry in found)
