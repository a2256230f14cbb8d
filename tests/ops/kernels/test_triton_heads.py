"""The heads as they run on a GPU: grids on one canvas, norms in Triton."""

from __future__ import annotations

import pytest
import torch

from unisolo.models import MaskHead, SoloHead
from unisolo.models.solo_head import CANVAS_BATCH
from unisolo.ops.backend import use_kernels

SIZES = (5, 4, 3, 2, 1)


def pyramid(device: torch.device, batch: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 4, -(-32 // s), -(-64 // s), generator=generator).to(device)
        for s in (4, 8, 16, 32, 64)
    ]


def solo_head(**options: str) -> SoloHead:
    torch.manual_seed(0)
    head = SoloHead(4, 3, channels=4, num_convs=1, kernel_channels=6, grid_sizes=SIZES, **options)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head.eval()


def test_both_heads_give_what_the_definition_gives(device: torch.device) -> None:
    heads = solo_head().to(device), MaskHead(4, 4, 6).eval().to(device)
    levels = pyramid(device)
    for head in heads:
        with torch.no_grad(), use_kernels("triton"):
            ours = head(levels)
        with torch.no_grad(), use_kernels("torch"):
            theirs = head(levels)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_the_canvas_is_for_evaluation_of_few_images(device: torch.device) -> None:
    grid = torch.zeros(1, 6, 5, 5, device=device)
    many = torch.zeros(CANVAS_BATCH + 1, 6, 5, 5, device=device)
    head = solo_head()
    with use_kernels("triton"):
        assert not head._canvas_pays(grid)  # gradients
        with torch.no_grad():
            assert head._canvas_pays(grid)
            assert not head._canvas_pays(many)
            assert not solo_head(deform="last-v1")._canvas_pays(grid)
            assert not head.train()._canvas_pays(grid)


def test_gradients_flow_in_training(device: torch.device) -> None:
    head = solo_head().to(device).train()
    with use_kernels("triton"):
        logits, kernels = head(pyramid(device))
    (logits.sum() + kernels.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_head_on_a_gpu(dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    head = SoloHead(256, 80).eval().to(device, memory_format=torch.channels_last)
    levels = [
        torch.randn(1, 256, 800 // s, 1344 // s, device=device).contiguous(
            memory_format=torch.channels_last
        )
        for s in (4, 8, 16, 32)
    ]
    levels.append(levels[-1][..., ::2, ::2])
    images = [torch.randn(1, 258, side, side, device=device) for side in head.grid_sizes]
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        with use_kernels("triton"):
            together = head._on_canvas(images)
            assert head(levels)[0].isfinite().all()
        with use_kernels("torch"):
            apart = head._one_by_one(images)
    tolerance = 2e-2 if dtype == torch.float32 else 5e-2  # cuDNN takes TF32 by itself
    for one, other in zip(together, apart, strict=True):
        error = (one.float() - other.float()).abs().amax() / other.float().abs().amax()
        assert error < tolerance
