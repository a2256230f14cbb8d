"""From a folder to its page: every task, what is missing, and what must not fail."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import empty, evaluated, write_data
from tiny_coco import SPLIT, save_ids, write_tiny_coco
from tiny_model import tiny_config
from typer.testing import CliRunner

from unisolo.build import build_dataset
from unisolo.cli import app
from unisolo.data.shapes import generate_shapes
from unisolo.engine.distributed import World
from unisolo.engine.evaluate import evaluate
from unisolo.engine.train import train
from unisolo.report import leave_report, noted_warnings, write_report
from unisolo.results import Result
from unisolo.structures import ImageMeta
from unisolo.tasks import TASKS, TaskAdapter, get_task
from unisolo.visualize import draw_panoptic


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of two steps, evaluated after each."""
    work = tmp_path_factory.mktemp("run")
    generate_shapes(work / "data", num_train=4, num_val=2, image_size=(64, 64), seed=2)
    train(
        tiny_config(f"data.root={work / 'data'}", f"train.out={work / 'run'}", "train.eval_every=1")
    )
    return work / "run"


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("found", [True, False])
def test_every_task_with_and_without_predictions(task: str, found: bool, tmp_path: Path) -> None:
    maps = write_data(tmp_path / "data", images=3, things=2, stuff=1)
    out = tmp_path / "out"
    evaluated(tmp_path / "data", out, maps=maps if found else None, task=task)
    text = write_report(out).read_text("utf-8")
    assert ("panoptic quality" in text) == (task == "panoptic")
    assert ("mask AP" in text) == (task != "detection")
    assert ("expected calibration error" in text) == found
    assert text.count("data:image/jpeg") >= 2


def test_one_category_and_images_without_objects(tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=2, things=1, stuff=0)
    tree_path = tmp_path / "data" / "annotations" / "panoptic_val2017.json"
    tree = json.loads(tree_path.read_text())
    for entry in tree["annotations"]:
        entry["segments_info"] = []
        png = tree_path.with_suffix("") / entry["file_name"]
        size = (tree["images"][0]["height"], tree["images"][0]["width"])
        save_ids(png, np.zeros(size, dtype=np.int64))
    tree_path.write_text(json.dumps(tree))
    instances = tree_path.with_name("instances_val2017.json")
    instances.write_text(json.dumps({**json.loads(instances.read_text()), "annotations": []}))
    out = tmp_path / "out"
    evaluated(tmp_path / "data", out, maps=None)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["panoptic/PQ"] is None
    text = write_report(out).read_text("utf-8")
    assert "No object in the ground truth" in text
    assert "No image has an object" in text
    assert "nan" not in re.sub(r"<script>.*?</script>|<style>.*?</style>", "", text, flags=re.S)


def test_awkward_ground_truth_is_shown(tmp_path: Path) -> None:
    """Polygons, holes, crowds, overlaps and an object of one pixel, as instances and as a map."""
    tiny = write_tiny_coco(tmp_path / "data")
    for task in ("instance", "panoptic"):
        config = tiny_config(f"data.root={tiny.root}", f"data.val_split={SPLIT}", f"task={task}")
        dataset = build_dataset(config, split="val")
        out = tmp_path / task
        metrics: dict[str, float] = {}
        for evaluator in get_task(task)(dataset.categories).make_evaluators(dataset):
            for image_id in dataset.image_ids:
                meta = ImageMeta(image_id, "x.png", (24, 36), (24, 36))
                evaluator.update([empty(dataset.categories, (24, 36))], [meta])
            evaluator.save(out)
            metrics |= evaluator.compute()
        kept = {name: value for name, value in metrics.items() if not math.isnan(value)}
        (out / "metrics.json").write_text(json.dumps(kept))
        page = write_report(out, data=tiny.root, split=SPLIT)
        assert "not shown" not in page.read_text("utf-8")


def test_a_training_leaves_its_report(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    for words in (
        "loss (weighted sum)",
        "evaluations, panoptic",
        "2 of 2 steps",
        "seed 0",
        "torch",
    ):
        assert words in text, words
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert f"<strong>{metrics['panoptic/PQ']:.1f}</strong>" in text
    # The warning that no threshold was reached, or whatever the run said, is on the page.
    record = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert all(warning.split("'")[0][:40] in text for warning in record["warnings"])
    train(
        tiny_config(
            f"data.root={run.parent / 'data'}", f"train.out={run}", "train.steps=1",
            "train.eval_every=1",
        ),
        overwrite=True,
    )  # fmt: skip
    assert "1 of 1 steps" in (run / "report.html").read_text("utf-8")


def test_the_command_makes_it_again_where_the_data_has_moved(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    shutil.copytree(run.parent / "data", tmp_path / "moved")
    arguments = ["report", str(tmp_path / "run"), "--data", str(tmp_path / "moved")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "report: " in done.output
    assert (tmp_path / "run" / "report.html").is_file()
    wrong = CliRunner().invoke(app, ["report", str(tmp_path / "moved")])
    assert wrong.exit_code == 2
    assert "has finished" in wrong.output


def test_an_evaluation_leaves_its_report(run: Path, tmp_path: Path) -> None:
    from unisolo import load_model

    model = load_model(run / "model.safetensors")
    dataset = build_dataset(tiny_config(f"data.root={run.parent / 'data'}"), split="val")
    task = get_task("detection")(model.categories)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    with pytest.warns(UserWarning, match="no instance was found") as seen:
        evaluate(model, dataset, task=task, world=world, out=tmp_path)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["config"]["task"] == "detection"
    assert record["warnings"] == [str(seen[0].message)]
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "no instance was found" in text
    assert "Task detection" in text


def test_a_failing_report_is_a_warning_and_names_the_command(tmp_path: Path) -> None:
    maps = write_data(tmp_path / "data", images=1, things=1, stuff=1)
    config = evaluated(tmp_path / "data", tmp_path / "out", maps=maps)
    dataset = build_dataset(config, split="val")
    (tmp_path / "out" / "results.json").write_text("[{}]")
    with pytest.warns(UserWarning, match=r"results\.json: an entry lacks.*unisolo report"):
        assert leave_report(tmp_path / "out", dataset) is None
    assert not (tmp_path / "out" / "report.html").exists()


def test_an_image_that_is_gone_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    maps = write_data(tmp_path / "data", images=3, things=2, stuff=1)
    config = evaluated(tmp_path / "data", tmp_path / "out", maps=maps)
    dataset = build_dataset(config, split="val")
    (tmp_path / "data" / "val2017" / "000001.jpg").unlink()
    text = write_report(tmp_path / "out", dataset=dataset).read_text("utf-8")
    assert "image 1 is not shown" in text
    assert text.count("data:image/jpeg") == 4


def test_predictions_of_other_data_are_refused(tmp_path: Path) -> None:
    maps = write_data(tmp_path / "data", images=2, things=2, stuff=1)
    evaluated(tmp_path / "data", tmp_path / "out", maps=maps, task="instance")
    write_data(tmp_path / "other", images=1, things=2, stuff=1)
    with pytest.raises(ValueError, match=r"results\.json: image id 2 is not in the ground truth"):
        write_report(tmp_path / "out", data=tmp_path / "other")
    for content, words in (("[", "no JSON"), ("{}", "no record of an evaluation")):
        (tmp_path / "out" / "evaluation.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            write_report(tmp_path / "out")
    (tmp_path / "out" / "evaluation.json").unlink()
    with pytest.raises(ValueError, match="--data"):
        write_report(tmp_path / "out")


def test_a_stale_map_of_an_earlier_task_is_not_drawn(tmp_path: Path) -> None:
    maps = write_data(tmp_path / "data", images=1, things=2, stuff=1)
    evaluated(tmp_path / "data", tmp_path / "out", maps=maps)
    for path in (tmp_path / "out" / "panoptic").iterdir():
        path.unlink()
    evaluated(tmp_path / "data", tmp_path / "out", maps=maps, task="detection")
    assert "not shown" not in write_report(tmp_path / "out").read_text("utf-8")


class CountEvaluator:
    """The metric of a task of the user's own, which the package knows nothing of."""

    def __init__(self) -> None:
        self.images: list[Any] = []

    def update(self, results: Sequence[Result], metas: Sequence[ImageMeta]) -> None:
        self.images += [meta.image_id for meta in metas]

    def compute(self) -> dict[str, float]:
        return {"count/images": float(len(self.images)), "count/none": math.nan}

    def save(self, out_dir: Path) -> list[Path]:
        return []


class CountTask(TaskAdapter):
    name = "count"
    headline = ("count/images",)

    def make_evaluators(self, dataset: Any, *, backend: str = "hotcoco") -> list[Any]:
        return [CountEvaluator()]


def test_a_task_without_ap_has_a_page_of_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "count", CountTask)
    maps = write_data(tmp_path / "data", images=3, things=2, stuff=1)
    run = tmp_path / "run"
    evaluated(tmp_path / "data", run / "evaluation", maps=maps, task="count")
    rows = [{"step": step, "loss": 2.0, "count/images": step / 2} for step in (1, 2)]
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = write_report(run).read_text("utf-8")
    assert "<strong>3.0</strong>" in text
    assert '<th scope="row">count none</th><td class="n">-</td>' in text
    for shown in ("loss (weighted sum)", "evaluations, count", "settings", "torch"):
        assert shown in text, shown
    assert "not scored by COCO" in text
    for absent in ('id="categories"', 'id="images"', "#precision", "data:image", "By size"):
        assert absent not in text, absent


def test_swatches_are_the_colours_of_the_pictures(tmp_path: Path) -> None:
    maps = write_data(tmp_path / "data", images=1, things=1, stuff=1)
    config = evaluated(tmp_path / "data", tmp_path / "out", maps=maps)
    dataset = build_dataset(config, split="val")
    text = write_report(tmp_path / "out", dataset=dataset).read_text("utf-8")
    for label, category in enumerate(dataset.categories):
        ids = np.ones((40, 40), dtype=np.int32)
        segment = {"id": 1, "category_id": category.id}
        black = np.zeros((40, 40, 3), dtype=np.uint8)
        drawn = np.asarray(draw_panoptic(black, ids, [segment], dataset.categories))
        red, green, blue = (int(v) for v in re.findall(r"rgb\(([\d,]+)\)", text)[label].split(","))
        # The picture lays the colour over black, so that its parts are in the same proportion.
        pixel = drawn[38, 38].astype(float)
        color = np.array([red, green, blue])
        assert pixel / pixel.max() == pytest.approx(color / color.max(), abs=0.02), category


def test_a_data_set_without_files_has_a_page_without_pictures(tmp_path: Path) -> None:
    maps = write_data(tmp_path / "data", images=2, things=2, stuff=1)
    config = evaluated(tmp_path / "data", tmp_path / "out", maps=maps, task="instance")
    dataset = build_dataset(config, split="val")
    del dataset.image_dir
    text = write_report(tmp_path / "out", dataset=dataset).read_text("utf-8")
    assert "attribute image_dir" in text
    assert "mask AP" in text and 'id="confusion"' in text
    assert "data:image" not in text


def test_warnings_are_kept_and_still_shown() -> None:
    import warnings

    with pytest.warns(UserWarning) as seen, noted_warnings() as noted:
        warnings.warn("once", stacklevel=1)
        warnings.warn("twice", stacklevel=1)
        warnings.warn("twice", stacklevel=1)
    assert noted == ["once", "twice"]
    assert len(seen) == 3
