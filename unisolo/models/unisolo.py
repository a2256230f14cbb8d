"""The model: normalise, backbone, neck, heads. The same outputs in training and evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisolo.categories import Categories
from unisolo.config import Config
from unisolo.models.backbone import TimmBackbone
from unisolo.models.mask_head import MaskHead
from unisolo.models.neck import FPN
from unisolo.models.solo_head import SoloHead
from unisolo.models.static_masks import SeparateMaskHead
from unisolo.structures import LEVEL_FEATURES, SIZE_DIVISOR, GridSpec, Outputs

__all__ = ["UniSolo"]


class UniSolo(nn.Module):
    """A timm backbone, a SOLOv2 core and the heads of the task.

    Args:
        backbone: Gives features and the normalisation its weights expect.
        neck: Makes P2 to P6.
        solo_head: Categories and kernels of the grid cells.
        mask_head: Mask features, of all levels together or of each by itself, and the trunk that
            other heads may read.
        heads: The task's own heads by the name of their output; each is called as
            `head(pyramid, trunk)` with P2..P6 and the mask branch's trunk.
        grid: Grid sizes, strides and scale ranges; a constant of the model.

    Attributes:
        grid: See above.
        categories: Categories of the data set, or None; set by `unisolo.build.build_model`.
        config: Configuration the model was built from, or None; set likewise.

    Raises:
        ValueError: If the parts do not fit one another.
    """

    categories: Categories | None
    config: Config | None
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: TimmBackbone,
        neck: FPN,
        solo_head: SoloHead,
        mask_head: MaskHead | SeparateMaskHead,
        *,
        heads: dict[str, nn.Module] | None = None,
        grid: GridSpec,
    ) -> None:
        super().__init__()
        if solo_head.grid_sizes != tuple(grid.sizes):
            raise ValueError(
                f"the head's grid sizes {solo_head.grid_sizes} differ from the grid's {grid.sizes}"
            )
        if solo_head.kernel_channels != mask_head.out_channels:
            raise ValueError(
                f"kernels have {solo_head.kernel_channels} channels and mask features "
                f"{mask_head.out_channels}; a dynamic 1 x 1 kernel needs as many as the features"
            )
        self.backbone = backbone
        self.neck = neck
        self.solo_head = solo_head
        self.mask_head = mask_head
        self.heads = nn.ModuleDict(heads or {})
        self.grid = grid
        self.categories = None
        self.config = None
        # Constants of the backbone, not weights: they stay out of checkpoints.
        for name in ("mean", "std"):
            values = torch.tensor(getattr(backbone, name)).view(1, 3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> Outputs:
        """Predict raw outputs for a batch.

        Args:
            images: [B, 3, H, W] RGB, uint8, or floating point in 0..255; H and W multiples of 32.
            image_sizes: [B, 2] integer, (H, W) of the valid top-left part of each image. What lies
                beyond is zero after normalisation, as the reference pads, whatever it holds. None =
                all of it is valid.

        Returns:
            Raw outputs; `extras` has one entry per head of the task, and those of
            `LEVEL_FEATURES` where levels have mask features of their own.

        Raises:
            ValueError: If a rank, size or dtype is wrong.
        """
        _check_inputs(images, image_sizes)
        pyramid = self.neck(self.backbone(self.normalize(images, image_sizes)))
        category_logits, kernels = self.solo_head(pyramid)
        features, trunk = self.mask_head(pyramid)
        extras = {name: head(pyramid, trunk) for name, head in self.heads.items()}
        levels = (features,) if isinstance(features, Tensor) else features
        if self.solo_head.static_kernels is not None:  # their biases want a channel of ones
            levels = tuple(F.pad(level, (0, 0, 0, 0, 0, 1), value=1.0) for level in levels)
        extras.update(zip(LEVEL_FEATURES, levels[1:], strict=False))
        return Outputs(category_logits, kernels, levels[0], extras)

    def normalize(self, images: Tensor, image_sizes: Tensor | None = None) -> Tensor:
        """Return the backbone's input: normalised, zero outside `image_sizes`; see `forward`."""
        normalised = (images.to(self.mean.dtype) - self.mean) / self.std
        if image_sizes is None:
            return normalised
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < image_sizes[:, :1]
        columns = torch.arange(width, device=images.device) < image_sizes[:, 1:]
        valid = rows[:, None, :, None] & columns[:, None, None, :]
        return torch.where(valid, normalised, 0.0)


def _check_inputs(images: Tensor, image_sizes: Tensor | None) -> None:
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got shape {shape}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8, or floating point in 0..255, got {images.dtype}")
    if shape[2] % SIZE_DIVISOR or shape[3] % SIZE_DIVISOR or not shape[2] or not shape[3]:
        raise ValueError(
            f"image height and width must be multiples of {SIZE_DIVISOR}, got shape {shape}; pad "
            "at the bottom and right and give image_sizes (unisolo.data.collate does)"
        )
    if image_sizes is None:
        return
    if tuple(image_sizes.shape) != (shape[0], 2):
        raise ValueError(
            f"image_sizes must be [{shape[0]}, 2], (H, W) per image, got {tuple(image_sizes.shape)}"
        )
    if image_sizes.is_floating_point() or image_sizes.dtype == torch.bool:
        raise ValueError(f"image_sizes must be integers, got {image_sizes.dtype}")
