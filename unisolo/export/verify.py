"""An exported file against the model it came from, on images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unisolo.categories import Categories
from unisolo.data.loader import collate, padded_size_groups
from unisolo.export.difference import Difference, compare
from unisolo.graphs import Graph, GraphFacts, fit_images, select
from unisolo.models import UniSolo
from unisolo.ops.masks import pack_bits
from unisolo.results import Result, Segment
from unisolo.structures import Batch, ImageMeta, Sample
from unisolo.tasks import TaskAdapter, get_task

__all__ = ["LIMITS", "named_result", "verify"]

LIMITS = Difference(score=1e-4, mask=1e-4, panoptic=5e-4)
"""What an fp32 graph may differ by. Lower precision moves near ties: its figures are only told."""


@torch.inference_mode()
def verify(
    model: UniSolo, graph: Graph, samples: Sequence[Sample], *, batch_size: int = 4
) -> Difference:
    """Compare a graph with the model, each image alone and then in batches.

    Sizes "stride4" are compared at the size of the original images, finished as `Predictor`
    finishes them; others in their own frame. Either way the model's side is the package's own
    post-process, not the exported module.

    Args:
        model: What the graph was made from, in evaluation mode on the CPU.
        graph: The opened file.
        samples: Images as the model gets them.
        batch_size: Most images in one run.

    Returns:
        The difference over all results.
    """
    batches = [[sample] for sample in samples]
    groups = padded_size_groups(iter(samples), batch_size, lambda sample: sample.meta.input_size)
    batches += [group for group in groups if len(group) > 1]
    total = Difference()
    for group in batches:
        batch = collate(group)
        # For the model too: the grids span the padding.
        batch = replace(batch, images=fit_images(batch.images, graph.facts, graph.path))
        task = get_task(graph.facts.task)(graph.categories)
        ours = _model_results(model, task, batch, graph.facts)
        theirs = _graph_results(graph, task, batch)
        for left, right in zip(ours, theirs, strict=True):
            total = total.join(compare(left, right, precision=graph.facts.precision))
    return total


def named_result(
    named: dict[str, Tensor], index: int, categories: Categories, size: tuple[int, int]
) -> Result:
    """Make a result from the outputs of a graph whose masks are final.

    Args:
        named: Outputs by name, of a graph of size "input" or (H, W).
        index: Which image of the batch.
        categories: The graph's.
        size: (H, W) of the valid part of the frame.
    """
    height, width = size
    wanted = torch.arange(int(named["count"][index]))
    filled = named["boxes"][index, wanted, 2] > 0  # empty masks are left out
    wanted = wanted[filled]
    masks = named["masks"][index, wanted, :height, :width] if "masks" in named else None
    seg = named["panoptic_seg"][index, :height, :width] if "panoptic_seg" in named else None
    return Result(
        image_size=size,
        categories=categories,
        scores=named["scores"][index, wanted],
        labels=named["labels"][index, wanted],
        boxes=named["boxes"][index, wanted],
        packed_masks=None if masks is None else pack_bits(masks),
        panoptic_seg=seg,
        segments_info=None if seg is None else _segments(named, index, categories),
    )


def _segments(named: dict[str, Tensor], index: int, categories: Categories) -> tuple[Segment, ...]:
    scores = named["scores"][index].tolist()
    segments = []
    for row, (number, label, area) in enumerate(named["segments"][index].tolist()):
        if number > 0:
            category = categories[label]
            score = scores[row] if category.isthing else 1.0
            segments.append(Segment(number, category.id, label, category.isthing, score, area))
    return tuple(segments)


def _model_results(
    model: UniSolo, task: TaskAdapter, batch: Batch, facts: GraphFacts
) -> list[Result]:
    settings = facts.config.inference
    height, width = batch.images.shape[-2:]
    found = select(model(batch.images, batch.image_sizes), model.grid, settings)
    return task.postprocess(
        found.instances,
        found.extras,
        [_framed(meta, facts, (height, width)) for meta in batch.metas],
        padded_size=(height, width),
        **settings.postprocess_arguments(),
    )


def _graph_results(graph: Graph, task: TaskAdapter, batch: Batch) -> list[Result]:
    facts = graph.facts
    height, width = batch.images.shape[-2:]
    if facts.size == "stride4":
        found = graph(batch.images, batch.image_sizes)
        return task.postprocess(
            found.instances,
            found.extras,
            batch.metas,
            padded_size=(height, width),
            **facts.config.inference.postprocess_arguments(),
        )
    named = graph.run(batch.images, batch.image_sizes)
    metas = [_framed(meta, facts, (height, width)) for meta in batch.metas]
    return [
        named_result(named, index, graph.categories, meta.orig_size)
        for index, meta in enumerate(metas)
    ]


def _framed(meta: ImageMeta, facts: GraphFacts, padded: tuple[int, int]) -> ImageMeta:
    """The frame in which a graph's masks are final, as if it were the original image's."""
    if facts.size == "stride4":
        return meta
    if facts.size == "input":
        return replace(meta, orig_size=meta.input_size)
    return replace(meta, input_size=padded, orig_size=facts.size)
