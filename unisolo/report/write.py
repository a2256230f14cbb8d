"""From the folder a run or an evaluation left to `report.html` in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unisolo.build import build_dataset
from unisolo.config import Config, ConfigError, config_to_dict, load_config
from unisolo.evaluation.base import read_json
from unisolo.evaluation.coco import CocoEvaluator
from unisolo.evaluation.panoptic import PanopticEvaluator
from unisolo.files import write_bytes
from unisolo.report.figures import Figures, measure
from unisolo.report.history import History, read_history
from unisolo.report.page import Content, render_report
from unisolo.report.pictures import Pictures, best_and_worst, draw_pairs
from unisolo.report.record import read_record
from unisolo.tasks import TaskAdapter, get_task

__all__ = ["leave_report", "write_report"]

_NAME = "report.html"


@dataclass(frozen=True)
class _Place:
    """Where things are: the folder given, its evaluation, and its log if it is a training's."""

    folder: Path
    evaluation: Path
    log: Path | None


def leave_report(folder: Path, dataset: Any) -> Path | None:
    """Write the report of work that is done; a failure is a warning, never an error.

    Args:
        folder: Of a training or an evaluation.
        dataset: What was evaluated.

    Returns:
        The page; None if it could not be made.
    """
    try:
        return write_report(folder, dataset=dataset)
    # Hours of training are done and saved: whatever it is, it must not look like their failure.
    # Ctrl-C, too, now concerns the report alone.
    except (Exception, KeyboardInterrupt) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(
            f"the report could not be made ({reason}); metrics and model are not concerned. "
            f"Try again with: unisolo report {folder}",
            stacklevel=2,
        )
        return None


def write_report(
    folder: Path,
    *,
    out: Path | None = None,
    data: Path | None = None,
    split: str | None = None,
    dataset: Any = None,
) -> Path:
    """Make one page of what a training or an evaluation left.

    Numbers come from the stored predictions and the data set's ground truth, evaluated anew with
    hotcoco; the model is not needed. Where the task has no AP, the page has the metrics, the
    curves and the settings alone.

    Args:
        folder: Of a training (`train.out`) or of an evaluation.
        out: The page to write; None = `report.html` in `folder`.
        data: Folder of the data set, where it has moved since.
        split: Part of the data set, where the folder does not say it.
        dataset: The data set itself, where it is open already.

    Returns:
        The page.

    Raises:
        ValueError: If the folder holds no finished evaluation, or the data set is not the one
            that was evaluated.
        OSError: If a file cannot be read or written.
    """
    place = _find(Path(folder))
    metrics = _metrics(place.evaluation)
    record = read_record(place.evaluation)
    config = _config(place, record, data, split)
    if dataset is None:
        dataset = build_dataset(config, split="val")
    task = get_task(config.task)(dataset.categories)
    coco, panoptic = _evaluators(task, dataset, place.evaluation)
    figures = None if coco is None else measure(coco, panoptic)
    pictures = _pictures(figures, dataset, place.evaluation, panoptic=panoptic is not None)
    problems = list(pictures.problems)
    history = History() if place.log is None else read_history(place.log)
    if history.unread:
        problems.append(f"{history.unread} lines of {place.log} could not be read")
    run = record or {}
    content = Content(
        title=f"unisolo report: {place.folder.resolve().name}",
        task=config.task,
        split=config.data.val_split,
        images=len(dataset),
        headline=task.headline,
        metrics=metrics,
        figures=figures,
        history=history,
        pictures=pictures,
        warnings=[*map(str, run.get("warnings", ())), *problems],
        config=config_to_dict(config),
        facts=_facts(run, config, place),
    )
    path = place.folder / _NAME if out is None else Path(out)
    write_bytes(path, render_report(content).encode())
    return path


def _find(folder: Path) -> _Place:
    if (folder / "metrics.json").exists():
        return _Place(folder, folder, None)
    inner = folder / "evaluation"
    if (inner / "metrics.json").exists():
        return _Place(folder, inner, folder / "log.jsonl")
    raise ValueError(
        f"{folder}: no metrics.json in it or in its evaluation/; give the folder of a training or "
        "of an evaluation that has finished"
    )


def _metrics(folder: Path) -> dict[str, float | None]:
    path = folder / "metrics.json"
    try:
        return {str(name): _number(value) for name, value in read_json(path).items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: no metrics ({error}); evaluate again") from None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _config(
    place: _Place, record: Mapping[str, Any] | None, data: Path | None, split: str | None
) -> Config:
    """The settings of the evaluation, turned to where the data set is now."""
    if record is not None:
        config = load_config(values=record["config"])
        root = record.get("root")
    elif (place.folder / "config.yaml").exists():  # of a version without evaluation.json
        config = load_config(place.folder / "config.yaml")
        root = config.data.root
    elif data is not None:
        config, root = Config(task=_task_of(place)), None
    else:
        raise ConfigError(
            f"{place.evaluation} has no evaluation.json that says which data was evaluated; give "
            "--data (and --split)"
        )
    changes = {
        "root": None if (found := data or root) is None else Path(found),
        "val_split": split or config.data.val_split,
    }
    return config.model_copy(update={"data": config.data.model_copy(update=changes)})


def _task_of(place: _Place) -> str:
    """The task whose metrics the folder has."""
    names = {name.split("/")[0] for name in _metrics(place.evaluation)}
    kinds = {"panoptic": "panoptic", "segm": "instance", "bbox": "detection"}
    return next((task for kind, task in kinds.items() if kind in names), "instance")


def _evaluators(
    task: TaskAdapter, dataset: Any, folder: Path
) -> tuple[CocoEvaluator | None, PanopticEvaluator | None]:
    """The evaluators of AP and PQ, with their predictions; a task of one's own may have neither."""
    coco: CocoEvaluator | None = None
    panoptic: PanopticEvaluator | None = None
    for evaluator in task.make_evaluators(dataset):
        if isinstance(evaluator, CocoEvaluator):
            coco = evaluator
        elif isinstance(evaluator, PanopticEvaluator):
            panoptic = evaluator
        else:
            continue
        evaluator.load(folder)
    return coco, panoptic


def _pictures(figures: Figures | None, dataset: Any, folder: Path, *, panoptic: bool) -> Pictures:
    if figures is None:
        return Pictures()
    if not hasattr(dataset, "image_dir"):  # a reader of the user's own may make its images
        return Pictures(
            absent="The data set does not say in which files its images are (attribute "
            "image_dir), so none are shown."
        )
    best, worst = best_and_worst(figures.images)
    return draw_pairs(
        dataset, folder, best, worst, boxes=figures.iou_type == "bbox", panoptic=panoptic
    )


def _facts(run: Mapping[str, Any], config: Config, place: _Place) -> dict[str, str]:
    """What the table at the end of the page says."""
    facts = {"results": str(place.folder.resolve()), "backbone": config.model.backbone}
    if config.data.root is not None:
        facts["data set"] = str(config.data.root)
    training = run.get("training")
    if training:
        facts["training"] = (
            f"{training['steps']} of {training['total_steps']} steps of "
            f"{config.train.batch_size} images, {_duration(training['seconds'])}, "
            f"{training['skipped']} left out, seed {config.train.seed}"
        )
    if "seconds" in run:
        facts["evaluation"] = (
            f"{run.get('images')} images in {_duration(run['seconds'])}, back end "
            f"{run.get('backend')}, processes: {run.get('processes')}"
        )
    return facts | {str(name): str(value) for name, value in run.get("environment", {}).items()}


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
