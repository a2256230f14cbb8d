"""Semantic segmentation for unisolo: every pixel gets a category, and nothing is counted.

Registers the task when it is imported. Run as a program it is the `unisolo` command with it:

    python semantic.py train --config semantic.yaml --data DIR --out runs/semantic
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from unisolo.categories import Categories
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.evaluation.base import Evaluator, PredictionBook
from unisolo.files import write_json
from unisolo.losses.stuff import scored_pixels, stuff_loss
from unisolo.models.layers import ConvNormAct
from unisolo.ops.panoptic import segment_stuff
from unisolo.results import Result, Segment
from unisolo.structures import GridSpec, ImageMeta, Instances, Outputs, Target
from unisolo.tasks import TASKS, TaskAdapter


class SemanticHead(nn.Module):
    """One 3 x 3 convolution and a classifier on the mask branch's trunk, at stride 4."""

    def __init__(self, in_channels: int, channels: int, num_categories: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, channels)
        self.out = nn.Conv2d(channels, num_categories, 1)

    def forward(self, pyramid: list[Tensor], trunk: Tensor) -> Tensor:
        """Return logits [B, num_categories, h, w] from the trunk [B, in_channels, h, w]."""
        logits: Tensor = self.out(self.conv(trunk))
        return logits


class SemanticTask(TaskAdapter):
    """A category for every pixel, scored by mIoU; results hold a map and no instances."""

    name = "semantic"
    requires = frozenset({"things", "stuff"})
    heads = frozenset({"semantic_logits"})
    loss_weights: ClassVar[dict[str, float]] = {**TaskAdapter.loss_weights, "loss_semantic": 1.0}
    headline = ("semantic/mIoU",)
    thresholds = frozenset()  # the map has none
    has_masks = False

    def build_heads(self, *, trunk_channels: int, stuff_channels: int) -> dict[str, nn.Module]:
        """Return the head by the name of its output."""
        head = SemanticHead(trunk_channels, stuff_channels, len(self.categories))
        return {"semantic_logits": head}

    def losses(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        grid: GridSpec,
        *,
        counts: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> dict[str, Tensor]:
        """Add the cross-entropy over all categories to the losses of the instances."""
        losses = super().losses(outputs, targets, grid, counts=counts, **options)
        losses["loss_semantic"] = stuff_loss(
            outputs.extras["semantic_logits"],
            self._label_targets(targets),
            count=None if counts is None else counts["loss_semantic"],
        )
        return losses

    def loss_counts(
        self,
        targets: Sequence[Target],
        grid: GridSpec,
        image_size: tuple[int, int],
        **options: Any,
    ) -> dict[str, Tensor]:
        """Add the number of scored pixels: what `loss_semantic` is divided by."""
        counts = super().loss_counts(targets, grid, image_size, **options)
        counts["loss_semantic"] = scored_pixels(self._label_targets(targets), image_size)
        return counts

    def _label_targets(self, targets: Sequence[Target]) -> list[Target]:
        """Return the targets with labels of all categories in their `stuff_map`."""
        return [replace(target, stuff_map=self._label_map(target)) for target in targets]

    def _label_map(self, target: Target) -> Tensor:
        """Return [H, W] int64: the label of every pixel, -1 where none is scored."""
        if target.stuff_map is None:
            raise ValueError("task 'semantic' needs stuff maps: data.dataset=coco_panoptic")
        stuff, objects = target.stuff_map.long(), target.object_map.amax(0).long()
        things = torch.cat([target.labels.new_tensor([-1]), target.labels])[objects]
        is_stuff = (stuff >= 0) & (stuff < self.categories.num_stuff)
        return torch.where(is_stuff, stuff + self.categories.num_things, things)

    def postprocess(
        self,
        instances: Instances,
        extras: dict[str, Tensor],
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        **settings: Any,
    ) -> list[Result]:
        """Return results without instances whose map has one segment per category."""
        return [
            self._result(
                segment_stuff(
                    logits,
                    padded_size=padded_size,
                    input_size=meta.input_size,
                    orig_size=meta.orig_size,
                )
            )
            for logits, meta in zip(extras["semantic_logits"], metas, strict=True)
        ]

    def _result(self, labels: Tensor) -> Result:
        """Make the result of a map of labels [H, W]; the segment of label n has id n + 1."""
        height, width = labels.shape
        areas = torch.bincount(labels.flatten().long(), minlength=len(self.categories))
        segments = tuple(
            Segment(label + 1, category.id, label, category.isthing, 1.0, area)
            for label, (category, area) in enumerate(
                zip(self.categories, areas.tolist(), strict=True)
            )
            if area > 0
        )
        return Result(
            image_size=(height, width),
            categories=self.categories,
            scores=torch.zeros(0, device=labels.device),
            labels=torch.zeros(0, dtype=torch.int64, device=labels.device),
            boxes=torch.zeros(0, 4, device=labels.device),
            panoptic_seg=labels.int() + 1,
            segments_info=segments,
        )

    def make_evaluators(self, dataset: Any, *, backend: str = "hotcoco") -> list[Evaluator]:
        """Return the mIoU; it has one back end."""
        truth = dataset.panoptic_ground_truth()
        return [SemanticEvaluator(truth, dataset.panoptic_dir, self.categories)]


class SemanticEvaluator:
    """IoU of every category, and the share of pixels that are right.

    Void and crowd are not scored. Of each image only the pairs (true, predicted label) that occur
    are kept, with their pixels, so that any number of images fits.

    Args:
        ground_truth: A COCO panoptic file as a dict.
        panoptic_dir: Folder of its PNG files.
        categories: Categories of the data set.
    """

    def __init__(
        self, ground_truth: Mapping[str, Any], panoptic_dir: Path, categories: Categories
    ) -> None:
        self.categories = categories
        self._panoptic_dir = panoptic_dir
        self._annotations = {entry["image_id"]: entry for entry in ground_truth["annotations"]}
        # An entry is [(true label, predicted label or C for void, pixels), ...].
        self._book: PredictionBook[list[list[int]]] = PredictionBook(ground_truth["images"])

    def reset(self) -> None:
        """Forget every prediction."""
        self._book.clear()

    def update(self, results: Sequence[Result], metas: Sequence[ImageMeta]) -> None:
        """Count the pixels of some images."""
        for result, meta in zip(results, metas, strict=True):
            self._book.check(result, meta)
            if result.panoptic_seg is None or result.segments_info is None:
                raise ValueError(f"the result of image {meta.image_id!r} has no map")
            labels = {segment.id: segment.label for segment in result.segments_info}
            found = self._lookup(result.panoptic_seg.cpu().numpy(), labels)
            self._book.add(meta.image_id, self._pairs(self._truth(meta.image_id), found))

    def state(self) -> list[Any]:
        """Return the counts so far, for `merge` elsewhere."""
        return self._book.state()

    def merge(self, states: Sequence[list[Any]]) -> None:
        """Replace the counts by those of all `states` together."""
        self._book.merge(states)

    def compute(self) -> dict[str, float]:
        """Return `semantic/mIoU`, also of things and of stuff, and `semantic/accuracy`.

        A mean runs over the categories that occur in the truth or the predictions.
        """
        self._book.warn_missing()
        matrix = self.confusion()
        right = matrix.diagonal()[:-1]
        union = matrix[:-1].sum(1) + matrix[:-1, :-1].sum(0) - right
        iou = 100 * right / np.where(union > 0, union, np.nan)
        things = self.categories.num_things
        total = int(matrix[:-1].sum())
        return {
            "semantic/mIoU": _mean(iou),
            "semantic/mIoU_th": _mean(iou[:things]),
            "semantic/mIoU_st": _mean(iou[things:]),
            "semantic/accuracy": 100 * int(right.sum()) / total if total else math.nan,
        }

    def confusion(self) -> Any:
        """Return [C + 1, C + 1] int64: pixels by true label (row) and predicted one (column).

        Label C is void; its row is 0, since void is not scored.
        """
        size = len(self.categories) + 1
        matrix = np.zeros((size, size), dtype=np.int64)
        for image_id, entry in self._book.items():
            if entry is None:  # never predicted: all of it is wrong
                truth = self._truth(image_id)
                entry = self._pairs(truth, np.full_like(truth, size - 1))
            for true, found, pixels in entry:
                matrix[true, found] += pixels
        return matrix

    def save(self, out_dir: Path) -> list[Path]:
        """Write `semantic.json`: the counts of every image."""
        path = out_dir / "semantic.json"
        write_json(path, {"categories": self.categories.to_coco(), "counts": self._book.state()})
        return [path]

    def _truth(self, image_id: int | str) -> Any:
        """Return [H, W] int64 labels of an image; C where it is not scored."""
        entry, (height, width) = self._annotations[image_id], self._book.sizes[image_id]
        record = {"id": image_id, "height": height, "width": width}
        ids = read_segment_ids(Path(self._panoptic_dir) / entry["file_name"], record)
        labels = {
            segment["id"]: self.categories.label(segment["category_id"])
            for segment in entry["segments_info"]
            if not segment.get("iscrowd")
        }
        return self._lookup(ids, labels)

    def _lookup(self, ids: Any, labels: Mapping[int, int]) -> Any:
        """Return the labels of segment ids [H, W]; C where an id has none."""
        values, places = np.unique(ids, return_inverse=True)
        table = np.array([labels.get(int(value), len(self.categories)) for value in values])
        return table[places].reshape(ids.shape)

    def _pairs(self, truth: Any, found: Any) -> list[list[int]]:
        """Return the pairs of labels that occur among scored pixels, each with its pixels."""
        size = len(self.categories) + 1
        scored = truth < size - 1
        codes, pixels = np.unique(truth[scored] * size + found[scored], return_counts=True)
        pairs: list[list[int]] = np.stack([codes // size, codes % size, pixels], axis=1).tolist()
        return pairs


def _mean(values: Any) -> float:
    """Return the mean of the numbers that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


TASKS["semantic"] = SemanticTask

if __name__ == "__main__":
    from unisolo.cli import app

    app()
