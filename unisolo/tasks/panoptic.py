"""Panoptic segmentation: every pixel gets a category, every thing pixel an instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from unisolo.categories import Categories, Category
from unisolo.losses.core import LossOptions
from unisolo.losses.stuff import scored_pixels, stuff_loss
from unisolo.models.stuff_head import StuffHead
from unisolo.ops.panoptic import PanopticMerge, merge_panoptic, segment_stuff
from unisolo.results import Result, Segment
from unisolo.structures import GridSpec, ImageMeta, Instances, Outputs, Target
from unisolo.tasks.base import TaskAdapter
from unisolo.tasks.explained import explain_panoptic

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unisolo.evaluation.base import Evaluator

__all__ = ["PanopticTask"]


class PanopticTask(TaskAdapter):
    """Instances merged with a stuff map by the COCO rules (panopticapi), scored by PQ and AP."""

    name = "panoptic"
    requires = frozenset({"things", "stuff"})
    heads = frozenset({"stuff_logits"})
    # 0.5 for the semantic branch is Panoptic FPN's (arXiv 1901.02446, section 4).
    loss_weights = {**TaskAdapter.loss_weights, "loss_stuff": 0.5}  # noqa: RUF012
    headline = ("panoptic/PQ", *TaskAdapter.headline)
    thresholds = TaskAdapter.thresholds | {
        "panoptic_overlap_threshold",
        "panoptic_score_threshold",
        "stuff_area_threshold",
    }

    def build_heads(self, *, trunk_channels: int, stuff_channels: int) -> dict[str, nn.Module]:
        """Return the stuff branch: logits of every stuff category and of "any thing"."""
        return {
            "stuff_logits": StuffHead(
                trunk_channels, channels=stuff_channels, num_stuff=self.categories.num_stuff
            )
        }

    def losses(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        grid: GridSpec,
        *,
        counts: Mapping[str, Tensor] | None = None,
        **options: Unpack[LossOptions],
    ) -> dict[str, Tensor]:
        """See the base class; adds `loss_stuff`."""
        losses = super().losses(outputs, targets, grid, counts=counts, **options)
        losses["loss_stuff"] = stuff_loss(
            outputs.extras["stuff_logits"],
            targets,
            count=None if counts is None else counts["loss_stuff"],
        )
        return losses

    def loss_counts(
        self,
        targets: Sequence[Target],
        grid: GridSpec,
        image_size: tuple[int, int],
        **options: Unpack[LossOptions],
    ) -> dict[str, Tensor]:
        """See the base class; adds the pixels of `loss_stuff`."""
        counts = super().loss_counts(targets, grid, image_size, **options)
        counts["loss_stuff"] = scored_pixels(targets, image_size)
        return counts

    def postprocess(
        self,
        instances: Instances,
        extras: dict[str, Tensor],
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        score_threshold: float = 0.0,
        mask_threshold: float = 0.5,
        panoptic_score_threshold: float = 0.5,
        panoptic_overlap_threshold: float = 0.5,
        stuff_area_threshold: int = 4096,
        selection: Mapping[str, Any] | None = None,
    ) -> list[Result]:
        """See the base class; results also carry `panoptic_seg` and `segments_info`.

        The instances are those of the instance task; `score_threshold` does not change the map,
        which has its own `panoptic_score_threshold`.
        """
        plain = super().postprocess(
            instances,
            extras,
            metas,
            padded_size=padded_size,
            score_threshold=min(score_threshold, panoptic_score_threshold),
            mask_threshold=mask_threshold,
            selection=selection,
        )
        settings = {
            "score_threshold": score_threshold,
            "panoptic_score_threshold": panoptic_score_threshold,
            "panoptic_overlap_threshold": panoptic_overlap_threshold,
            "stuff_area_threshold": stuff_area_threshold,
        }
        results = []
        for index, (result, meta) in enumerate(zip(plain, metas, strict=True)):
            stuff_index = segment_stuff(
                extras["stuff_logits"][index],
                padded_size=padded_size,
                input_size=meta.input_size,
                orig_size=meta.orig_size,
            )
            if result.packed_masks is None:
                raise ValueError("the panoptic merge needs the instances' masks")
            merged = merge_panoptic(
                result.packed_masks,
                meta.orig_size[1],
                result.scores,
                stuff_index,
                num_stuff=self.categories.num_stuff,
                score_threshold=panoptic_score_threshold,
                overlap_threshold=panoptic_overlap_threshold,
                stuff_area_threshold=stuff_area_threshold,
            )
            table = _to_host(merged, result)
            shown = result[result.scores >= score_threshold]
            results.append(
                replace(
                    shown,
                    panoptic_seg=merged.panoptic_seg,
                    segments_info=_segments(table, self.categories),
                    explanation=explain_panoptic(
                        result.explanation,
                        things=table.things,
                        stuff=table.stuff,
                        num_shown=len(shown),
                        settings=settings,
                    ),
                )
            )
        return results

    def make_evaluators(self, dataset: Any, *, backend: str = "hotcoco") -> list[Evaluator]:
        """See the base class."""
        from unisolo.evaluation.coco import CocoEvaluator
        from unisolo.evaluation.panoptic import PanopticEvaluator

        return [
            PanopticEvaluator(
                dataset.panoptic_ground_truth(),
                dataset.panoptic_dir,
                self.categories,
                backend=backend,
            ),
            CocoEvaluator(
                dataset.coco_ground_truth(), self.categories, ("bbox", "segm"), backend=backend
            ),
        ]


class _Table(NamedTuple):
    """A merged map's segments on the host: things by score, stuff by index; id 0 = not in it."""

    things: list[tuple[int, int, float, int]]  # id, label, score, area
    stuff: list[tuple[int, int, int]]  # id, area, free pixels that were too few


def _to_host(merged: PanopticMerge, instances: Result) -> _Table:
    """Bring the table of a merged map to the host in one copy; scores travel as their bits."""
    count = len(instances)
    numbers = torch.cat(
        [
            merged.instance_ids.long(),
            instances.labels,
            merged.instance_areas,
            instances.scores.view(torch.int32).long(),
            merged.stuff_ids.long(),
            merged.stuff_areas,
            merged.small_stuff_areas,
        ]
    ).cpu()
    ids, labels, areas, bits = numbers[: 4 * count].view(4, count)
    scores = bits.int().view(torch.float32).tolist()
    things = zip(ids.tolist(), labels.tolist(), scores, areas.tolist(), strict=True)
    stuff = zip(*numbers[4 * count :].view(3, -1).tolist(), strict=True)
    return _Table(list(things), list(stuff))


def _segments(table: _Table, categories: Categories) -> tuple[Segment, ...]:
    """List the segments of a merged map by id."""
    segments = [
        _segment(segment_id, label, score, area, categories)
        for segment_id, label, score, area in table.things
        if segment_id > 0
    ]
    segments += [
        _segment(segment_id, categories.num_things + index, 1.0, area, categories)
        for index, (segment_id, area, _) in enumerate(table.stuff)
        if segment_id > 0
    ]
    return tuple(segments)


def _segment(
    segment_id: int, label: int, score: float, area: int, categories: Categories
) -> Segment:
    category: Category = categories[label]
    return Segment(
        id=segment_id,
        category_id=category.id,
        label=label,
        isthing=category.isthing,
        score=score,
        area=area,
    )
