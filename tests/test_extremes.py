"""The whole chain on the cases that break such software: annotations in, losses and results out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CATEGORIES, tiny_config, tiny_model

from unisolo import Categories, Category, Predictor, build_model
from unisolo.data.loader import collate
from unisolo.data.raw import RawSample, RawTarget
from unisolo.data.transforms import EvalTransform, TrainTransform
from unisolo.ops.select import select_instances
from unisolo.structures import STUFF_IGNORE, GridSpec, ImageMeta, Outputs, Sample
from unisolo.tasks import TASKS


def raw_sample(
    size: tuple[int, int], boxes: list[tuple[int, int, int, int]], *, crowd: bool = False
) -> RawSample:
    """An image with rectangles (y0, x0, y1, x1) as objects, each in a layer of its own."""
    height, width = size
    rng = np.random.default_rng(len(boxes) + height)
    object_map = np.zeros((max(len(boxes), 1), height, width), dtype=np.int16)
    for number, (y0, x0, y1, x1) in enumerate(boxes):
        object_map[number, y0:y1, x0:x1] = number + 1
    crowd_map = np.zeros(size, dtype=np.int16)
    if crowd:
        crowd_map[: height // 2 + 1] = 1
    stuff_map = np.where(object_map.any(axis=0), 2, 1).astype(np.int16)
    stuff_map[crowd_map > 0] = STUFF_IGNORE
    target = RawTarget(
        labels=np.arange(len(boxes), dtype=np.int64) % 2,
        object_map=object_map,
        crowd_map=crowd_map,
        stuff_map=stuff_map,
    )
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return RawSample(image, ImageMeta(1, "x.png", size, size), target)


def check_chain(samples: list[Sample], model: Any) -> None:
    """One training step and the three answers; everything finite and in the original frame."""
    batch = collate(samples)
    task = TASKS["panoptic"](model.categories)
    losses = task.losses(model(batch.images, batch.image_sizes), batch.targets, model.grid)
    for name, loss in losses.items():
        assert torch.isfinite(loss), name
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    model.eval()
    height, width = batch.images.shape[-2:]
    with torch.inference_mode():
        outputs = model(batch.images, batch.image_sizes)
        instances = select_instances(outputs, model.grid, score_threshold=0.0)
        for task_class in TASKS.values():
            results = task_class(model.categories).postprocess(
                instances, outputs.extras, batch.metas, padded_size=(height, width)
            )
            for result, meta in zip(results, batch.metas, strict=True):
                assert result.image_size == meta.orig_size
                assert torch.isfinite(result.scores).all()
                limit = torch.tensor([*meta.orig_size[::-1]] * 2)
                assert (result.boxes >= 0).all()
                assert (result.boxes <= limit).all()
    model.train()


@pytest.fixture(scope="module")
def model() -> Any:
    # Group norm in the FPN: one image of 1 x 1 features has no batch statistics.
    return tiny_model("model.fpn_norm=group", "model.frozen_bn=true")


SIDES = st.integers(1, 70)


@st.composite
def scenes(draw: st.DrawFn) -> RawSample:
    height, width = draw(SIDES), draw(SIDES)
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        y0, x0 = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        y1, x1 = draw(st.integers(y0 + 1, height)), draw(st.integers(x0 + 1, width))
        boxes.append((y0, x0, y1, x1))
    return raw_sample((height, width), boxes, crowd=draw(st.booleans()))


@settings(max_examples=12)
@given(st.lists(scenes(), min_size=1, max_size=2), st.integers(0, 99))
def test_any_small_scene_trains_and_predicts(model: Any, raws: list[RawSample], seed: int) -> None:
    torch.manual_seed(seed)
    transform = TrainTransform(48, 64, scale_jitter=(0.3, 2.0), crop=(32, 40), vertical_flip=0.5)
    check_chain([transform(raw) for raw in raws], model)


@pytest.mark.parametrize(
    ("size", "boxes", "crowd"),
    [
        pytest.param((40, 60), [], False, id="no objects"),
        pytest.param((40, 60), [], True, id="only crowd"),
        pytest.param((40, 60), [(9, 9, 10, 10)], False, id="one pixel"),
        pytest.param((1, 1), [(0, 0, 1, 1)], False, id="1 x 1 image"),
        pytest.param(
            (4000, 30), [(5, 5, 20, 20), (3000, 0, 3900, 30)], False, id="4000 x 30 image"
        ),
        pytest.param((40, 60), [(5, 5, 30, 30)] * 4, False, id="duplicate objects"),
        pytest.param((40, 60), [(0, 0, 40, 60)] * 2, True, id="objects inside a crowd"),
    ],
)
def test_extreme_images(
    model: Any, size: tuple[int, int], boxes: list[tuple[int, int, int, int]], crowd: bool
) -> None:
    check_chain([EvalTransform(48, 96)(raw_sample(size, boxes, crowd=crowd))], model)


def test_an_object_cropped_away_is_no_target(model: Any) -> None:
    raw = raw_sample((64, 64), [(0, 0, 3, 3)])
    transform = TrainTransform(64, 64, crop=(16, 16), flip=0.0)
    kept = [len(transform(raw).target) for _ in range(12)]  # type: ignore[arg-type]
    assert 0 in kept
    torch.manual_seed(kept.index(0))
    check_chain([transform(raw)], model)


@pytest.mark.parametrize("num_things", [1, 1203])
def test_one_category_and_many(num_things: int) -> None:
    categories = Categories(
        [Category(3 * n + 1, f"thing {n}") for n in range(num_things)]
        + [Category(5000, "sky", isthing=False), Category(5001, "sea", isthing=False)]
    )
    config = tiny_config("model.fpn_norm=group", "model.frozen_bn=true")
    raw = raw_sample((40, 60), [(5, 5, 30, 30)])
    check_chain([EvalTransform(48, 64)(raw)], build_model(config, categories))


def test_more_places_than_cells_and_categories() -> None:
    grid = GridSpec(sizes=(1, 1, 1, 1, 1))
    outputs = Outputs(torch.zeros(1, 5, 1), torch.ones(1, 5, 4), torch.ones(1, 4, 8, 8), {})
    instances = select_instances(outputs, grid, max_candidates=5000, max_instances=40)
    assert instances.scores.shape == (1, 40)
    # Five identical masks with exactly tied scores: the first keeps its score, the rest decay.
    assert int(instances.valid.sum()) <= 5
    assert torch.isfinite(instances.scores).all()
    assert int(instances.cells[0, 0]) == 0


def test_predictor_on_extreme_images() -> None:
    predictor = Predictor(tiny_model().eval(), device="cpu")
    for size in ((1, 1), (4000, 30), (7, 900)):
        result = predictor.predict(np.zeros((*size, 3), dtype=np.uint8), score_threshold=0.0)
        assert result.panoptic_seg is not None
        assert result.panoptic_seg.shape == size
    assert predictor.categories == CATEGORIES
