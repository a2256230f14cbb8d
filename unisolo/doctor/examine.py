"""The examination: every split is checked, then the splits are held against each other."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from unisolo.config import Config, ConfigError
from unisolo.data.coco_files import CocoLayout
from unisolo.doctor.codes import CODES, Severity
from unisolo.doctor.findings import Evidence, Findings
from unisolo.doctor.pictures import same_files, similar_pictures
from unisolo.doctor.split import JsonFile, Split, check_split
from unisolo.doctor.statistics import Statistics, measure_split
from unisolo.tasks import get_task

__all__ = ["Report", "brief", "examine"]

_COCO_READERS = ("auto", "coco_instance", "coco_panoptic")


@dataclass(frozen=True)
class Report:
    """What the doctor found.

    Attributes:
        root: The data folder.
        task: The task it was examined for.
        findings: Everything wrong.
        statistics: Numbers by split; a split whose files cannot be read has none.
        splits: The splits as they should be, for `repair`.
    """

    root: Path
    task: str
    findings: Findings
    statistics: dict[str, Statistics]
    splits: tuple[Split, ...]

    @property
    def errors(self) -> int:
        """Number of findings that stop a training or poison it."""
        return self.findings.count(Severity.error)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return {
            "data": str(self.root),
            "task": self.task,
            "errors": self.errors,
            "warnings": self.findings.count(Severity.warning),
            "notes": self.findings.count(Severity.note),
            "findings": [
                {
                    "code": code,
                    "severity": CODES[code].severity.value,
                    "count": len(found),
                    "what": CODES[code].what,
                    "fix": CODES[code].fix,
                    "entries": [finding.to_dict() for finding in found],
                }
                for code, found in self.findings.groups().items()
            ],
            "statistics": {name: numbers.to_dict() for name, numbers in self.statistics.items()},
        }


def examine(
    config: Config,
    *,
    splits: Sequence[str] | None = None,
    on_start: Callable[[int], Any] = lambda count: None,
    on_image: Callable[[], Any] = lambda: None,
) -> Report:
    """Check a data set: files, ids, masks, PNGs, splits, and how the grids fit its objects.

    Args:
        config: `data.root`, the splits and the task say what to check; image size, grids and scale
            ranges say how objects fall on the grids.
        splits: Splits to check; None = `data.train_split` and `data.val_split`. The first is taken
            for the one that trains.
        on_start: Called with the number of images of each split, before they are read.
        on_image: Called after each image.

    Returns:
        The report; nothing is written.

    Raises:
        ConfigError: If `data.root` is not set, or no folder.
    """
    root = _root(config)
    panoptic = _wants_panoptic(config)
    log = Findings(root)
    names = dict.fromkeys(splits or (config.data.train_split, config.data.val_split))
    checked = [
        check_split(
            CocoLayout(root, name), log, panoptic=panoptic, on_start=on_start, on_image=on_image
        )
        for name in names
    ]
    statistics: dict[str, Statistics] = {}
    for one, other in combinations([split for split in checked if split.files], 2):
        _compare_splits(one, other, log)
    for split in checked:
        if split.files:
            name = log.split = split.layout.split
            statistics[name] = measure_split(split, config, advise=split is checked[0])
            if not statistics[name].objects:
                log.add("objects-none", split.files[0].path, f"{statistics[name].images} images")
    return Report(root, config.task, log, statistics, tuple(checked))


def brief(config: Config, *, split: str | None = None) -> list[str]:
    """Check the files of a split in a moment, before a training: no image, no mask is decoded.

    Looks at ids, categories, missing files, sizes that are no sizes, and boxes; the readers stop
    at the first fault, this says how many there are. `examine` looks at everything.

    Args:
        config: `data.root`, the split and the task say what to check.
        split: The split; None = `data.train_split`.

    Returns:
        A sentence per kind of error or warning, the worst first; empty = nothing found, or
        `data.dataset` names a reader of the user's own, whose files are not known here.

    Raises:
        ConfigError: If `data.root` is not set, or no folder.
    """
    if config.data.dataset not in _COCO_READERS:
        return []
    root = _root(config)
    log = Findings(root)
    layout = CocoLayout(root, config.data.train_split if split is None else split)
    collecting = gc.isenabled()
    gc.disable()  # a third of the time goes into searching large JSON trees for cycles
    try:
        check_split(layout, log, panoptic=_wants_panoptic(config), pixels=False)
    finally:
        if collecting:
            gc.enable()
    sentences = []
    for code, found in log.groups().items():
        severity, what, fix, _ = CODES[code]
        if severity is Severity.note:
            continue
        first = found[0]
        where = f"{first.file}, {first.entry}" if first.entry else first.file
        sentences.append(
            f"data {severity.value}: {what} ({code}, {len(found)} times, first: {where}: "
            f"{first.message}); {fix}"
        )
    return sentences


def _root(config: Config) -> Path:
    root = config.data.root
    if root is None:
        raise ConfigError("no data set: give the folder (or data.root in the configuration)")
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give a data set in COCO's layout")
    return root


def _wants_panoptic(config: Config) -> bool:
    return "stuff" in get_task(config.task).requires


def _compare_splits(one: Split, other: Split, log: Findings) -> None:
    """Find pictures that are in both, and categories that are not."""
    log.split = one.layout.split
    paths, others = list(one.pictures), list(other.pictures)
    mine, theirs = list(one.pictures.values()), list(other.pictures.values())
    same = same_files(mine, theirs)
    for i, j in same:
        message = f"the same bytes as {_shown(others[j], log)}"
        evidence = Evidence(paths[i], other=others[j])
        log.add("split-same-image", paths[i], message, evidence=evidence)
    known = set(same)
    for i, j, alike in similar_pictures(mine, theirs):
        if (i, j) not in known:
            message = f"nearly the picture of {_shown(others[j], log)} (correlation {alike:.3f})"
            evidence = Evidence(paths[i], other=others[j])
            log.add("split-similar-image", paths[i], message, weight=alike, evidence=evidence)
    gone = {paths[i] for i, _ in same}
    for file in one.files:
        file.drop_images([image.id for image in file.images.usable.values() if image.path in gone])
    _compare_categories(one.panoptic, other.panoptic, log)
    _compare_categories(one.instances, other.instances, log)


def _compare_categories(file: JsonFile | None, twin: JsonFile | None, log: Findings) -> None:
    if file is None or twin is None:
        return
    kinds = [
        {key: (str(e["name"]), bool(e.get("isthing", 1))) for key, e in f.categories.items()}
        for f in (file, twin)
    ]
    if kinds[0] != kinds[1]:
        differing = sorted(
            key for key in kinds[0] | kinds[1] if kinds[0].get(key) != kinds[1].get(key)
        )
        message = f"ids {differing[:5]} differ from those of {twin.path.name}"
        log.add("split-categories", file.path, message)
        file.categories = dict(sorted((twin.categories | file.categories).items()))
        twin.categories = dict(file.categories)


def _shown(path: Path, log: Findings) -> str:
    return repr(path.relative_to(log.root).as_posix())
