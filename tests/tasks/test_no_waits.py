"""The post-process asks the device nothing but one small copy a batch and one copy a result."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from unisolo import Categories, Category
from unisolo.ops.backend import use_kernels
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, ImageMeta, Outputs
from unisolo.tasks import TASKS

GRID = GridSpec((6, 4, 2), (8, 16, 32), ((1, 8), (4, 16), (8, 64)))
CATEGORIES = Categories(
    [Category(n, f"thing {n}", isthing=True) for n in range(1, 4)]
    + [Category(n, f"stuff {n}", isthing=False) for n in range(4, 6)]
)
SIZE = (96, 64)
METAS = [ImageMeta(1, "", (50, 37), (90, 64)), ImageMeta(2, "", (120, 70), (96, 60))]


def outputs(device: str = "cpu") -> Outputs:
    generator = torch.Generator().manual_seed(50)  # no two scores are near each other
    height, width = SIZE[0] // 4, SIZE[1] // 4
    fields = [
        torch.randn(2, *shape, generator=generator).to(device)
        for shape in (
            (GRID.num_cells, 3),
            (GRID.num_cells, 8),
            (8, height, width),
            (3, height, width),
        )
    ]
    return Outputs(*fields[:3], {"stuff_logits": fields[3]})


def answer(raw: Outputs, task: str):
    instances = select_instances(raw, GRID)
    return TASKS[task](CATEGORIES).postprocess(
        instances,
        raw.extras,
        METAS,
        padded_size=SIZE,
        score_threshold=0.2,
        panoptic_score_threshold=0.3,
        stuff_area_threshold=8,
    )


class ReadsValues(TorchDispatchMode):
    """Fails on what a GPU would wait for: shapes that depend on values, and values as numbers."""

    WAITING = ("nonzero", "_local_scalar_dense", "masked_select", "unique", "item", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name.startswith(waiting) for waiting in self.WAITING):
            raise AssertionError(f"{func} waits for the device")
        if name in ("index", "index_put", "index_put_"):
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    raise AssertionError(f"{func} with a mask waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", list(TASKS))
def test_nothing_is_read_on_the_way(task, monkeypatch):
    # On a CPU the stuff that can win nowhere is left out by looking, which a GPU does not do.
    monkeypatch.setattr("unisolo.ops.panoptic._contenders", lambda logits, _: [*range(len(logits))])
    raw = outputs()
    with use_kernels("torch"):
        with ReadsValues():
            results = [result.cpu() for result in answer(raw, task)]
        assert all(len(result) > 3 for result in results)
        with ReadsValues(), pytest.raises(AssertionError, match="waits"):
            torch.ones(3).nonzero()


def test_results_are_views_that_cost_no_copy_on_a_cpu():
    with use_kernels("torch"):
        (result, _) = answer(outputs(), "instance")
    assert result.cpu().packed_masks is result.packed_masks


class CopiesToHost(TorchDispatchMode):
    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        source = [a.device.type for a in args if isinstance(a, torch.Tensor)]
        made = out.device.type if isinstance(out, torch.Tensor) else None
        self.copies += made == "cpu" and "cuda" in source
        return out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("task", list(TASKS))
def test_a_gpu_is_read_once_a_batch_and_once_a_result(task):
    raw = outputs("cuda")
    expected = [result.cpu() for result in answer(raw, task)]  # kernels are compiled here
    torch.cuda.set_sync_debug_mode("error")
    try:
        with CopiesToHost() as counted:
            results = answer(raw, task)
            assert counted.copies == 1
            results = [result.cpu() for result in results]
            assert counted.copies == 1 + len(METAS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with use_kernels("torch"):
        definition = [result.cpu() for result in answer(outputs(), task)]
    for result, again, plain in zip(results, expected, definition, strict=True):
        assert torch.equal(result.packed_masks, again.packed_masks) if task != "detection" else True
        assert torch.equal(result.labels, plain.labels)
        torch.testing.assert_close(result.scores, plain.scores, rtol=0, atol=1e-3)
