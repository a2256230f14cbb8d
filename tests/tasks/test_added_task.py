"""docs/tasks.md adds semantic segmentation from outside the package: its files are run here."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import CATEGORIES, tiny_config, tiny_model
from train_process import torchrun
from typer.testing import CliRunner

from unisolo import Predictor, load_config, load_model
from unisolo.checkpoint import CheckpointError, load_checkpoint
from unisolo.cli import app
from unisolo.config import InferenceConfig
from unisolo.data.shapes import generate_shapes
from unisolo.engine.train import TrainSummary, train
from unisolo.export import ExportGraph
from unisolo.results import Result
from unisolo.structures import STUFF_IGNORE, Target
from unisolo.tasks import TASKS, TaskAdapter, get_task
from unisolo.thresholds import Thresholds

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "examples" / "semantic"
FILE, RECIPE = FOLDER / "semantic.py", FOLDER / "semantic.yaml"
PAGE = ROOT / "docs" / "tasks.md"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    return generate_shapes(root, num_train=4, num_val=2, image_size=(64, 64), seed=5)


@pytest.fixture(scope="module")
def run(semantic: ModuleType, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, one of them in two parts, by the trainer as it is."""
    out = tmp_path_factory.mktemp("run")
    summary = train(
        tiny_config(
            "task=semantic", f"data.root={shapes}", f"train.out={out}", "train.accumulate=2"
        )
    )
    check_metrics(summary)
    return out


def check_metrics(summary: TrainSummary) -> None:
    assert {
        "semantic/mIoU", "semantic/mIoU_th", "semantic/mIoU_st", "semantic/accuracy"
    } == set(summary.metrics)  # fmt: skip
    assert all(0 <= value <= 100 for value in summary.metrics.values())


# One file, one line, one YAML


def test_the_files_are_one_module_and_one_recipe() -> None:
    assert sorted(p.name for p in FOLDER.iterdir() if p.suffix != ".pyc" and p.is_file()) == [
        "semantic.py",
        "semantic.yaml",
    ]


def test_one_line_of_the_file_touches_the_package() -> None:
    tree = ast.parse(FILE.read_text())
    harmless = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    statements = [
        ast.unparse(node)
        for node in tree.body[1:]  # after the docstring
        if not isinstance(node, harmless) and "__main__" not in ast.unparse(node)
    ]
    assert statements == ["TASKS['semantic'] = SemanticTask"]


def test_the_package_does_not_know_the_task() -> None:
    for path in (ROOT / "unisolo").rglob("*.py"):
        text = path.read_text()
        assert "SemanticHead" not in text and "semantic_logits" not in text, path
    assert not list((ROOT / "configs").glob("*semantic*"))


def test_the_recipe_is_valid() -> None:
    config = load_config(RECIPE)
    assert config.task == "semantic"


# Through the trainer, model, predictor, files and command line as they are


def test_training_leaves_metrics_a_log_and_a_checkpoint(semantic: ModuleType, run: Path) -> None:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert set(semantic.SemanticTask.loss_weights) <= set(rows[0])
    assert "semantic/mIoU" in rows[-1]
    written = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert set(written) == {
        f"semantic/{name}" for name in ("mIoU", "mIoU_th", "mIoU_st", "accuracy")
    }
    assert load_model(run / "model.safetensors").heads["semantic_logits"] is not None
    page = (run / "report.html").read_text()
    assert f"<strong>{written['semantic/mIoU']:.1f}</strong>" in page
    assert "semantic accuracy" in page and "loss (weighted sum)" in page


def test_predictions_are_maps_without_instances(run: Path, shapes: Path) -> None:
    predictor = Predictor(run / "model.safetensors", device="cpu")
    assert predictor.task == "semantic"
    (path,) = sorted((shapes / "val2017").iterdir())[:1]
    result = predictor.predict(path)
    assert len(result) == 0 and result.image_size == (64, 64)
    check_map(result)
    assert result.plot(Image.open(path)).size == (64, 64)
    assert "no instances" in result.explain()
    (batched,) = predictor.predict_batch([path])
    assert torch.equal(batched.panoptic_seg, result.panoptic_seg)  # type: ignore[arg-type]


def check_map(result: Result) -> None:
    """Every pixel has a category, every category one segment."""
    assert result.panoptic_seg is not None and result.segments_info is not None
    ids, areas = result.panoptic_seg.unique(return_counts=True)
    assert ids.min() > 0
    table = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    assert {segment.id: segment.area for segment in result.segments_info} == table
    assert len({segment.label for segment in result.segments_info}) == len(table)
    for segment in result.segments_info:
        category = result.categories[segment.label]
        assert (segment.category_id, segment.isthing) == (category.id, category.isthing)


def test_the_command_line_evaluates_and_predicts(run: Path, shapes: Path, tmp_path: Path) -> None:
    checkpoint = str(run / "model.safetensors")
    done = CliRunner().invoke(
        app,
        ["evaluate", "--checkpoint", checkpoint, "--data", str(shapes), "--device", "cpu",
         "--out", str(tmp_path / "eval"), "data.workers=0"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "semantic mIoU" in done.output and "semantic accuracy" in done.output
    again = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    trained = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert again == pytest.approx(trained, abs=0.5)  # batches of other sizes round otherwise
    done = CliRunner().invoke(
        app,
        ["predict", str(shapes / "val2017"), "--checkpoint", checkpoint, "--device", "cpu",
         "--out", str(tmp_path / "found"), "--limit", "1"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "without an instance" not in done.output
    written = json.loads((tmp_path / "found" / "panoptic.json").read_text())
    assert len(written["annotations"]) == 1
    assert len(list((tmp_path / "found" / "panoptic").iterdir())) == 1


def test_one_forward_also_answers_instance_and_detection(run: Path) -> None:
    predictor = Predictor(run / "model.safetensors", device="cpu")
    sample = predictor.preprocess(np.zeros((64, 64, 3), dtype=np.uint8))
    outputs = predictor.forward([sample])
    (instance,) = predictor.postprocess(outputs, [sample.meta], task="instance")
    assert instance.packed_masks is not None and instance.panoptic_seg is None
    with pytest.raises(CheckpointError, match="'semantic' and has no stuff branch"):
        predictor.postprocess(outputs, [sample.meta], task="panoptic")


def test_a_saved_model_answers_as_before_and_its_card_names_the_module(
    run: Path, tmp_path: Path
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    first = Predictor(run / "model.safetensors", device="cpu")
    second = Predictor.from_pretrained(first.save_pretrained(tmp_path / "out"), device="cpu")
    assert second.task == "semantic"
    one, two = (predictor.predict(picture) for predictor in (first, second))
    assert torch.equal(one.panoptic_seg, two.panoptic_seg)  # type: ignore[arg-type]
    assert one.segments_info == two.segments_info
    check_map(one)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "import semantic_example  # registers the task" in card
    assert "From one forward pass it answers: instance, detection, semantic." in card
    assert "- semantic-segmentation" in card


# What goes wrong says what to do


def test_a_checkpoint_without_its_module_names_task_and_cure(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / "model.safetensors"
    monkeypatch.delitem(TASKS, "semantic")
    for opened in (load_model, Predictor, lambda p: load_checkpoint(p, task="instance")):
        with pytest.raises(CheckpointError, match=r"unknown task 'semantic'.*module.*import") as e:
            opened(path)
        assert str(path) in str(e.value)


def test_a_model_without_the_head_is_refused(semantic: ModuleType) -> None:
    with pytest.raises(CheckpointError, match="'panoptic' and has no semantic branch"):
        Predictor(tiny_model(), task="semantic")


def test_thresholds_of_instances_are_refused(run: Path) -> None:
    predictor = Predictor(run / "model.safetensors", device="cpu")
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    values = InferenceConfig().model_dump()
    for name in Thresholds.__annotations__:
        value = values["score_threshold" if name == "candidate_threshold" else name]
        with pytest.raises(ValueError, match=f"{name} changes nothing.*'semantic'"):
            predictor.predict(picture, **{name: value})


def test_a_graph_has_no_place_for_it(semantic: ModuleType) -> None:
    model = tiny_model("task=semantic")
    with pytest.raises(ValueError, match=r"'semantic' cannot be exported.*semantic_logits"):
        ExportGraph(model, "semantic", "stride4", InferenceConfig())


def test_the_tables_of_the_built_in_tasks_are_whole() -> None:
    every = set(Thresholds.__annotations__)
    assert TASKS["panoptic"].thresholds == every
    only = {"panoptic_score_threshold", "panoptic_overlap_threshold", "stuff_area_threshold"}
    assert TASKS["instance"].thresholds == TASKS["detection"].thresholds == every - only


def test_heads_that_were_not_named_are_told(
    semantic: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic.SemanticTask, "heads", frozenset())
    with pytest.raises(ValueError, match=r"'semantic' builds the heads \['semantic_logits'\]"):
        tiny_model("task=semantic")


@pytest.mark.slow
def test_a_headline_that_no_evaluator_gives_is_told(
    semantic: ModuleType, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic.SemanticTask, "headline", ("semantic/IoU",))
    config = tiny_config("task=semantic", f"data.root={shapes}", f"train.out={tmp_path}")
    with pytest.raises(ValueError, match=r"names \['semantic/IoU'\] in its headline.*mIoU_st"):
        train(config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})}))
    assert (tmp_path / "model.safetensors").is_file()


# Losses


def awkward_target() -> Target:
    """Two objects, stuff, crowd, void, and a hole that an object dropped by a crop has left."""
    objects = torch.zeros(1, 8, 8, dtype=torch.int16)
    objects[0, :2, :3], objects[0, 2, 2] = 1, 2
    stuff = torch.full((8, 8), 1, dtype=torch.int16)
    stuff[objects[0] > 0] = CATEGORIES.num_stuff
    stuff[4, 4] = CATEGORIES.num_stuff  # "any thing", but of no object
    stuff[5:, :], stuff[3, :] = STUFF_IGNORE, 0
    crowd = torch.zeros(8, 8, dtype=torch.int16)
    crowd[6, 6] = 1
    boxes = torch.tensor([[0, 0, 3, 2], [2, 2, 3, 3]], dtype=torch.float32)
    return Target(torch.tensor([1, 0]), boxes, objects, crowd, stuff)


def test_the_label_map_pixel_by_pixel(semantic: ModuleType) -> None:
    target = awkward_target()
    assert target.stuff_map is not None
    found = semantic.SemanticTask(CATEGORIES)._label_map(target)
    for y in range(8):
        for x in range(8):
            number, stuff = int(target.object_map[0, y, x]), int(target.stuff_map[y, x])
            if number:
                wanted = int(target.labels[number - 1])
            elif 0 <= stuff < CATEGORIES.num_stuff:
                wanted = CATEGORIES.num_things + stuff
            else:
                wanted = -1
            assert int(found[y, x]) == wanted, (y, x)


@torch.no_grad()
def test_a_split_batch_is_one_batch(semantic: ModuleType) -> None:
    model = tiny_model("task=semantic")
    task = semantic.SemanticTask(CATEGORIES)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = awkward_target()
    padded = [pad(whole, 32), pad(whole, 32, void=True)]
    outputs = model(images)
    together = task.losses(outputs, padded, model.grid)
    counts = task.loss_counts(padded, model.grid, (32, 32))
    parts = [
        task.losses(
            type(outputs)(*(value[n : n + 1] for value in outputs[:3]),
                          {k: v[n : n + 1] for k, v in outputs.extras.items()}),
            padded[n : n + 1],
            model.grid,
            counts=counts,
        )
        for n in range(2)
    ]  # fmt: skip
    for name, loss in together.items():
        torch.testing.assert_close(parts[0][name] + parts[1][name], loss)
    assert int(counts["loss_semantic"]) > 0


def pad(target: Target, side: int, *, void: bool = False) -> Target:
    """The target in a larger frame; `void`: an image on which nothing is scored."""
    extra = (0, side - 8, 0, side - 8)
    padded = torch.nn.functional.pad
    assert target.stuff_map is not None
    stuff = padded(target.stuff_map, extra, value=STUFF_IGNORE)
    objects = padded(target.object_map, extra)
    crowd = padded(target.crowd_map, extra)
    if not void:
        return Target(target.labels, target.boxes, objects, crowd, stuff)
    nothing = torch.full_like(stuff, STUFF_IGNORE)
    return Target(target.labels[:0], target.boxes[:0], objects * 0, crowd, nothing)


# The page


def test_the_page_shows_the_files_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TASKS, "semantic", raising=False)
    text, source = PAGE.read_text(), FILE.read_text()
    shown = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    pieces = [piece for piece in shown if "import semantic" not in piece]
    assert len(pieces) == len(shown) - 1 > 8
    for piece in pieces:
        assert piece in source or textwrap.indent(piece, "    ") in source, piece
    assert f"```yaml\n{RECIPE.read_text()}```" in text
    with pytest.raises(ValueError, match="unknown task") as error:
        get_task("semantic")
    assert str(error.value) in " ".join(text.split())


def test_the_page_names_every_member_of_a_task() -> None:
    text = PAGE.read_text()
    members = [n for n in vars(TaskAdapter) if not n.startswith("_") and n != "categories"]
    for member in members:
        assert f"`{member}" in text, member


# From outside, in processes of their own


def user(folder: Path, *words: str, code: int = 0, launcher: tuple[str, ...] = ()) -> str:
    """Run Python in a folder; return what it printed."""
    done = subprocess.run(
        [sys.executable, *launcher, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_from_outside_it_learns_and_is_used(tmp_path: Path) -> None:
    (tmp_path / "semantic.py").write_text(FILE.read_text())
    (tmp_path / "semantic.yaml").write_text(RECIPE.read_text())
    (tmp_path / "mine.py").write_text("import semantic\nfrom unisolo.cli import app\n\napp()\n")
    generate_shapes(tmp_path / "data", num_train=200, num_val=16)
    files = {p: p.read_bytes() for p in (ROOT / "unisolo").rglob("*.py")}
    user(
        tmp_path, "semantic.py", "train", "--config", "semantic.yaml", "--data", "data",
        "--out", "run", launcher=torchrun(1),
    )  # fmt: skip
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert metrics["semantic/mIoU"] > 60, metrics
    model = ("--checkpoint", "run/model.safetensors")
    text = user(tmp_path, "mine.py", "evaluate", *model, "--data", "data", "--out", "eval")
    assert "semantic mIoU" in text
    again = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert again == pytest.approx(metrics, abs=0.2)
    user(tmp_path, "mine.py", "predict", "data/val2017", *model, "--out", "out", "--limit", "2")
    assert len(json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]) == 2
    text = user(
        tmp_path, "-c", "from unisolo.cli import app; app()", "predict", "data/val2017", *model,
        "--out", "none", code=2,
    )  # fmt: skip
    assert "unknown task 'semantic'" in text and "imported" in text
    assert "Traceback" not in text
    assert files == {p: p.read_bytes() for p in (ROOT / "unisolo").rglob("*.py")}


@pytest.mark.slow
def test_two_processes_train_it(tmp_path: Path, shapes: Path) -> None:
    (tmp_path / "semantic.py").write_text(FILE.read_text())
    (tmp_path / "tiny.yaml").write_text(
        json.dumps(tiny_config("task=semantic").model_dump(mode="json"))
    )
    user(
        tmp_path, "semantic.py", "train", "--config", "tiny.yaml", "--data", str(shapes),
        "--out", "run", "train.steps=3", launcher=torchrun(2),
    )  # fmt: skip
    assert (tmp_path / "run" / "evaluation" / "semantic.json").is_file()
    assert (tmp_path / "run" / "model.safetensors").is_file()
