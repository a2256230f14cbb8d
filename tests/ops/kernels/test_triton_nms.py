from __future__ import annotations

from itertools import product

import pytest
import torch
from compiling import Kernel, compile_kernels
from golden_tools import unpack
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
from unisolo.ops import matrix_nms as definition
from unisolo.ops.backend import use_kernels
from unisolo.ops.kernels import nms
from unisolo.ops.kernels.intersections import packed_intersections
from unisolo.ops.kernels.packed import pack_masks
from unisolo.ops.masks import mask_intersections
from unisolo.ops.ranking import rank
from unisolo.ops.select import Candidates, keep_best

KERNELS = [("gaussian", 2.0), ("gaussian", 0.5), ("linear", 2.0)]


@pytest.fixture(autouse=True)
def _poison(poisoned):
    with poisoned():
        yield


def scene(batch_size, count, num_labels, num_scores=9):
    """Few different masks, labels and scores: copies, ties, empty masks and scores of 0."""
    pool = torch.rand(max(2, count // 3), 4, 7) > 0.4
    pool[0] = False
    masks = pool[torch.randint(0, len(pool), (batch_size, count))]
    labels = torch.randint(0, num_labels, (batch_size, count))
    scores = torch.randint(0, num_scores, (batch_size, count)) / (num_scores - 1)
    return masks, labels, scores


def decayed_by_definition(masks, labels, scores, kernel, sigma):
    with use_kernels("torch"):
        return definition.matrix_nms(masks, labels, scores, kernel=kernel, sigma=sigma)


def decayed_by_kernels(device, masks, labels, scores, kernel, sigma):
    intersections = mask_intersections(masks.flatten(2)).int()
    takes_part = scores > 0
    meets = takes_part[:, :, None] & takes_part[:, None] & (labels[:, :, None] == labels[:, None])
    intersections[~meets] = -77  # must not be read
    decayed = nms.decay_scores(
        intersections.to(device), labels.to(device), scores.to(device), kernel=kernel, sigma=sigma
    )
    return decayed.cpu()


def assert_decayed(found, expected, scores):
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    assert (found <= scores.float()).all()


@pytest.mark.parametrize(("kernel", "sigma"), KERNELS)
@settings(max_examples=5)
@given(count=st.integers(1, 8), num_labels=st.integers(1, 2), num_scores=st.integers(2, 6))
def test_decay_is_the_definitions(device, kernel, sigma, count, num_labels, num_scores):
    instances = scene(1, count, num_labels, num_scores)
    found = decayed_by_kernels(device, *instances, kernel, sigma)
    assert_decayed(found, decayed_by_definition(*instances, kernel, sigma), instances[2])


@pytest.mark.parametrize(("batch_size", "count"), [(3, 1), (2, 2), (2, 31), (1, 33), (1, 70)])
def test_decay_of_batches_in_many_turns(device, batch_size, count, monkeypatch):
    monkeypatch.setattr(nms, "OWN", 16)
    monkeypatch.setattr(nms, "OTHERS", 32)
    instances = scene(batch_size, count, 3)
    for kernel, sigma in KERNELS[::2]:
        found = decayed_by_kernels(device, *instances, kernel, sigma)
        assert_decayed(found, decayed_by_definition(*instances, kernel, sigma), instances[2])


def test_a_mask_that_has_lost_much_itself_takes_less(device):
    pixel = torch.arange(40)
    masks = torch.stack([(pixel >= start) & (pixel < start + 12) for start in range(0, 24, 2)])
    instances = (masks.reshape(1, 12, 4, 10), torch.zeros(1, 12, dtype=torch.int64))
    for order in (torch.arange(12, 0, -1), torch.randperm(12)):
        scores = order[None] / 12
        for kernel, sigma in KERNELS:
            found = decayed_by_kernels(device, *instances, scores, kernel, sigma)
            expected = decayed_by_definition(*instances, scores, kernel, sigma)
            assert_decayed(found, expected, scores)


def test_a_second_run_gives_the_same_bits(device):
    instances = scene(2, 9, 2)
    runs = [decayed_by_kernels(device, *instances, "gaussian", 2.0) for _ in range(2)]
    assert torch.equal(*runs)


def test_decay_of_more_candidates_than_a_turn_takes(device, monkeypatch):
    monkeypatch.setattr(nms, "OWN", 128)  # fewer programs for the interpreter
    instances = scene(1, nms.OTHERS + 45, 5)
    found = decayed_by_kernels(device, *instances, "gaussian", 2.0)
    assert_decayed(found, decayed_by_definition(*instances, "gaussian", 2.0), instances[2])


def test_a_third_copy_of_a_mask_and_a_huge_sigma_stay_finite(device):
    masks = torch.ones(1, 3, 2, 2, dtype=torch.bool)
    labels, scores = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([[0.5, 0.75, 0.25]])
    for kernel, sigma in (("linear", 2.0), ("gaussian", 1e6)):
        found = decayed_by_kernels(device, masks, labels, scores, kernel, sigma)
        assert found.tolist() == [[0, 0.75, 0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_scores_of_any_float_type(device, dtype):
    masks, labels, scores = scene(1, 7, 1)
    scores = scores.to(dtype)
    if dtype == torch.float64:
        scores += torch.arange(7, 0, -1) * 1e-12  # an order that float32 does not see
    found = decayed_by_kernels(device, masks, labels, scores, "gaussian", 2.0)
    expected = decayed_by_definition(masks, labels, scores, "gaussian", 2.0)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def sorted_candidates(batch_size, count, num_scores):
    """Candidates as they leave `nms_inputs`, and decayed scores with ties and zeros."""
    scores = torch.randint(0, num_scores, (batch_size, count)).sort(-1, descending=True)[0] / 4
    candidates = Candidates(
        scores,
        torch.randint(0, 5, (batch_size, count)),
        torch.randint(0, 99, (batch_size, count)),
    )
    return candidates, scores * torch.randint(0, 3, (batch_size, count)) / 2


def check_kept(device, candidates, decayed, update_threshold, max_instances):
    settings = {"update_threshold": update_threshold, "max_instances": max_instances}
    expected, valid = keep_best(candidates, decayed, **settings)
    inputs = (field.to(device) for field in (*candidates, decayed))
    found = nms.Kept(*(field.cpu() for field in nms.keep_best(*inputs, **settings)))

    for name in ("scores", "labels", "cells"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.valid.dtype == torch.bool and torch.equal(found.valid, valid)
    assert torch.equal(found.candidates >= 0, valid)
    image, place = valid.nonzero(as_tuple=True)
    assert torch.equal(
        candidates.cells[image, found.candidates[valid]], expected.cells[image, place]
    )


@pytest.mark.parametrize(
    ("update_threshold", "max_instances"), list(product((0.0, 0.25, 2.0), (1, 6, 12)))
)
def test_the_best_are_kept_as_the_definition_keeps_them(device, update_threshold, max_instances):
    candidates, decayed = sorted_candidates(2, 11, 6)
    check_kept(device, candidates, decayed, update_threshold, max_instances)


def test_ranks_are_counted_over_many_turns(device, monkeypatch):
    monkeypatch.setattr(nms, "OWN", 16)
    monkeypatch.setattr(nms, "OTHERS", 32)
    for count, max_instances in ((31, 33), (33, 70), (70, 31)):
        check_kept(device, *sorted_candidates(1, count, 20), 0.3, max_instances)


def test_places_without_any_candidate_are_filled_with_zeros(device):
    check_kept(device, *sorted_candidates(2, 0, 6), 0.05, 3)


def test_order_of_the_candidates_only_decides_ties(device):
    candidates, _ = sorted_candidates(1, 12, 6)
    decayed = candidates.scores * torch.rand(1, 12)
    best, _ = keep_best(candidates, decayed, update_threshold=0.01, max_instances=5)
    order = torch.randperm(12)
    shuffled = (field[:, order].to(device) for field in (*candidates, decayed))
    found = nms.keep_best(*shuffled, update_threshold=0.01, max_instances=5)
    assert torch.equal(found.scores.cpu(), best.scores)
    assert torch.equal(found.cells.cpu(), best.cells)


def test_of_equal_decayed_scores_the_higher_score_comes_first(device):
    scores = torch.randperm(12)[None] / 12
    decayed = torch.full((1, 12), 0.5)
    zeros = torch.zeros(1, 12, dtype=torch.int64)
    inputs = (field.to(device) for field in (scores, zeros, zeros, decayed))
    found = nms.keep_best(*inputs, update_threshold=0.5, max_instances=11)
    assert torch.equal(found.candidates.cpu(), scores.argsort(descending=True)[:, :11])


@pytest.mark.parametrize("limit", [1, 7, 12, 40])
def test_the_cut_before_matrix_nms_leaves_the_highest_scores(device, limit):
    scores = torch.randint(0, 5, (3, 12)) / 4
    expected = torch.zeros_like(scores)
    values, index = rank(scores, limit)
    expected.scatter_(1, index, values)
    assert torch.equal(nms.keep_top(scores.to(device), limit).cpu(), expected)


@pytest.mark.parametrize("images", [0, slice(None)])
def test_the_switch_reaches_the_twin_for_bool_masks(device, images):
    masks, labels, scores = (field[images] for field in scene(2, 9, 3))
    masks = masks.transpose(-1, -2)  # not contiguous
    with use_kernels("triton"):
        found = definition.matrix_nms(masks.to(device), labels.to(device), scores.to(device))
    assert_decayed(
        found.cpu(), decayed_by_definition(masks, labels, scores, "gaussian", 2.0), scores
    )


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 3, 4), (0, 2, 3, 4), (2, 0, 5), (2, 5, 0)])
def test_nothing_in_nothing_lost(device, shape):
    scores = torch.rand(shape[:-2], device=device)
    with use_kernels("triton"):
        found = definition.matrix_nms(
            torch.zeros(shape, dtype=torch.bool, device=device), scores.long(), scores
        )
    assert torch.equal(found, scores)


def test_wrong_arguments_are_refused_in_the_definitions_words(device):
    masks = torch.ones(2, 3, 4, dtype=torch.bool, device=device)
    labels, scores = torch.zeros(2, dtype=torch.int64, device=device), torch.ones(2, device=device)
    for wrong in (
        (masks, labels[:1], scores),
        (masks[:1], labels, scores),
        (masks, labels, labels),
    ):
        messages = []
        for kernels in ("torch", "triton"):
            with use_kernels(kernels), pytest.raises(ValueError) as raised:
                definition.matrix_nms(*wrong)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


@pytest.mark.gpu
@pytest.mark.parametrize("num_labels", [1, 12])
def test_a_whole_batch_in_one_graph_without_a_sync(num_labels):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    batch_size, count, size = 2, 500, (200, 336)
    position = torch.arange(size[0] * size[1], device="cuda")
    middle = torch.rand(batch_size, count, 1, device="cuda") * len(position)
    reach = torch.rand(batch_size, count, 1, device="cuda") * len(position) / 4
    masks = (position - middle).abs() < reach
    labels = torch.randint(0, num_labels, (batch_size, count), device="cuda")
    scores = torch.rand(batch_size, count, device="cuda").sort(-1, descending=True)[0]
    scores[:, -50:] = 0
    cells = torch.randint(0, 3872, (batch_size, count), device="cuda")

    def chain():
        intersections = packed_intersections(pack_masks(masks), labels, scores)
        decayed = nms.decay_scores(intersections, labels, scores)
        return nms.keep_best(
            scores, labels, cells, decayed, update_threshold=0.05, max_instances=100
        )

    with use_kernels("torch"):
        decayed = definition.matrix_nms(masks.unflatten(-1, size), labels, scores)
    candidates = Candidates(scores, labels, cells)
    expected, valid = keep_best(candidates, decayed, update_threshold=0.05, max_instances=100)

    first = chain()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        chain()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.cuda.graph(graph):
        found = chain()
    for field in found:
        field.zero_()
    graph.replay()

    assert torch.equal(found.valid, valid)
    assert torch.equal(found.cells, expected.cells)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
    for once, again in zip(first, found, strict=True):
        assert torch.equal(once, again)


SLOW = pytest.mark.slow
FILES = ["1", "5", *(pytest.param(file, marks=SLOW) for file in ("50", "50_ties_dups", "nan_edge"))]


@pytest.mark.parametrize("file", [*FILES, pytest.param("50_one_empty", marks=SLOW)])
def test_matrix_nms_equals_the_reference(golden, device, file):
    arrays = golden(f"nms_{file}")
    inputs = (torch.from_numpy(arrays[name]).to(device) for name in ("labels", "scores"))
    masks = torch.from_numpy(unpack(arrays, "masks")).to(device)
    labels, scores = inputs
    for name, kernel, sigma in (("gaussian_2.0", "gaussian", 2.0), ("linear", "linear", 2.0)):
        found = nms.matrix_nms(masks, labels, scores, kernel=kernel, sigma=sigma).cpu()
        expected = torch.from_numpy(arrays[f"decayed_{name}"])
        known = expected.isfinite()
        assert found.isfinite().all()
        torch.testing.assert_close(found[known], expected[known], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [(90, "fp32"), *(pytest.param(*case, marks=SLOW) for case in ((80, "fp32"), (90, "fp64")))],
)
def test_kernels_compile_without_spills(capability, dtype):
    blocks = {"OWN": nms.OWN, "OTHERS": nms.OTHERS}
    scores, reals, longs = f"*{dtype}:16", "*fp32:16", "*i64:16"
    matrix = {
        "intersections_ptr": "*i32:16",
        "labels_ptr": longs,
        "scores_ptr": scores,
        "highest_ptr": reals,
        "count": "i32",
        **blocks,
    }
    decay = {**matrix, "decayed_ptr": reals, "sigma": "fp32"}
    best = {
        "scores_ptr": scores,
        **dict.fromkeys(("decayed_ptr", "best_ptr"), reals),
        **dict.fromkeys(("labels_ptr", "cells_ptr", "chosen_ptr"), longs),
        **dict.fromkeys(("best_labels_ptr", "best_cells_ptr"), longs),
        "valid_ptr": "*u8:16",
        **dict.fromkeys(("count", "places"), "i32"),
        "threshold": "fp32",
        **blocks,
    }
    top = {"scores_ptr": scores, "left_ptr": reals, "count": "i32", "limit": "i32", **blocks}
    cases = [
        ("_highest_iou", matrix),
        ("_decay", {**decay, "GAUSSIAN": True}),
        ("_decay", {**decay, "GAUSSIAN": False}),
        ("_keep_best", best),
        ("_keep_top", top),
    ]
    exact = {"num_warps": 4, "enable_fp_fusion": False}
    kernels = [Kernel("unisolo.ops.kernels.nms", *case, exact) for case in cases]
    for compiled in compile_kernels(kernels, capability):
        assert compiled.spilled == 0, compiled.name
        assert "fma.rn.f32" not in compiled.ptx, compiled.name
