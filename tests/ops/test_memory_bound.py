"""The post-process works in the memory that is stated, whatever the image holds."""

from __future__ import annotations

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from unisolo import Categories, Category
from unisolo.benchmark.memory import MIB, Crowd, measure_memory
from unisolo.config import Config, InferenceConfig
from unisolo.graphs import select
from unisolo.ops.backend import use_kernels
from unisolo.structures import GridSpec, ImageMeta, Outputs
from unisolo.tasks import TASKS
from unisolo.thresholds import settings_of_call

GRID = GridSpec((12, 8, 4), (8, 16, 32), ((1, 8), (4, 16), (8, 64)))
CATEGORIES = Categories(
    [Category(n, f"thing {n}", isthing=True) for n in range(1, 4)]
    + [Category(n, f"stuff {n}", isthing=False) for n in range(4, 8)]
)
WORST_CASE_LIMIT = 1536 * MIB


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive at once, at most; and the largest float."""

    def __init__(self):
        super().__init__()
        self.peak, self.largest_float = 0, 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {
            each.untyped_storage()._cdata
            for each in (*args, *(kwargs or {}).values())
            if isinstance(each, torch.Tensor)
        }
        out = func(*args, **(kwargs or {}))
        self._alive = {key: made for key, made in self._alive.items() if not made[0].expired()}
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if not isinstance(made, torch.Tensor):
                continue
            storage = made.untyped_storage()
            if storage._cdata not in given:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            if made.is_floating_point():
                self.largest_float = max(self.largest_float, made.numel())
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


def crowd(side: int, channels: int = 8) -> Outputs:
    """One image whose every cell is above the threshold in every category."""
    generator = torch.Generator().manual_seed(side)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Outputs(
        noise(1, GRID.num_cells, 3).abs(),
        noise(1, GRID.num_cells, channels),
        noise(1, channels, side, side),
        {"stuff_logits": noise(1, 5, side, side)},
    )


def answer(outputs: Outputs, task: str = "panoptic", **settings):
    config = InferenceConfig(update_threshold=0.0, stuff_area_threshold=0, **settings)
    side = 4 * outputs.mask_features.shape[-1]
    found = select(outputs, GRID, config)
    meta = ImageMeta(1, "", (side - 9, side + 3), (side - 9, side))
    (result,) = TASKS[task](CATEGORIES).postprocess(
        found.instances,
        found.extras,
        [meta],
        padded_size=(side, side),
        **config.postprocess_arguments(),
    )
    return result


@pytest.mark.parametrize("side", [64, 128])
def test_the_definition_holds_candidates_as_bits(side):
    outputs, count, budget = crowd(side), 400, MIB
    with use_kernels("torch"), LiveBytes() as live:
        instances = select(
            outputs,
            GRID,
            InferenceConfig(max_candidates=count, pre_nms=count, max_instances=4, memory_budget=1),
        ).instances
    assert instances.valid.all()
    pixels = side * side
    bound = 2 * count * pixels // 8 + 4 * 4 * pixels + 48 * count * count + budget
    assert count * pixels // 8 < live.peak <= bound
    assert live.peak < 48 * count * count + count * pixels  # bool masks alone would be as much


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_the_budget_is_honoured_and_changes_no_result(kernels):
    outputs, few = crowd(48), {"max_candidates": 150, "max_instances": 30}
    with use_kernels(kernels):
        expected = answer(outputs, memory_budget=4096, **few)
        largest = {}
        for budget in (1, 4):
            with LiveBytes() as live:
                result = answer(outputs, memory_budget=budget, **few)
            largest[budget] = live.largest_float
            assert len(result) == len(expected) > 10
            torch.testing.assert_close(result.scores, expected.scores, rtol=0, atol=1e-6)
            assert torch.equal(result.labels, expected.labels)
            changed = (result.masks != expected.masks).sum()
            assert changed <= 1e-5 * expected.masks.numel()
            assert torch.equal(result.panoptic_seg, expected.panoptic_seg)
    # What a budget cannot make smaller: one full-size mask, soft masks of the kept, square tables.
    floor = max(192 * 195, 30 * 48 * 48, 150 * 151)
    assert largest[1] <= max(MIB // 16, floor)
    assert largest[4] <= max(4 * MIB // 16, floor)


def test_a_budget_reaches_every_step(monkeypatch):
    seen = {}

    def spy(name, function):
        def spied(*args, **keywords):
            seen[name] = keywords["chunk_pixels"]
            return function(*args, **keywords)

        return spied

    import unisolo.graphs.open as graphs_open
    import unisolo.tasks.full_size as full_size
    import unisolo.tasks.panoptic as panoptic

    for module, name in (
        (graphs_open, "select_instances"),
        (full_size, "upsample_masks"),
        (panoptic, "segment_stuff"),
    ):
        monkeypatch.setattr(module, name, spy(name, getattr(module, name)))
    answer(crowd(16), memory_budget=32)
    assert seen == {
        "select_instances": 2**21,
        "upsample_masks": 2**21,
        "segment_stuff": 2**19,
    }


def test_a_budget_can_be_given_per_call():
    config = Config(task="instance")
    settings = settings_of_call(config, "detection", 0.3, {"memory_budget": 7})
    assert settings.chunk_pixels == 7 * MIB // 16
    assert settings.select_arguments() == config.inference.select_arguments()
    with pytest.raises(ValueError, match="memory_budget"):
        settings_of_call(config, "detection", 0.3, {"memory_budget": 0})


@pytest.mark.slow
@pytest.mark.parametrize("way", ["auto", "torch"])
def test_the_worst_case_stays_below_one_and_a_half_gib(way):
    # 1203 categories, a 4096 x 4096 image, all cells above the threshold, 2000 candidates.
    worst = Crowd(channels=16, dtype="float32")
    assert worst.bound <= WORST_CASE_LIMIT < worst.reference / 16
    (row,) = measure_memory(worst, device="cpu", ways=(way,)).rows
    assert row.measured <= WORST_CASE_LIMIT


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["auto", "torch"])
def test_the_worst_case_on_a_gpu(way):
    (row,) = measure_memory(Crowd(), device="cuda", ways=(way,)).rows
    assert row.measured <= WORST_CASE_LIMIT
