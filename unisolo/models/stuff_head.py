"""Semantic logits for stuff, from the mask branch's trunk."""

from __future__ import annotations

from torch import Tensor, nn

from unisolo.models.layers import ConvNormAct

__all__ = ["StuffHead"]


class StuffHead(nn.Module):
    """Stuff branch of the panoptic task: one 3 x 3 convolution and a classifier on the trunk.

    Why so little: SOLOv2's mask branch up to its sum (every pyramid level through convolutions and
    x 2 upsamplings to stride 4, then added) has the very structure of Panoptic FPN's semantic
    branch (arXiv 1901.02446, section 3), so sharing that trunk gives stuff for almost nothing. The
    3 x 3 convolution lets the two uses part. Its weights start at torch's scale, not at the 0.01 of
    SOLOv2's branches: from there Adam needs hundreds of steps to grow logits that tell 50
    categories apart.

    Args:
        in_channels: Channels of the trunk.
        channels: Width of the convolution.
        num_stuff: S, number of stuff categories.
    """

    def __init__(self, in_channels: int, channels: int, num_stuff: int) -> None:
        super().__init__()
        self.conv = ConvNormAct(in_channels, channels)
        self.out = nn.Conv2d(channels, num_stuff + 1, 1)

    def forward(self, pyramid: list[Tensor], trunk: Tensor) -> Tensor:
        """Predict stuff.

        Args:
            pyramid: P2 to P6; not read here, part of the protocol of all extra heads.
            trunk: [B, in_channels, h, w], the mask branch's sum at stride 4.

        Returns:
            [B, S + 1, h, w] logits; the last channel is "other": any thing.
        """
        logits: Tensor = self.out(self.conv(trunk))
        return logits
