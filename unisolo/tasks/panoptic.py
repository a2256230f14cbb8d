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
from unisolo.ops.masks import CHUNK_PIXELS
from unisolo.ops.panoptic import PanopticMerge, merge_panoptic, segment_stuff
from unisolo.results import Result, Segment
from unisolo.structures import GridSpec, ImageMeta, Instances, Outputs, Target
from unisolo.tasks.base import TaskAdapter
from unisolo.tasks.explained import HostFacts, explain_instances, explain_panoptic, host_facts
from unisolo.tasks.full_size import FullSize, make_full_size, make_result

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
        chunk_pixels: int = CHUNK_PIXELS,
    ) -> list[Result]:
        """See the base class; results also carry `panoptic_seg` and `segments_info`.

        The instances are those of the instance task; `score_threshold` does not change the map,
        which has its own `panoptic_score_threshold`. The merge is over, on the device, before the
        host reads anything.
        """
        least = min(score_threshold, panoptic_score_threshold)
        full_size = make_full_size(
            instances,
            metas,
            padded_size=padded_size,
            score_threshold=least,
            mask_threshold=mask_threshold,
            chunk_pixels=chunk_pixels,
        )
        merged = [
            self._merge(
                instances,
                extras["stuff_logits"],
                full_size,
                index,
                meta,
                padded_size=padded_size,
                score_threshold=panoptic_score_threshold,
                overlap_threshold=panoptic_overlap_threshold,
                stuff_area_threshold=stuff_area_threshold,
                chunk_pixels=chunk_pixels,
            )
            for index, meta in enumerate(metas)
        ]
        facts_of_images = host_facts(instances, full_size, [merge[1:] for merge in merged])
        settings = {
            "score_threshold": score_threshold,
            "panoptic_score_threshold": panoptic_score_threshold,
            "panoptic_overlap_threshold": panoptic_overlap_threshold,
            "stuff_area_threshold": stuff_area_threshold,
        }
        results = []
        for index, (facts, meta) in enumerate(zip(facts_of_images, metas, strict=True)):
            table, shown = _table(facts), facts.places(score_threshold)
            explanation = explain_instances(
                facts,
                self.categories,
                selection or {},
                mask_threshold=mask_threshold,
                score_threshold=least,
                left=len(table.things),
            )
            result = make_result(
                instances,
                full_size,
                index,
                shown,
                image_size=meta.orig_size,
                categories=self.categories,
                with_masks=True,
                explanation=explain_panoptic(
                    explanation,
                    things=table.things,
                    stuff=table.stuff,
                    num_shown=len(shown),
                    settings=settings,
                ),
            )
            results.append(
                replace(
                    result,
                    panoptic_seg=merged[index].panoptic_seg,
                    segments_info=_segments(table, self.categories),
                )
            )
        return results

    def _merge(
        self,
        instances: Instances,
        stuff_logits: Tensor,
        full_size: FullSize,
        index: int,
        meta: ImageMeta,
        *,
        padded_size: tuple[int, int],
        chunk_pixels: int,
        **thresholds: Any,
    ) -> PanopticMerge:
        """Merge the instances and the stuff of one image; `thresholds` are `merge_panoptic`'s."""
        stuff_index = segment_stuff(
            stuff_logits[index],
            padded_size=padded_size,
            input_size=meta.input_size,
            orig_size=meta.orig_size,
            chunk_pixels=max(1, chunk_pixels // 4),
        )
        packed = full_size.masks[index].packed
        # An unwanted place is below any threshold.
        scores = torch.where(full_size.wanted[index], instances.scores[index], -1)
        return merge_panoptic(
            packed,
            meta.orig_size[1],
            scores[: len(packed)],
            stuff_index,
            num_stuff=self.categories.num_stuff,
            **thresholds,
        )

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


def _table(facts: HostFacts) -> _Table:
    """Read the tables of a merge, all of `PanopticMerge` but the map; things only with pixels."""
    ids, areas, *stuff = (numbers.tolist() for numbers in facts.more)
    scores, labels = facts.scores.tolist(), facts.labels.tolist()
    things = [(ids[n], labels[n], scores[n], areas[n]) for n in facts.places()]
    return _Table(things, list(zip(*stuff, strict=True)))


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
