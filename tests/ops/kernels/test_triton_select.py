"""The whole selection on Triton against the torch definition."""

from __future__ import annotations

import pytest
import torch

from unisolo.ops.backend import use_kernels
from unisolo.ops.select import select_instances
from unisolo.structures import GridSpec, Instances, Outputs

pytest.importorskip("triton")
GRID = GridSpec((4, 3, 1), (4, 8, 16), ((1, 8), (4, 16), (8, 64)))


def make_outputs(
    device, *, batch=1, categories=2, size=(9, 11), channels=5, seed=0, dtype=torch.float32,
    grid=GRID, num_kernels=9,
) -> Outputs:  # fmt: skip
    """Ties of category logits and duplicates of masks are common; values are exact in halves."""
    generator = torch.Generator().manual_seed(seed)
    cells = grid.num_cells
    logits = torch.randint(-5, 5, (batch, cells, categories), generator=generator)
    pool = torch.randint(-8, 9, (batch, num_kernels, channels), generator=generator) / 4
    pick = torch.randint(num_kernels, (cells,), generator=generator)
    features = torch.randint(-4, 5, (batch, channels, *size), generator=generator) / 4
    fields = (logits, pool[:, pick], features)
    return Outputs(*(field.to(device, dtype) for field in fields), {})


def check(outputs, poisoned, grid=GRID, *, score_error=5e-6, mask_error=2e-6, **settings):
    with use_kernels("torch"):
        expected = select_instances(outputs, grid, **settings)
    with use_kernels("triton"), poisoned():
        found = select_instances(outputs, grid, **settings)
    half = outputs.kernels.dtype == outputs.mask_features.dtype != torch.float32
    assert found.mask_probs.dtype == (torch.float16 if half else torch.float32)
    for name in ("labels", "cells", "valid", "stage_counts", "top_probs", "top_labels"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs), name
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=score_error)
    torch.testing.assert_close(
        found.mask_probs.float(), expected.mask_probs.float(), rtol=0, atol=mask_error
    )
    return found


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"max_candidates": 20, "pre_nms": 7, "max_instances": 5, "mask_threshold": 0.4},
        {"max_candidates": 12, "nms_kernel": "linear", "update_threshold": 0.0, "min_area": 40},
    ],
)
def test_equals_the_definition(device, poisoned, settings):
    found = check(make_outputs(device), poisoned, **settings)
    assert found.valid.any()


def test_nothing_above_the_threshold(device, poisoned):
    outputs = make_outputs(device, batch=2, categories=1)
    found = check(outputs, poisoned, score_threshold=0.999, max_candidates=8)
    assert not found.valid.any()
    assert (found.top_probs > 0).all()


def test_half_precision(device, poisoned):
    """Scores differ by the approximate tanh on a GPU; exact small numbers keep masks the same."""
    outputs = make_outputs(device, dtype=torch.float16, categories=1)
    check(outputs, poisoned, score_error=1e-3, mask_error=3e-4, max_candidates=16)


def test_no_category_takes_the_definition(device):
    outputs = make_outputs(device)
    outputs = outputs._replace(category_logits=outputs.category_logits[..., :0])
    with use_kernels("triton"):
        found = select_instances(outputs, GRID, max_instances=3)
    assert not found.valid.any()
    assert found.mask_probs.shape == (1, 3, 9, 11)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_random_cases(device, poisoned, seed):
    generator = torch.Generator().manual_seed(seed)
    batch, categories, height, width, channels, count = (
        int(torch.randint(1, high, (1,), generator=generator)) for high in (4, 5, 20, 40, 40, 120)
    )
    outputs = make_outputs(
        device,
        batch=batch,
        categories=categories,
        size=(height, width),
        channels=channels,
        seed=seed,
        # On a GPU tanh is approximate in halves: scores that nearly tie may change places.
        dtype=torch.float16 if seed % 2 and device.type == "cpu" else torch.float32,
    )
    if seed % 3 == 0:
        features = outputs.mask_features.to(memory_format=torch.channels_last)
        outputs = outputs._replace(mask_features=features)
    check(
        outputs,
        poisoned,
        score_error=1e-3,
        mask_error=3e-4,
        max_candidates=count,
        pre_nms=(500, 20)[seed % 2],
        nms_kernel=("gaussian", "linear")[seed % 2],
        max_instances=(100, 4)[seed // 2 % 2],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["defaultgrids", "edges", "gaussian", "linear", "none", "thresholds", "topk"]
)
def test_the_reference_of_others(device, golden, file):
    """Outputs and results of the reference implementation, as files."""
    arrays = golden(f"decode_{file}")
    meta, test = arrays["meta"], arrays["meta"]["test_cfg"]
    grid = GridSpec(tuple(meta["num_grids"]), tuple(meta["strides"]))

    def flat(name):
        levels = [torch.from_numpy(arrays[f"{name}{n}"]).float() for n in range(grid.num_levels)]
        return torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1).to(device)

    features = torch.from_numpy(arrays["mask_feat"]).float().to(device)
    with use_kernels("triton"):
        found = select_instances(
            Outputs(flat("cate"), flat("kernel"), features, {}),
            grid,
            score_threshold=test["score_thr"],
            mask_threshold=test["mask_thr"],
            max_candidates=max(1, meta["n_candidates"]),
            pre_nms=test["nms_pre"],
            nms_kernel=test["kernel"],
            nms_sigma=test["sigma"],
            update_threshold=test["update_thr"],
            max_instances=test["max_per_img"],
        )
    count = meta["n_final"]
    assert found.valid[0].tolist() == [place < count for place in range(test["max_per_img"])]
    theirs = torch.from_numpy(arrays["scores"]).to(device)
    torch.testing.assert_close(found.scores[0, :count], theirs, rtol=0, atol=1e-5)
    assert found.labels[0, :count].tolist() == arrays["labels"].tolist()
    passing, chosen, large_and_best = (int(found.stage_counts[0, step]) for step in (0, 1, 3))
    assert passing == chosen == meta["n_candidates"]
    assert large_and_best == meta["n_after_area_and_topk"]


def test_twice_the_same(device, poisoned):
    outputs = make_outputs(device, categories=1, size=(5, 7))
    with use_kernels("triton"):
        runs: list[Instances] = [
            select_instances(outputs, GRID, max_candidates=8) for _ in range(2)
        ]
    for one, two in zip(*runs, strict=True):
        assert torch.equal(one, two)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "size", "channels", "seed"),
    [(1, (25, 43), 64, 0), (3, (25, 43), 64, 0), (1, (100, 168), 256, 2)],
)
def test_on_a_gpu(poisoned, dtype, batch, size, channels, seed):
    """Of these seeds, different scores differ by 1e-3 at least: the order is not up to rounding."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    outputs = make_outputs(
        "cuda",
        batch=batch,
        categories=4,
        size=size,
        channels=channels,
        dtype=dtype,
        grid=GridSpec(),
        num_kernels=3,
        seed=seed,
    )
    check(outputs, poisoned, GridSpec(), score_error=1e-3, mask_error=1e-3)


@pytest.mark.gpu
def test_in_a_cuda_graph():
    """A replay on new inputs gives what a plain call gives, so nothing was read by the host."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    grid = GridSpec()
    static, other = (
        make_outputs(
            "cuda", categories=8, size=(50, 84), channels=128, seed=seed, dtype=torch.float16,
            grid=grid,
        )
        for seed in (0, 1)
    )  # fmt: skip
    with use_kernels("triton"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                select_instances(static, grid)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = select_instances(static, grid)
        for ours, theirs in zip(static[:3], other[:3], strict=True):
            ours.copy_(theirs)
        graph.replay()
        expected = select_instances(other, grid)
    for one, two in zip(captured, expected, strict=True):
        assert torch.equal(one, two)


@pytest.mark.gpu
def test_memory_of_the_worst_case():
    """2,000 candidates on a map of 1,024 x 1,024 and 1,203 categories, all above the threshold."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    grid = GridSpec()
    generator = torch.Generator("cuda").manual_seed(0)
    outputs = Outputs(
        torch.rand(1, grid.num_cells, 1203, device="cuda", generator=generator),
        torch.randn(1, grid.num_cells, 128, device="cuda", generator=generator).half(),
        torch.rand(1, 128, 1024, 1024, device="cuda", generator=generator).half(),
        {},
    )
    settings = {"max_candidates": 2000, "pre_nms": 2000, "score_threshold": 0.1}
    with use_kernels("triton"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = select_instances(outputs, grid, **settings)
        peak = torch.cuda.max_memory_allocated() - before
    assert found.stage_counts[0, 1] == 2000
    assert peak < 1.5 * 2**30
