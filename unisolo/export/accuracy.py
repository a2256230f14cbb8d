"""What a lower precision costs: two files of one model, evaluated on the same data set."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from unisolo.build import build_dataset
from unisolo.checkpoint import model_facts
from unisolo.engine.distributed import World
from unisolo.engine.evaluate import evaluate, evaluation_config
from unisolo.graphs import Graph
from unisolo.tasks import get_task
from unisolo.zoo import open_model

__all__ = ["AccuracyChange", "compare_accuracy"]

_SHOWN = {
    "panoptic/PQ": "PQ",
    "panoptic/PQ_th": "PQ things",
    "panoptic/PQ_st": "PQ stuff",
    "segm/AP": "segm AP",
    "segm/AP50": "segm AP50",
    "bbox/AP": "bbox AP",
    "bbox/AP50": "bbox AP50",
}


@dataclass(frozen=True)
class AccuracyChange:
    """Metrics of two files on one data set, in percent, by flat name (`panoptic/PQ`, `segm/AP`).

    Attributes:
        before: Of the first file.
        after: Of the second.
    """

    before: dict[str, float]
    after: dict[str, float]

    @property
    def losses(self) -> dict[str, float]:
        """Before less after of PQ and AP, where there is something to score."""
        names = ("panoptic/PQ", "segm/AP", "bbox/AP")
        pairs = {name: (self.before[name], self.after[name]) for name in names & self.before.keys()}
        return {
            name: pairs[name][0] - pairs[name][1]
            for name in names
            if name in pairs and not any(map(math.isnan, pairs[name]))
        }

    def rows(self) -> list[tuple[str, float, float, float]]:
        """Rows of a table: name, before, after, after less before."""
        return [
            (shown, self.before[name], self.after[name], self.after[name] - self.before[name])
            for name, shown in _SHOWN.items()
            if name in self.before and name in self.after
        ]


def compare_accuracy(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    task: str | None = None,
    device: str = "auto",
    batch_size: int = 8,
    backend: str = "hotcoco",
    overrides: Iterable[str] = (),
    on_image: Callable[[int, int], None] | None = None,
) -> AccuracyChange:
    """Evaluate two files, usually an exported graph and its int8 form.

    Args:
        before: A checkpoint or an exported graph of size "stride4".
        after: Another of the same categories.
        data: Folder of the data set, in COCO's layout.
        split: Default: the file's `data.val_split`.
        task: Default: the file's.
        device: As for `unisolo.graphs.open_graph`.
        batch_size: Images of one padded size that are run together.
        backend: "hotcoco" or "official".
        overrides: Settings `data.*` as `key.sub=value`.
        on_image: Called with (images done, all images) of each file.

    Returns:
        The metrics of both.

    Raises:
        CheckpointError: If a file cannot be evaluated (`GraphError` for a graph).
        ValueError: If the folder does not hold the data set, or its categories differ.
    """
    overrides = tuple(overrides)

    def metrics(path: str | os.PathLike[str]) -> dict[str, float]:
        model = open_model(path, task=task, device=device)
        config, categories = model_facts(model)
        settings = evaluation_config(config, data, task=task, split=split, overrides=overrides)
        place = model.device if isinstance(model, Graph) else next(model.parameters()).device
        return evaluate(
            model,
            build_dataset(settings, split="val"),
            task=get_task(settings.task)(categories),
            world=World(rank=0, size=1, device=torch.device(place)),
            batch_size=batch_size,
            workers=settings.data.workers,
            backend=backend,
            on_image=on_image,
        )

    return AccuracyChange(metrics(before), metrics(after))
