"""Which parts of a folder train and which are evaluated on, from the files that are there."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from unisolo.config import ConfigError
from unisolo.data.coco_files import CocoLayout

__all__ = ["Found", "find_splits", "task_of"]

_FILE = re.compile(r"(instances|panoptic)_(.+)\.json")
_TRAIN = ("train2017", "train", "training")
_VAL = ("val2017", "val", "valid", "validation", "dev", "test")


@dataclass(frozen=True)
class Found:
    """Splits, and why these.

    Attributes:
        train: The split that trains.
        val: The split to evaluate on; the same one where there is no other.
        why: The reason, for people.
    """

    train: str
    val: str
    why: str


def find_splits(root: Path, train: str | None = None, val: str | None = None) -> Found:
    """Find the splits of a folder in COCO's layout.

    A split has `annotations/instances_<split>.json` or `annotations/panoptic_<split>.json` and a
    folder `<split>/` of images.

    Args:
        root: The folder.
        train: The split that trains, where it was given.
        val: The split to evaluate on, where it was given.

    Raises:
        ConfigError: If there is no such folder, no split in it, or none can be told to be the one
            that trains; the message says what was found and what is expected.
    """
    if not root.is_dir():
        found = "a file, no folder" if root.exists() else "no such folder"
        raise ConfigError(f"{root}: {found}; give a data set in COCO's layout")
    named = sorted(
        {
            match[2]
            for path in (root / "annotations").glob("*.json")
            if (match := _FILE.fullmatch(path.name))
        }
    )
    splits = [name for name in named if (root / name).is_dir()]
    if not splits:
        raise ConfigError(_nothing_found(root, named))
    chosen = train or _pick(splits, _TRAIN)
    if chosen is None:
        if len(splits) > 1:
            raise ConfigError(
                f"{root}: none of the splits {', '.join(splits)} is named like one that trains; "
                "say which: data.train_split=NAME data.val_split=NAME"
            )
        chosen = splits[0]
    rest = [name for name in splits if name != chosen]
    twin = chosen.replace("train", "val", 1)  # train2014 belongs to val2014
    other = val or (twin if twin in rest else _pick(rest, _VAL))
    if other is None:
        return Found(
            chosen,
            chosen,
            "the folder has no other split: the figures will say how well the training images are "
            f"remembered, not what new images get; to share out a part: {_convert(root)}",
        )
    left = [name for name in rest if name != other]
    unused = f"; not used: {', '.join(left)}" if left else ""
    return Found(chosen, other, f"the annotation files with a folder of images{unused}")


def task_of(root: Path, splits: Found) -> tuple[str, str]:
    """Return the task that a folder has annotations for, and why.

    Raises:
        ConfigError: If the two splits are annotated for no task in common.
    """
    layouts = [CocoLayout(root, name) for name in dict.fromkeys((splits.train, splits.val))]
    if all(layout.panoptic.is_file() and layout.panoptic_dir.is_dir() for layout in layouts):
        return "panoptic", "there are panoptic annotations, which answer all three tasks"
    if all(layout.instances.is_file() for layout in layouts):
        absent = next(
            path
            for layout in layouts
            for path in (layout.panoptic, layout.panoptic_dir)
            if not path.exists()
        )
        return "instance", f"instance annotations only (no {absent.relative_to(root)})"
    absent = next(layout.instances for layout in layouts if not layout.instances.is_file())
    raise ConfigError(
        f"{root}: the splits {splits.train} and {splits.val} have no kind of annotation in common; "
        f"{absent.relative_to(root)} would make instance segmentation possible"
    )


def _pick(names: list[str], wanted: tuple[str, ...]) -> str | None:
    """The first name that is one of those wanted, or else begins like one."""
    for word in wanted:
        if word in names:
            return word
    for word in wanted:
        alike = [name for name in names if name.lower().startswith(word)]
        if alike:
            return alike[-1]  # train2017 rather than train2014
    return None


def _nothing_found(root: Path, named: list[str]) -> str:
    expected = (
        "expected: annotations/instances_<split>.json (or panoptic_<split>.json and the folder of "
        "its PNGs) with the images in <split>/"
    )
    for name in named:
        elsewhere = root / "images" / name
        if elsewhere.is_dir():
            link = f"ln -s {shlex.quote(f'images/{name}')} {shlex.quote(str(root / name))}"
            return (
                f"{root}: annotations of {name!r}, but no folder {name}/ with its images; they "
                f"are in images/{name}: {link}, or {_convert(root)}"
            )
    if named:
        return (
            f"{root}: annotations of {', '.join(map(repr, named))}, but no folder of that name "
            f"with the images; {expected}"
        )
    others = sorted(
        str(path.relative_to(root))
        for pattern in ("*.json", "*/*.json", "*.yaml")
        for path in root.glob(pattern)
    )
    found = f" (found {', '.join(others[:4])})" if others else ""
    return (
        f"{root}: no data set in COCO's layout{found}; {expected}. Other layouts and "
        f"formats: {_convert(root)}"
    )


def _convert(root: Path) -> str:
    """The command that brings a folder to this layout, ready to be copied."""
    return f"unisolo convert-data {shlex.quote(str(root))} --out FOLDER"
