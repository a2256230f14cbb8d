"""The choice: splits, task, network, size, grids, batch, length, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unisolo.build import build_dataset
from unisolo.choose.chosen import Chosen, Draft
from unisolo.choose.facts import Facts, look_at
from unisolo.choose.image import choose_augmentation, choose_grids, choose_size
from unisolo.choose.machine import Machine, choose_batch, choose_device, find_machine
from unisolo.choose.recipes import FOR_CPU, FOR_GPU
from unisolo.choose.splits import find_splits, task_of
from unisolo.choose.weights import weights_at_hand
from unisolo.config import Config, ConfigError
from unisolo.data.coco_files import DatasetError

__all__ = ["choose", "default_out"]

_COCO_AREA = 480 * 640
"""Pixels of an image of the kind that `inference.stuff_area_threshold` is stated for."""
_EPOCHS, _LEAST_STEPS, _MOST_CPU_STEPS = 40, 1000, 2000


def choose(
    root: Path,
    *,
    task: str | None = None,
    out: Path | None = None,
    overrides: Iterable[str] = (),
) -> Chosen:
    """Choose what to train with, for a folder in COCO's layout and this machine.

    The same data on the same machine give the same choice, on every process of a run. Only the
    annotation files are read, no image and no mask.

    Args:
        root: The folder.
        task: The task, where it was given.
        out: The results folder, where it was given.
        overrides: `key.sub=value` settings; they win, and the other choices follow them.

    Returns:
        The configuration and the reasons.

    Raises:
        ConfigError: If the folder has no data set in this layout, or an override is no setting.
        ValueError: If the annotations cannot be used, or the device is not there.
    """
    draft = Draft({"task": task, "data": {"root": root}, "train": {"out": out}}, overrides)
    _choose_data(draft)
    dataset = _open(draft.config)
    if len(dataset) == 0:
        raise ConfigError(f"the split data.train_split={draft.config.data.train_split!r} is empty")
    facts = look_at(dataset, len(dataset))
    _note_data(draft, dataset, facts)
    machine = find_machine(draft.config)
    choose_device(draft, machine)
    _choose_network(draft, machine)
    choose_size(draft, facts, machine)
    choose_augmentation(draft)
    choose_grids(draft, dataset, facts)
    choose_batch(draft, facts, machine)
    _choose_length(draft, facts, machine)
    _choose_results(draft, facts)
    return draft.finish()


def default_out(root: Path) -> Path:
    """Return the results folder of a data set for which none was given."""
    return Path("runs") / (root.resolve().name or "data")


def _choose_data(draft: Draft) -> None:
    given = draft.config
    root = Path() if given.data.root is None else given.data.root
    splits = find_splits(
        root,
        given.data.train_split if draft.is_given("data.train_split") else None,
        given.data.val_split if draft.is_given("data.val_split") else None,
    )
    draft.put({"data.train_split": splits.train, "data.val_split": splits.val})
    draft.note("splits", ("data.train_split", "data.val_split"), splits.why)
    task, why = (given.task, "") if draft.is_given("task") else task_of(root, splits)
    draft.put({"task": task})
    draft.note("task", ("task",), why)
    draft.put({"train.out": str(default_out(root))})


def _open(config: Config) -> Any:
    try:
        return build_dataset(config, split="train")
    except DatasetError as error:
        raise DatasetError(
            f"{error}. Everything that is wrong with the data: unisolo doctor {config.data.root}"
        ) from error


def _note_data(draft: Draft, dataset: Any, facts: Facts) -> None:
    categories = list(dataset.categories)
    names = ", ".join(category.name for category in categories[:5])
    more = f" and {len(categories) - 5} more" if len(categories) > 5 else ""
    things = dataset.categories.num_things
    shown = f"{things} thing{'' if things == 1 else 's'}"
    if "stuff" in dataset.provides:
        shown += f", {dataset.categories.num_stuff} stuff"
    draft.note("classes", (), f"{names}{more}", lambda config: shown)
    draft.note(
        "training data",
        (),
        f"at most {facts.most_objects} objects in an image",
        lambda config: f"{facts.images} images, {facts.objects} objects",
    )


def _choose_network(draft: Draft, machine: Machine) -> None:
    draft.put(FOR_CPU if machine.is_cpu else FOR_GPU)
    source = "quickstart, made for a CPU" if machine.is_cpu else "small_efficientnet_lite0_512"
    draft.note(
        "network",
        ("model.backbone", "model.fpn_channels", "model.head_channels"),
        f"recipe {source}",
        lambda config: (
            f"{config.model.backbone}, {config.model.head_channels} channels in the heads"
        ),
    )
    config = draft.config
    if config.model.backbone_weights is not None:
        draft.note("starts from", ("model.backbone_weights",), "given")
        return
    why = "given"
    if not draft.is_given("model.pretrained"):
        there, why = weights_at_hand(config.model.backbone)
        draft.put({"model.pretrained": there})
        if not there:
            why += "; ImageNet weights would get further: model.backbone_weights=FILE"
    draft.note(
        "starts from",
        ("model.pretrained",),
        why,
        lambda config: "ImageNet weights" if config.model.pretrained else "random weights",
    )


def _choose_length(draft: Draft, facts: Facts, machine: Machine) -> None:
    batch = draft.config.train.batch_size
    wanted = round(_EPOCHS * facts.images / batch)
    steps = max(_LEAST_STEPS, wanted)
    why = f"{_EPOCHS} epochs" if steps == wanted else f"at least {_LEAST_STEPS} steps"
    if machine.is_cpu and steps > _MOST_CPU_STEPS:
        steps = _MOST_CPU_STEPS
        why = f"at most {_MOST_CPU_STEPS} steps on a CPU; {wanted} would be {_EPOCHS} epochs"
    keys = ("train.steps",)
    if draft.is_given("train.epochs"):  # steps would win over it
        keys = ("train.epochs",)
    else:
        draft.put({"train.steps": steps})
    config = draft.config.train
    total = config.steps or round((config.epochs or 0) * facts.images / batch)
    draft.put(
        {
            "train.warmup_steps": max(1, min(config.warmup_steps, total // 10)),
            "train.checkpoint_every": max(1, min(config.checkpoint_every, total // 5)),
        }
    )
    draft.note(
        "length",
        keys,
        why,
        lambda config: f"{total} steps = {total * batch / facts.images:.1f} epochs",
    )


def _choose_results(draft: Draft, facts: Facts) -> None:
    if draft.config.task == "panoptic":
        usual = draft.config.inference.stuff_area_threshold
        draft.put(
            {"inference.stuff_area_threshold": round(usual * min(1.0, facts.area / _COCO_AREA))}
        )
        draft.note(
            "least stuff region",
            ("inference.stuff_area_threshold",),
            "in proportion to the images",
            lambda config: f"{config.inference.stuff_area_threshold} px",
        )
    most = draft.config.inference.max_instances
    if facts.most_objects > 0.8 * most:
        most = -(-facts.most_objects * 5 // 4 // 50) * 50
        draft.put(
            {
                "inference.max_instances": most,
                "inference.max_candidates": 5 * most,
                "inference.pre_nms": 5 * most,
            }
        )
        draft.note(
            "most instances",
            ("inference.max_instances",),
            f"an image has {facts.most_objects} objects",
        )
