"""The module that is exported, run by torch as it is, against the package's own post-process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import tiny_model

from unisolo import UniSolo
from unisolo.data.loader import collate
from unisolo.export.command import prepare
from unisolo.export.graph import ExportGraph
from unisolo.export.verify import named_result, verify
from unisolo.graphs import Graph, GraphError, GraphFacts, Size
from unisolo.graphs.base import Arrays
from unisolo.ops.select import select_instances
from unisolo.structures import Sample

TASKS = ["instance", "detection", "panoptic"]
SIZES: list[Size] = ["stride4", "input", (70, 90)]


class Unexported(Graph):
    """The module itself in the place of a runtime."""

    def __init__(self, facts: GraphFacts, module: ExportGraph) -> None:
        super().__init__(Path("unexported"), facts)
        self.module = module

    def _run(self, inputs: Arrays) -> list[NDArray[np.generic]]:
        with torch.inference_mode():
            tensors = [torch.from_numpy(value) for value in inputs.values()]
            return [output.numpy() for output in self.module(*tensors)]


def unexported(model: UniSolo, task: str, size: Size, *overrides: str, **fixed: object) -> Graph:
    facts, module = prepare(model, task=task, size=size, overrides=overrides, **fixed)  # type: ignore[arg-type]
    return Unexported(facts, module)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_equals_the_post_process(
    model: UniSolo, samples: list[Sample], task: str, size: Size
) -> None:
    graph = unexported(model, task, size, "inference.panoptic_score_threshold=0.2")
    difference = verify(model, graph, samples)
    assert difference.images > len(samples)  # alone and in batches
    assert difference.instances > 100
    assert difference.unmatched == 0
    assert difference.score < 1e-6
    assert difference.box == 0 and difference.mask == 0
    assert (difference.panoptic or 0) == 0 and (difference.panoptic is None) == (task != "panoptic")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nothing_found_is_normal(samples: list[Sample], size: Size) -> None:
    blind = tiny_model().eval()
    torch.nn.init.constant_(blind.solo_head.category_out.bias, -30.0)
    graph = unexported(blind, "panoptic", size)
    batch = collate(samples[:2])
    named = graph.run(batch.images, batch.image_sizes)
    assert named["count"].tolist() == [0, 0]
    assert not named["scores"].any() and not named["boxes"].any()
    assert not named["segments"][:, :100, 0].any()
    difference = verify(blind, graph, samples[:2])
    assert difference.instances == 0 and difference.unmatched == 0 and difference.panoptic == 0


@pytest.mark.parametrize(("candidates", "places"), [(7, 100), (500, 3), (5, 1), (3, 9)])
def test_more_candidates_than_places_and_fewer(
    model: UniSolo, samples: list[Sample], candidates: int, places: int
) -> None:
    settings = [f"inference.max_candidates={candidates}", f"inference.max_instances={places}"]
    graph = unexported(model, "instance", "stride4", *settings)
    named = graph.run(*_inputs(samples[:1]))
    assert named["scores"].shape == (1, places)
    assert 0 < named["count"].item() <= min(candidates, places)
    difference = verify(model, graph, samples)
    assert difference.unmatched == 0 and difference.score < 1e-6


def test_a_fixed_size_and_batch_pads_and_runs_in_parts(
    model: UniSolo, samples: list[Sample]
) -> None:
    fixed = {"image_size": (128, 160), "batch": 2}
    graph = unexported(model, "panoptic", "input", **fixed)
    difference = verify(model, graph, samples)
    # A batch of two rounds otherwise than one image: single pixels at the threshold.
    assert difference.unmatched == 0 and difference.mask < 5e-4 and difference.panoptic < 5e-4
    graph = unexported(model, "panoptic", "input", image_size=(64, 64))
    with pytest.raises(GraphError, match="made for inputs of 64 x 64, got 64 x 96"):
        graph.run(*_inputs(samples[:1]))
    for shape in ((1, 3, 50, 64), (0, 3, 64, 64)):
        with pytest.raises(GraphError, match="at least one image, with sides that are multiples"):
            graph.run(torch.zeros(shape, dtype=torch.uint8), torch.tensor([[50, 64]])[: shape[0]])


def test_float_images_are_the_same(model: UniSolo, samples: list[Sample]) -> None:
    graph = unexported(model, "instance", "stride4", image_dtype="float32")
    assert verify(model, graph, samples).unmatched == 0


def test_documented_outputs(model: UniSolo, samples: list[Sample]) -> None:
    """Names, shapes and dtypes as the class promises them."""
    batch = collate(samples[:2])
    height, width = batch.images.shape[-2:]
    b, k, s = 2, 100, 2
    always = {
        "scores": ((b, k), torch.float32),
        "labels": ((b, k), torch.int64),
        "count": ((b,), torch.int64),
        "boxes": ((b, k, 4), torch.float32),
    }
    raw = {
        "mask_probs": ((b, k, height // 4, width // 4), torch.float32),
        "cells": ((b, k), torch.int64),
        "stage_counts": ((b, 6), torch.int64),
        "top_probs": ((b, 5), torch.float32),
        "top_labels": ((b, 5), torch.int64),
    }
    segments = {"segments": ((b, k + s, 3), torch.int64)}
    stuff = {"stuff_logits": ((b, s + 1, height // 4, width // 4), torch.float32)}
    full, quarter = (height, width), (height // 4, width // 4)
    masks = {"masks": ((b, k, *full), torch.bool)}
    expected = {
        ("detection", "input"): always,
        ("instance", "input"): always | masks,
        ("detection", "stride4"): always | raw,
        ("instance", "stride4"): always | raw,
        ("panoptic", "input"): always
        | masks
        | {"panoptic_seg": ((b, *full), torch.int32)}
        | segments,
        ("panoptic", "stride4"): always
        | raw
        | {"panoptic_seg": ((b, *quarter), torch.int32)}
        | segments
        | stuff,
    }
    for (task, size), shapes in expected.items():
        named = unexported(model, task, size).run(batch.images, batch.image_sizes)  # type: ignore[arg-type]
        found = {name: (tuple(value.shape), value.dtype) for name, value in named.items()}
        assert found == shapes, (task, size)


def test_coarse_boxes_and_map_are_those_of_the_coarse_masks(
    model: UniSolo, samples: list[Sample]
) -> None:
    graph = unexported(model, "panoptic", "stride4")
    batch = collate(samples[:1])
    named = graph.run(batch.images, batch.image_sizes)
    height, width = samples[0].meta.input_size
    for k in range(int(named["count"])):
        mask = named["mask_probs"][0, k] > 0.5
        mask[-(-height // 4) :] = False
        mask[:, -(-width // 4) :] = False
        rows, columns = (mask.any(axis).nonzero().flatten() * 4 for axis in (1, 0))
        if len(rows):
            expected = [int(columns[0]), int(rows[0]), int(columns[-1]) + 4, int(rows[-1]) + 4]
            assert named["boxes"][0, k].tolist() == expected
    for number, label, area in named["segments"][0].tolist():
        if number:
            assert (named["panoptic_seg"][0] == number).sum() == area
            assert 0 <= label < 4
    result = named_result(named | {"masks": named["mask_probs"] > 0.5}, 0, graph.categories, (9, 9))
    assert result.segments_info


@pytest.mark.parametrize("size", ["stride4", "input"])
def test_padding_is_no_stuff(model: UniSolo, samples: list[Sample], size: Size) -> None:
    """It would be counted, and lift regions that the image hardly has over the least area."""
    scale = 4 if size == "stride4" else 1
    settings = ("inference.panoptic_score_threshold=0.9", "inference.stuff_area_threshold=0")
    graph = unexported(model, "panoptic", size, *settings, image_size=(192, 192))
    batch = collate(samples[:2])
    named = graph.run(batch.images, batch.image_sizes)
    for seg, table, (height, width) in zip(
        named["panoptic_seg"], named["segments"], batch.image_sizes.tolist(), strict=True
    ):
        inside = seg[: -(-height // scale), : -(-width // scale)]
        assert seg.count_nonzero() == inside.count_nonzero() > 0
        areas = {number: area for number, _, area in table.tolist() if number > 0}
        assert areas == {number: int((inside == number).sum()) for number in areas}
        assert min(areas.values()) > 0


def test_a_batch_at_once_equals_images_in_turn(model: UniSolo, samples: list[Sample]) -> None:
    same_size = [sample for sample in samples if sample.image.shape == samples[0].image.shape]
    with torch.inference_mode():
        outputs = model(*_inputs(same_size))
    at_once = select_instances(outputs, model.grid, chunk_pixels=None)
    in_turn = select_instances(outputs, model.grid, chunk_pixels=999)
    for ours, theirs in zip(at_once, in_turn, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def _inputs(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor]:
    batch = collate(samples)
    return batch.images, batch.image_sizes
