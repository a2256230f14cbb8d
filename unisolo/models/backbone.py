"""Backbones: every timm model with `features_only=True` that can work at free image sizes."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unisolo.models.deform import Deform
from unisolo.models.resnet_options import make_deformable, stride_first

__all__ = ["TimmBackbone"]

FINEST_STRIDE, COARSEST_STRIDE = 4, 32
PROBE_SIZE = (96, 160)
"""(H, W) of the trial run: no model's native size, odd multiples of 32 so that a fixed window or
position table cannot fit by luck."""
_OFFSETS = re.compile(r"conv_offset\.(weight|bias)$")
FREE_SIZE_OPTIONS: tuple[dict[str, bool], ...] = (
    {"dynamic_img_size": True},  # plain ViT: position embeddings resampled to the input
    {"strict_img_size": False},  # Swin: windows padded to the input
)


class TimmBackbone(nn.Module):
    """A timm model that returns feature maps, whatever its family's habits.

    Of the features that timm offers, those at strides 4 to 32 are used; a stride-2 stem is dropped.
    Plain vision transformers give several maps of one stride, which `FPN` resamples. Channels-last
    outputs (Swin) are turned. At construction the model is run once at a size that is not its
    native one, so what cannot work fails here and with a reason.

    Args:
        name: timm model name, with or without a weights tag, e.g. "resnet50" or "resnet50.a1_in1k".
        pretrained: Start from timm's ImageNet weights (downloaded, or from timm's cache).
        weights_file: Local weights with timm's parameter names (which are torchvision's for
            ResNets), safetensors or a torch file that loads with `weights_only=True`; used instead
            of a download. Tensors the features do not need (a classifier) are ignored.
        frozen_stages: How many parts keep their weights: 1 = the stem, 2 = also the first stage
            (a plain ViT's first block), and so on, by timm's own division. Their batch norms stay
            in evaluation mode.
        frozen_bn: Keep all batch norms in evaluation mode; scale and bias still train unless they
            are in a frozen part.
        deform: Whether the 3 x 3 convolutions of a ResNet's last three stages are deformable, and
            which version. ImageNet weights are loaded first and stay.
        stride_in_1x1: Whether a ResNet's bottlenecks shrink in their first 1 x 1 convolution.
        mean: RGB mean of the inputs, 0..255; None = timm's.
        std: RGB standard deviation of the inputs, 0..255; None = timm's.

    Attributes:
        name: The timm name.
        channels: Channels of each feature map.
        strides: Stride of each feature map, not falling.
        mean: RGB mean of the inputs, 0..255.
        std: RGB standard deviation of the inputs, 0..255.

    Raises:
        ValueError: If the name is unknown (the message lists near ones), the model offers no
            features at strides 4 to 32 or is bound to one image size, weights cannot be loaded or
            do not fit, `frozen_stages` exceeds the number of parts, or the model is no ResNet and
            one of its options is asked for.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = False,
        weights_file: Path | None = None,
        frozen_stages: int = 0,
        frozen_bn: bool = False,
        deform: Deform = "none",
        stride_in_1x1: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
    ) -> None:
        super().__init__()
        _check_name(name)
        self._fixed_norms: list[nn.Module] = []
        self.name = name
        self.net = _create(name, pretrained=pretrained and weights_file is None)
        if weights_file is not None:
            _load_weights(self.net, Path(weights_file), name)
        if stride_in_1x1:
            stride_first(self.net, name)
        if deform != "none":
            make_deformable(self.net, name, deform)
        strides = [int(stride) for stride in self.net.feature_info.reduction()]
        self._used = [
            index
            for index, stride in enumerate(strides)
            if FINEST_STRIDE <= stride <= COARSEST_STRIDE
        ]
        if not self._used:
            raise ValueError(
                f"backbone {name!r} offers features at strides {strides} only; "
                f"at least one between {FINEST_STRIDE} and {COARSEST_STRIDE} is needed"
            )
        channels = self.net.feature_info.channels()
        self.channels = tuple(int(channels[index]) for index in self._used)
        self.strides = tuple(strides[index] for index in self._used)
        self._nhwc = getattr(self.net, "output_fmt", None) == "NHWC"
        self.mean = mean or _scaled(self.net, "mean")
        self.std = std or _scaled(self.net, "std")
        self._probe()
        self._fixed_norms = self._freeze(frozen_stages, frozen_bn)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return feature maps.

        Args:
            images: [B, 3, H, W] float, normalised RGB; H and W multiples of 32.

        Returns:
            One [B, channels[i], H / strides[i], W / strides[i]] per used feature.
        """
        features = self.net(images)
        chosen = [features[index] for index in self._used]
        if self._nhwc:
            chosen = [feature.permute(0, 3, 1, 2) for feature in chosen]
        return chosen

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for norm in self._fixed_norms:
            norm.eval()
        return self

    def _probe(self) -> None:
        """Run once at a foreign size and compare what comes out with what timm announces."""
        height, width = PROBE_SIZE
        expected = [
            (1, channels, math.ceil(height / stride), math.ceil(width / stride))
            for channels, stride in zip(self.channels, self.strides, strict=True)
        ]
        training = self.net.training
        self.net.eval()
        try:
            with torch.no_grad():
                shapes = [tuple(map_.shape) for map_ in self(torch.zeros(1, 3, height, width))]
        # A model bound to one size fails with whatever its code happens to raise.
        except Exception as error:
            raise ValueError(
                f"backbone {self.name!r} cannot run at a free image size (tried {height} x "
                f"{width}): {str(error).rstrip('.')}. Its positions or windows are bound to its "
                "native size; choose a convolutional model, a Swin, or a ViT with patch size 8 "
                "or 16"
            ) from error
        finally:
            self.net.train(training)
        if shapes != expected:
            raise ValueError(
                f"backbone {self.name!r} cannot be used: its feature maps do not lie on a regular "
                f"grid over the image (at {height} x {width} their shapes are {shapes}, where "
                f"strides {self.strides} promise {expected})"
            )

    def _freeze(self, frozen_stages: int, frozen_bn: bool) -> list[nn.Module]:
        """Freeze the first parts; return the batch norms that must stay in evaluation mode."""
        if frozen_stages:
            parts = _parts(self.net, self.name)
            if not 0 <= frozen_stages <= len(parts):
                raise ValueError(
                    f"frozen_stages={frozen_stages}, but backbone {self.name!r} has {len(parts)} "
                    "parts (the stem and its stages)"
                )
            for part in parts[:frozen_stages]:
                for parameter in part:
                    parameter.requires_grad_(False)
        norms = [module for module in self.net.modules() if isinstance(module, _BatchNorm)]
        return [norm for norm in norms if frozen_bn or _is_frozen(norm)]


def _is_frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _check_name(name: str) -> None:
    architecture = name.split(".", 1)[0]
    known = timm.list_models()
    if architecture in known:
        return
    near = difflib.get_close_matches(architecture, known, n=4, cutoff=0.6)
    near = near or [other for other in known if architecture in other][:4]
    hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists all names"
    raise ValueError(f"unknown backbone {name!r}; {hint}")


def _create(name: str, *, pretrained: bool) -> Any:
    """Build the features-only model, or say why it cannot be built."""
    try:
        return _create_free_size(name, pretrained)
    # timm and its download libraries raise many types here; all mean the same to the caller.
    except Exception as error:
        if pretrained:
            raise ValueError(
                f"backbone {name!r} cannot be built with timm's weights: {error}. Give a local "
                "file (model.backbone_weights) or start from random weights "
                "(model.pretrained=false)"
            ) from error
        raise ValueError(
            f"backbone {name!r} cannot be built as a feature extractor (features_only): {error}"
        ) from error


def _create_free_size(name: str, pretrained: bool) -> Any:
    for options in FREE_SIZE_OPTIONS:
        try:
            return timm.create_model(name, features_only=True, pretrained=pretrained, **options)
        except TypeError as error:  # this family does not know the option
            if not any(option in str(error) for option in options):
                raise
    return timm.create_model(name, features_only=True, pretrained=pretrained)


def _canonical(name: str) -> str:
    """A parameter's name without what timm's feature wrappers change: a prefix, '.' to '_'."""
    return name.removeprefix("model.").removeprefix("body.").replace(".", "_")


def _load_weights(net: nn.Module, path: Path, name: str) -> None:
    """Load a local file into a features-only model, every tensor of it or an error."""
    given = {_canonical(key): tensor for key, tensor in _read_weights(path).items()}
    wanted = net.state_dict()
    found = {key: given[_canonical(key)] for key in wanted if _canonical(key) in given}
    missing = [
        key for key in wanted if key not in found and not key.endswith("num_batches_tracked")
    ]
    if missing:
        raise ValueError(
            f"{path}: not the weights of {name!r}: {len(missing)} of {len(wanted)} tensors are "
            f"missing, e.g. {', '.join(missing[:3])}; the file holds e.g. "
            f"{', '.join(list(given)[:3])} (names with '_' for '.')"
        )
    wrong = [key for key in found if found[key].shape != wanted[key].shape]
    if wrong:
        key = wrong[0]
        raise ValueError(
            f"{path}: not the weights of {name!r}: {len(wrong)} tensors differ in shape, e.g. "
            f"{key} is {tuple(found[key].shape)} and must be {tuple(wanted[key].shape)}"
        )
    net.load_state_dict(found, strict=False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path}: no such backbone weights file")
    tree: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tree = load_file(path)
        else:
            tree = torch.load(path, map_location="cpu", weights_only=True)
    # Damaged and foreign files raise many types, by format and by version of the reader.
    except Exception as error:
        raise ValueError(
            f"{path}: cannot be read as weights ({error}); expected safetensors or a torch file of "
            "plain tensors"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping):
        raise ValueError(f"{path}: holds a {type(tree).__name__}, not named tensors")
    return {
        str(key).removeprefix("module."): value
        for key, value in tree.items()
        if isinstance(value, Tensor)
    }


def _scaled(net: Any, key: str) -> tuple[float, float, float]:
    red, green, blue = net.pretrained_cfg[key]
    return 255.0 * red, 255.0 * green, 255.0 * blue


def _parts(net: nn.Module, name: str) -> list[list[nn.Parameter]]:
    """Split the parameters into the stem and the stages, in order.

    timm states the division on the whole model, not on its features-only form, so a whole one is
    made for its names (a convolutional model's stages, a plain ViT's blocks).
    """
    whole = timm.create_model(name)
    numbers = group_parameters(whole, whole.group_matcher(coarse=True), reverse=True)
    by_name = {_canonical(key): int(number) for key, number in numbers.items()}
    last = max(by_name.values())
    parts: dict[int, list[nn.Parameter]] = {}
    for key, parameter in net.named_parameters():
        owner = _OFFSETS.sub("weight", key)  # the whole model has no offsets
        parts.setdefault(by_name.get(_canonical(owner), last), []).append(parameter)
    return [parts[number] for number in sorted(parts)]
