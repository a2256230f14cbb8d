"""What is exported: image in, results out, as one module without a data-dependent branch.

The instances come from the same `select_instances` as everywhere. What follows it works on plain
booleans instead of packed bits, because few runtimes know operators on bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.config import InferenceConfig
from unisolo.export.merge import merge_instances, merge_stuff
from unisolo.graphs.facts import Size
from unisolo.models import UniSolo
from unisolo.ops.boxes import extents
from unisolo.ops.select import select_instances
from unisolo.structures import MASK_STRIDE, Instances
from unisolo.tasks import get_task

__all__ = ["ExportGraph"]

MASKS_AT_A_TIME = 20
"""Masks (or stuff channels) in float at full size at a time; the nodes of the graph grow as it
falls."""


class ExportGraph(nn.Module):
    """A model with its whole post-process, in fixed shapes.

    `forward(images, image_sizes)` takes images [B, 3, H, W] (RGB, uint8 or float in 0..255) and
    image_sizes [B, 2] int64, (H, W) of the valid top-left part, and returns the tensors named by
    `names`. K = `max_instances` places per image, filled by falling score; `count` tells how many.

    - `scores` [B, K] float32, `labels` [B, K] int64 (thing labels), `count` [B] int64;
    - `boxes` [B, K, 4] float32 xyxy, half-open, pixels of the input (of the given size);
    - at size "stride4" what a host needs to finish at the size of the original image:
      `mask_probs` [B, K, H / 4, W / 4] float32, `cells` [B, K] int64, `stage_counts` [B, 6] int64,
      `top_probs` [B, 5] float32, `top_labels` [B, 5] int64 (see `unisolo.structures.Instances`).
      Boxes are measured on these coarse masks: up to 4 pixels off on each side;
    - at size "input" or (H, W): `masks` [B, K, H, W] bool, not for the detection task. Boxes are
      those of these masks;
    - panoptic: `panoptic_seg` [B, h, w] int32 at that size, 0 = void, and `segments`
      [B, K + S, 3] int64 (id, label, area in pixels of the map): row k is the instance of
      `scores[k]`, row K + s stuff index s; id 0 = not in the map. Padding is void, but at size
      (H, W), which holds it. At "stride4" also `stuff_logits` [B, S + 1, H / 4, W / 4] float32.

    Args:
        model: In evaluation mode.
        task: "instance", "detection" or "panoptic".
        size: Of masks and maps.
        settings: The thresholds, which become constants.

    Attributes:
        names: Names of the outputs, in order.
        size: See above.

    Raises:
        ValueError: If the task has an output that graphs cannot give.
    """

    names: tuple[str, ...]

    def __init__(self, model: UniSolo, task: str, size: Size, settings: InferenceConfig) -> None:
        super().__init__()
        if model.categories is None:
            raise ValueError("this model carries no categories; build it with unisolo.build_model")
        self.model = model
        self.size = size
        self._settings = settings
        self._num_things = model.categories.num_things
        self._num_stuff = model.categories.num_stuff
        heads, self._has_masks = get_task(task).heads, get_task(task).has_masks
        if not heads <= {"stuff_logits"}:
            raise ValueError(
                f"task {task!r} cannot be exported: graphs have no place for the output of its "
                f"heads {sorted(heads)}; export the same checkpoint for task 'instance', or write "
                "them in unisolo/export/graph.py"
            )
        self._panoptic = "stuff_logits" in heads
        names = ["scores", "labels", "count", "boxes"]
        if size == "stride4":
            names += ["mask_probs", "cells", "stage_counts", "top_probs", "top_labels"]
        elif self._has_masks:
            names.append("masks")
        if self._panoptic:
            names += ["panoptic_seg", "segments"]
            names += ["stuff_logits"] if size == "stride4" else []
        self.names = tuple(names)

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs; see the class."""
        outputs = self.model(images, image_sizes)
        found = select_instances(
            outputs, self.model.grid, chunk_pixels=None, **self._settings.select_arguments()
        )
        named = {
            "scores": found.scores,
            "labels": found.labels,
            "count": found.valid.sum(-1),
            "mask_probs": found.mask_probs,
            "cells": found.cells,
            "stage_counts": found.stage_counts,
            "top_probs": found.top_probs,
            "top_labels": found.top_labels,
        }
        height, width = images.shape[-2:]
        named["masks"], named["boxes"] = self._masks(found, image_sizes, (height, width))
        if self._panoptic:
            logits = outputs.extras["stuff_logits"].float()
            named["stuff_logits"] = logits
            named["panoptic_seg"], named["segments"] = self._merge(
                named["masks"], found, self._stuff_index(logits, image_sizes, (height, width))
            )
        return tuple(named[name] for name in self.names)

    def _resized(self, maps: Tensor, input_size: tuple[int, int]) -> Tensor:
        """Maps [B, n, H / 4, W / 4] at the graph's size, by the same resizes as everywhere."""
        if self.size == "stride4":
            return maps
        maps = F.interpolate(maps, input_size, mode="bilinear")
        return maps if self.size == "input" else F.interpolate(maps, self.size, mode="bilinear")

    def _masks(
        self, found: Instances, image_sizes: Tensor, input_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Hard masks [B, K, h, w] at the graph's size, and their boxes [B, K, 4]."""
        scale = MASK_STRIDE if self.size == "stride4" else 1
        masks = [
            self._resized(part, input_size) > self._settings.mask_threshold
            for part in torch.split(found.mask_probs, MASKS_AT_A_TIME, dim=1)
        ]
        hard = torch.cat(masks, dim=1)
        if self.size in ("stride4", "input"):
            hard = hard & _inside(hard, image_sizes, scale)
        columns, rows = hard.any(-2), hard.any(-1)
        (x1, x2), (y1, y2) = extents(columns), extents(rows)
        return hard, torch.stack([x1, y1, x2, y2], dim=-1).float() * scale

    def _stuff_index(
        self, logits: Tensor, image_sizes: Tensor, input_size: tuple[int, int]
    ) -> Tensor:
        """Most likely stuff index [B, h, w] int64 at the graph's size; S = "any thing", padding."""
        best: Tensor | None = None
        index: Tensor | None = None
        # With a running maximum: memory does not grow with the number of categories.
        for place, part in enumerate(torch.split(logits, MASKS_AT_A_TIME, dim=1)):
            value, channel = self._resized(part, input_size).max(1)
            channel = channel + place * MASKS_AT_A_TIME
            if best is None or index is None:
                best, index = value, channel
            else:
                better = value > best
                best = torch.where(better, value, best)
                index = torch.where(better, channel, index)
        if index is None:
            raise ValueError("stuff_logits has no channel")
        if self.size in ("stride4", "input"):  # areas and their threshold count the image alone
            scale = MASK_STRIDE if self.size == "stride4" else 1
            valid = _inside(index, image_sizes, scale).squeeze(1)
            index = torch.where(valid, index, self._num_stuff)
        return index

    def _merge(self, masks: Tensor, found: Instances, stuff_index: Tensor) -> tuple[Tensor, Tensor]:
        """Panoptic map [B, h, w] int32 and table of segments [B, K + S, 3] int64."""
        things = merge_instances(
            masks,
            found.scores,
            score_threshold=self._settings.panoptic_score_threshold,
            overlap_threshold=self._settings.panoptic_overlap_threshold,
        )
        pixels = MASK_STRIDE**2 if self.size == "stride4" else 1
        merged = merge_stuff(
            things,
            stuff_index,
            num_stuff=self._num_stuff,
            area_threshold=self._settings.stuff_area_threshold / pixels,
        )
        stuff_labels = torch.arange(self._num_stuff, device=masks.device) + self._num_things
        labels = torch.cat([found.labels, stuff_labels.expand_as(merged.stuff_ids)], dim=1)
        ids = torch.cat([merged.instance_ids, merged.stuff_ids], dim=1)
        areas = torch.cat([things.areas, merged.stuff_areas], dim=1)
        table = torch.stack([ids, labels, areas], dim=-1)
        return merged.panoptic_seg, table


def _inside(maps: Tensor, image_sizes: Tensor, scale: int) -> Tensor:
    """[B, 1, h, w] bool: the valid part of each image, on maps at 1 / scale of the input."""
    height, width = maps.shape[-2:]
    rows = torch.arange(height, device=maps.device) * scale < image_sizes[:, :1]
    columns = torch.arange(width, device=maps.device) * scale < image_sizes[:, 1:]
    return rows[:, None, :, None] & columns[:, None, None, :]
