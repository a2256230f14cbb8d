"""Results when all K places are made at full size and nothing is asked before: the kernels' way."""

from __future__ import annotations

import pytest
import torch

from unisolo import Categories, Category
from unisolo.ops.backend import use_kernels
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, ImageMeta, Instances, Outputs
from unisolo.tasks import TASKS

GRID = GridSpec((3, 2), (8, 16), ((1, 8), (8, 64)))
CATEGORIES = Categories(
    [Category(n, f"thing {n}", isthing=True) for n in range(1, 3)]
    + [Category(3, "stuff", isthing=False)]
)
SIZE = (32, 32)
METAS = [ImageMeta(1, "", (19, 21), (30, 32)), ImageMeta(2, "", (23, 17), (32, 25))]


def scene(device: torch.device) -> tuple[Instances, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator).to(device)

    outputs = Outputs(noise(13, 2), noise(13, 8), noise(8, 8, 8), {})
    with use_kernels("torch"):
        instances = select_instances(outputs, GRID, max_instances=10, update_threshold=0.4)
    assert not instances.valid.all()  # there are places that stay empty
    # A mask that vanishes before it is at full size, in the middle of the others.
    instances.mask_probs[0, 2] = 0
    return instances, {"stuff_logits": noise(2, 8, 8)}


@pytest.mark.slow  # Triton's interpreter takes seconds a mask
@pytest.mark.parametrize("task", list(TASKS))
def test_results_equal_those_of_the_definition(device: torch.device, task: str) -> None:
    instances, extras = scene(device)

    def answer() -> list:
        return TASKS[task](CATEGORIES).postprocess(
            instances,
            extras,
            METAS,
            padded_size=SIZE,
            score_threshold=0.5,
            panoptic_score_threshold=0.45,
            stuff_area_threshold=4,
        )

    with use_kernels("torch"):
        expected = answer()
    with use_kernels("triton"):
        results = answer()
    assert len(expected[0]) > 1
    for ours, theirs in zip(results, expected, strict=True):
        ours, theirs = ours.cpu(), theirs.cpu()
        assert torch.equal(ours.scores, theirs.scores)
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.boxes, theirs.boxes)
        assert ours.segments_info == theirs.segments_info
        assert ours.explanation == theirs.explanation
        if theirs.packed_masks is not None:
            assert torch.equal(ours.packed_masks, theirs.packed_masks)
        if theirs.panoptic_seg is not None:
            assert torch.equal(ours.panoptic_seg, theirs.panoptic_seg)
