from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden_tools import unpack

from unisolo.ops.masks import unpack_bits, upsample_masks
from unisolo.ops.matrix_nms import matrix_nms
from unisolo.ops.select import (
    candidate_masks,
    category_probs,
    nms_inputs,
    select_instances,
    top_candidates,
)
from unisolo.structures import GridSpec, Outputs

pytestmark = pytest.mark.usefixtures("each_twin")

FILES = ["defaultgrids", "edges", "gaussian", "linear", "none", "thresholds", "topk"]


def _read(arrays: dict[str, Any]) -> tuple[Outputs, GridSpec, dict[str, Any]]:
    meta = arrays["meta"]
    grid = GridSpec(tuple(meta["num_grids"]), tuple(meta["strides"]))

    def flat(name: str) -> torch.Tensor:
        levels = [arrays[f"{name}{level}"] for level in range(grid.num_levels)]
        return torch.cat(
            [torch.from_numpy(level).float().flatten(2).transpose(1, 2) for level in levels], dim=1
        )

    features = torch.from_numpy(arrays["mask_feat"]).float()
    test = meta["test_cfg"]
    settings = {
        "score_threshold": test["score_thr"],
        "mask_threshold": test["mask_thr"],
        "max_candidates": 10**9,
        "pre_nms": test["nms_pre"],
        "nms_kernel": test["kernel"],
        "nms_sigma": test["sigma"],
        "update_threshold": test["update_thr"],
        "max_instances": test["max_per_img"],
    }
    return Outputs(flat("cate"), flat("kernel"), features, {}), grid, settings


def _candidates(outputs: Outputs, grid: GridSpec, settings: dict[str, Any]):
    return top_candidates(
        category_probs(outputs.category_logits, grid)[0],
        score_threshold=settings["score_threshold"],
        max_candidates=1000,  # above every file's number of candidates
    )


@pytest.mark.parametrize("file", FILES)
def test_candidates_equal_the_reference(golden, file):
    arrays = golden(f"decode_{file}")
    candidates = _candidates(*_read(arrays))

    found = candidates.scores > 0
    assert found.sum() == arrays["meta"]["n_candidates"]
    pairs = torch.stack([candidates.cells, candidates.labels], dim=1)[found].numpy()
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # the reference lists them by cell, then label
    np.testing.assert_array_equal(pairs[order], arrays["cand_cell_label"])
    np.testing.assert_allclose(
        candidates.scores[found].numpy()[order], arrays["cand_score"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("file", [file for file in FILES if file != "none"])
def test_matrix_nms_sees_and_gives_what_the_reference_does(golden, file):
    arrays = golden(f"decode_{file}")
    outputs, grid, settings = _read(arrays)
    candidates = _candidates(outputs, grid, settings)
    levels = zip(grid.sizes, grid.strides, strict=True)
    strides = torch.cat([torch.full((size * size,), stride) for size, stride in levels])
    made = candidate_masks(
        outputs.kernels[0][candidates.cells],
        outputs.mask_features[0],
        mask_threshold=settings["mask_threshold"],
    )
    kept, masks = nms_inputs(
        candidates, made, min_areas=strides[candidates.cells], pre_nms=settings["pre_nms"]
    )

    count = int((kept.scores > 0).sum())
    assert count == arrays["meta"]["n_after_area_and_topk"]
    np.testing.assert_allclose(kept.scores[:count], arrays["nms_in_scores"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(kept.labels[:count], arrays["nms_in_labels"])
    areas = masks[:count].sum((1, 2))
    np.testing.assert_array_equal(areas, arrays["nms_in_areas"].astype(np.int64))
    np.testing.assert_array_equal(masks[:count], unpack(arrays, "nms_in_masks"))

    decayed = matrix_nms(
        masks,
        kept.labels,
        kept.scores,
        kernel=settings["nms_kernel"],
        sigma=settings["nms_sigma"],
    )
    np.testing.assert_allclose(decayed[:count], arrays["nms_out_scores"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("max_candidates", [10**9, "as many as there are"])
def test_instances_equal_the_reference(golden, file, max_candidates):
    arrays = golden(f"decode_{file}")
    outputs, grid, settings = _read(arrays)
    meta = arrays["meta"]
    if max_candidates == "as many as there are":
        max_candidates = max(1, meta["n_candidates"])
    settings["max_candidates"] = max_candidates
    instances = select_instances(outputs, grid, **settings)

    count = meta["n_final"]
    assert instances.valid.tolist() == [
        [place < count for place in range(settings["max_instances"])]
    ]
    np.testing.assert_allclose(instances.scores[0, :count], arrays["scores"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(instances.labels[0, :count], arrays["labels"])

    orig_size = tuple(meta["ori_shape"])
    masks = upsample_masks(
        instances.mask_probs[0],
        padded_size=tuple(meta["padded_hw"]),
        input_size=tuple(meta["img_shape"]),
        orig_size=orig_size,
        threshold=settings["mask_threshold"],
    )
    ours = unpack_bits(masks.packed[:count], orig_size[1]).numpy()
    theirs = unpack(arrays, "masks")
    assert ours.shape == theirs.shape
    assert (ours != theirs).sum() <= 1e-4 * theirs.size
    np.testing.assert_array_equal(masks.areas[:count], ours.sum((1, 2)))
    assert (masks.areas[count:] == 0).all()
