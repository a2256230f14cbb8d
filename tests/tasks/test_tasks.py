from __future__ import annotations

import pytest
import torch
from tiny_model import CATEGORIES, tiny_model

from unisolo import Categories, Category, UniSolo
from unisolo.config import InferenceConfig
from unisolo.ops.select import select_instances
from unisolo.structures import STUFF_IGNORE, ImageMeta, Instances, Outputs, Target
from unisolo.tasks import TASKS, get_task

SIZE = (64, 96)
METAS = [
    ImageMeta(1, "a.jpg", (100, 150), (64, 96)),
    ImageMeta(2, "b.jpg", (61, 47), (60, 46)),
]


def panoptic_model() -> UniSolo:
    """A panoptic model whose categories fire, so that there are instances to compare."""
    model = tiny_model().eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.solo_head.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
        torch.nn.init.constant_(model.solo_head.category_out.bias, 0.0)
    return model


def forward(model: UniSolo) -> Outputs:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        return model(images, torch.tensor([meta.input_size for meta in METAS]))


def target(*, objects: int, crowd: bool = False) -> Target:
    object_map = torch.zeros(1, *SIZE, dtype=torch.int16)
    boxes = []
    for n in range(objects):
        object_map[0, 8 : 8 + 16, 4 + 20 * n : 20 + 20 * n] = n + 1
        boxes.append([4 + 20 * n, 8, 20 + 20 * n, 24])
    crowd_map = torch.zeros(*SIZE, dtype=torch.int16)
    if crowd:
        crowd_map[40:60, 10:60] = 1
    stuff_map = torch.where(object_map[0] > 0, 2, 0).to(torch.int16)
    stuff_map[crowd_map > 0] = STUFF_IGNORE
    return Target(
        labels=torch.arange(objects) % 2,
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        object_map=object_map,
        crowd_map=crowd_map,
        stuff_map=stuff_map,
    )


def test_one_forward_answers_three_tasks_with_identical_instances() -> None:
    model = panoptic_model()
    outputs = forward(model)
    settings = InferenceConfig(stuff_area_threshold=16)
    instances = select_instances(outputs, model.grid, **settings.select_arguments())
    assert int(instances.valid.sum()) > 10
    answers = {
        name: task(CATEGORIES).postprocess(
            instances, outputs.extras, METAS, padded_size=SIZE, **settings.postprocess_arguments()
        )
        for name, task in TASKS.items()
    }
    for index, meta in enumerate(METAS):
        panoptic, instance, detection = (
            answers[name][index] for name in ("panoptic", "instance", "detection")
        )
        assert len(instance) > 0
        for other in (panoptic, detection):
            assert torch.equal(instance.scores, other.scores)
            assert torch.equal(instance.labels, other.labels)
            assert torch.equal(instance.boxes, other.boxes)
        assert instance.packed_masks is not None
        assert panoptic.packed_masks is not None
        assert torch.equal(instance.packed_masks, panoptic.packed_masks)
        assert detection.packed_masks is None
        assert instance.image_size == meta.orig_size
        assert panoptic.panoptic_seg is not None
        assert panoptic.panoptic_seg.shape == meta.orig_size


@pytest.mark.parametrize("name", list(TASKS))
def test_segments_agree_with_the_map(name: str) -> None:
    model = panoptic_model()
    outputs = forward(model)
    instances = select_instances(outputs, model.grid)
    results = TASKS[name](CATEGORIES).postprocess(
        instances,
        outputs.extras,
        METAS,
        padded_size=SIZE,
        panoptic_score_threshold=0.2,
        stuff_area_threshold=1,
    )
    for result in results:
        if result.panoptic_seg is None:
            assert name != "panoptic"
            continue
        assert result.segments_info is not None
        ids, areas = result.panoptic_seg.unique(return_counts=True)
        table = dict(zip(ids.tolist(), areas.tolist(), strict=True))
        table.pop(0, None)
        assert {segment.id: segment.area for segment in result.segments_info} == table
        for segment in result.segments_info:
            assert CATEGORIES.label(segment.category_id) == segment.label
            assert segment.isthing == CATEGORIES[segment.label].isthing
        assert any(segment.isthing for segment in result.segments_info)
        assert any(not segment.isthing for segment in result.segments_info)


def test_score_threshold_does_not_change_the_panoptic_map() -> None:
    model = panoptic_model()
    outputs = forward(model)
    instances = select_instances(outputs, model.grid)
    task = TASKS["panoptic"](CATEGORIES)
    low, high = (
        task.postprocess(
            instances,
            outputs.extras,
            METAS,
            padded_size=SIZE,
            score_threshold=threshold,
            panoptic_score_threshold=0.2,
        )[0]
        for threshold in (0.0, 0.9)
    )
    assert len(high) < len(low)
    assert torch.equal(low.panoptic_seg, high.panoptic_seg)  # type: ignore[arg-type]
    assert low.segments_info == high.segments_info


@pytest.mark.parametrize("name", list(TASKS))
def test_no_instances_is_normal(name: str) -> None:
    empty = Instances(
        scores=torch.zeros(2, 4),
        labels=torch.zeros(2, 4, dtype=torch.int64),
        cells=torch.zeros(2, 4, dtype=torch.int64),
        valid=torch.zeros(2, 4, dtype=torch.bool),
        mask_probs=torch.zeros(2, 4, 16, 24),
        stage_counts=torch.zeros(2, 6, dtype=torch.int64),
        top_probs=torch.zeros(2, 5),
        top_labels=torch.zeros(2, 5, dtype=torch.int64),
    )
    extras = {"stuff_logits": torch.randn(2, 3, 16, 24)}
    results = TASKS[name](CATEGORIES).postprocess(empty, extras, METAS, padded_size=SIZE)
    assert [len(result) for result in results] == [0, 0]
    assert [result.image_size for result in results] == [meta.orig_size for meta in METAS]


@pytest.mark.parametrize("name", list(TASKS))
@pytest.mark.parametrize("amounts", [(0, 0), (0, 3), (2, 1)])
@pytest.mark.parametrize("crowd", [False, True])
def test_losses_are_finite_and_reach_every_parameter(
    name: str, amounts: tuple[int, int], crowd: bool
) -> None:
    model = tiny_model(f"task={name}")
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    task = TASKS[name](CATEGORIES)
    targets = [target(objects=amount, crowd=crowd) for amount in amounts]
    losses = task.losses(model(images), targets, model.grid)
    assert set(losses) == set(task.loss_weights)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_learns_one_image(name: str) -> None:
    model = tiny_model(f"task={name}")
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    task = TASKS[name](CATEGORIES)
    targets = [target(objects=2), target(objects=0)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    totals = []
    for _ in range(25):
        losses = task.losses(model(images), targets, model.grid)
        total = sum(task.loss_weights[key] * loss for key, loss in losses.items())
        optimizer.zero_grad()
        total.backward()  # type: ignore[union-attr]
        optimizer.step()
        totals.append(float(total))  # type: ignore[arg-type]
    assert totals[-1] < 0.8 * totals[0]


def test_unknown_tasks_and_stuff_only_data_are_named() -> None:
    with pytest.raises(ValueError, match="panoptic, instance, detection"):
        get_task("semantic")
    with pytest.raises(ValueError, match="needs at least one thing"):
        TASKS["instance"](Categories([Category(1, "sky", isthing=False)]))
