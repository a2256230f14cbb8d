"""The kernels of the selection compile for GPUs that are not here, without spilled registers."""

from __future__ import annotations

from typing import Any

import pytest
from compiling import SHARED_LIMIT, Kernel, compile_kernels

pytest.importorskip("triton")
PLACE = "unisolo.ops.kernels."
LEVELS = {"STARTS": [0, 1600, 2896, 3472, 3728], "NUM_LEVELS": 5}
NUMBERS = ("i32:16", "i32", 1)
"""Launchers tell apart numbers divisible by 16, others, and 1."""

HALVES = {"fp16": "tl.float16", "bf16": "tl.bfloat16", "fp32": "tl.float32"}


def product(name: str, kind: str, *, rows: int, channels: int, resident: bool, **other: Any):
    """`_masks` or `_soft` for one tiling."""
    last = other.pop("last", False)
    number = other.pop("number", "i32:16")
    common = {
        "kernels_ptr": f"*{kind}:16",
        "features_ptr": f"*{kind}:16",
        "cells_ptr": "*i64:16",
        "num_pixels": number,
        "num_channels": number,
        "kernel_image": number,
        "kernel_cell": number,
        "kernel_channel": 1,
        "feature_image": number,
        "feature_channel": 1 if last else number,
        "feature_pixel": number if last else 1,
        "WIDE": other.pop("wide", False),
        "ROWS": rows,
        "CHANNELS": channels,
        "RESIDENT": resident,
        "OPERAND": HALVES[kind],
        "PRECISION": "='tf32x3'" if kind == "fp32" else "='ieee'",
    }
    if name == "_masks":
        own = {
            "scores_ptr": "*fp32:16",
            "bits_ptr": "*i32:16",
            "sums_ptr": "*i32:16",
            "num_candidates": number,
            "num_words": "i32:16",
            "threshold": "fp32",
            "BLOCK_WORDS": 2,
            "BELOW_HALF": other.pop("below_half", False),
            "EXACT": kind == "fp32",
        }
    else:
        own = {
            "valid_ptr": "*u8:16",
            "soft_ptr": "*fp32:16" if kind == "fp32" else "*fp16:16",
            "num_places": number,
            "num_blocks": number,
            "PIXELS": 64,
        }
    module = PLACE + {"_masks": "dynamic_masks", "_soft": "soft_masks"}[name]
    warps = 4 if kind == "fp32" or rows == 64 else 8
    return Kernel(module, name, {**common, **own}, {"num_warps": warps})


def small(number: Any) -> list[Kernel]:
    """The kernels that do not multiply."""
    pairs = {
        "state_ptr": "*i32:16",
        "listed_ptr": "*i32:16",
        "places_ptr": "*i32:16",
        "num_pairs": number,
    }
    candidates = PLACE + "candidates"
    return [
        Kernel(
            candidates,
            "_suppress",
            {
                "probs_ptr": "*fp32:16",
                "left_ptr": "*fp32:16",
                **{name: pairs[name] for name in ("state_ptr", "num_pairs")},
                "num_categories": number,
                "threshold": "fp32",
                "SIZES": [40, 36, 24, 16, 12],
                **LEVELS,
                "BLOCK": 2048,
            },
            {"num_warps": 8},
        ),
        Kernel(
            candidates,
            "_list",
            {"left_ptr": "*fp32:16", **pairs, "wanted": number, "BLOCK": 2048},
            {"num_warps": 8},
        ),
        Kernel(
            candidates,
            "_shorten",
            {**pairs, "wanted": number, "capacity": "i32:16", "BLOCK": 2048},
            {"num_warps": 8},
        ),
        Kernel(
            candidates,
            "_rank",
            {
                **pairs,
                "scores_ptr": "*fp32:16",
                "labels_ptr": "*i64:16",
                "cells_ptr": "*i64:16",
                "top_probs_ptr": "*fp32:16",
                "top_labels_ptr": "*i64:16",
                "num_categories": number,
                "wanted": number,
                "count": number,
                "capacity": "i32:16",
                "threshold": "fp32",
                "NUM_TOP": 5,
                "OWN": 8,
                "OTHERS": 256,
            },
            {"num_warps": 4},
        ),
        Kernel(
            PLACE + "dynamic_masks",
            "_measure",
            {
                "sums_ptr": "*i32:16",
                "cells_ptr": "*i64:16",
                **{f"{name}_ptr": "*fp32:16" for name in ("probs", "maskness", "scores")},
                **{f"{name}_ptr": "*i32" for name in ("areas", "first", "last")},
                "num_candidates": number,
                "padded": "i32:16",
                "num_parts": number,
                "STARTS": LEVELS["STARTS"],
                "LEAST": [8, 8, 16, 32, 32],
                "NUM_LEVELS": 5,
                "BLOCK": 16,
                "PARTS": 1 if number == 1 else 128,
            },
            {"num_warps": 4},
        ),
        Kernel(
            PLACE + "select",
            "_count",
            {
                "passing_ptr": "*i32",
                **{f"{name}_ptr": "*fp32:16" for name in ("probs", "scores", "entered", "decayed")},
                "counts_ptr": "*i64:16",
                "passing_stride": "i32",
                "count": number,
                "places": number,
                "threshold": "fp32",
                "BLOCK": 1024,
            },
            {"num_warps": 4},
        ),
    ]


def check(kernels: list[Kernel], capability: int, shared: int | None = None) -> None:
    for kernel, made in zip(kernels, compile_kernels(kernels, capability), strict=True):
        assert made.spilled == 0, (kernel.name, kernel.arguments, made.registers)
        assert made.shared <= (shared or SHARED_LIMIT[capability]), (kernel.name, kernel.arguments)


@pytest.mark.slow
@pytest.mark.parametrize("number", NUMBERS)
def test_candidates_and_measures(number):
    check(small(number), 90)
    check(small(number), 80)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_kernels_stay_on_a_hopper_chip(kind):
    kernels = [
        product(name, kind, rows=rows, channels=channels, resident=True, last=last)
        for name, rows, channels in (
            ("_masks", 256, 256),
            ("_masks", 128, 256),
            ("_masks", 64, 128),
            ("_masks", 256, 64),
            ("_soft", 128, 256),
            ("_soft", 64, 64),
        )
        for last in (False, True)
    ]
    kernels += [
        product("_masks", kind, rows=256, channels=256, resident=True, below_half=True),
        product("_masks", kind, rows=256, channels=256, resident=True, wide=True),
    ]
    check(kernels, 90)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32"])
def test_kernels_read_in_steps(kind, capability):
    """On other GPUs, of many channels, of unaligned features and in float32."""
    rows, channels = (64, 16) if kind == "fp32" else (128, 32)
    kernels = [
        product(name, kind, rows=rows, channels=channels, resident=False, last=last, number=number)
        for name in ("_masks", "_soft")
        for last, number in ((False, "i32:16"), (True, "i32:16"), (False, "i32"))
    ]
    check(kernels, capability, shared=99 * 1024)  # what Ampere and Ada have outside data centres
