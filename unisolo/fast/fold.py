"""Batch norms folded into the convolutions before them."""

from __future__ import annotations

import warnings
from collections import Counter

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unisolo.models import UniSolo
from unisolo.ops.backend import use_kernels
from unisolo.structures import Outputs

__all__ = ["PLAIN_CONVOLUTIONS", "fold_batch_norms"]

PLAIN_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
"""Types whose weight is the one that multiplies; others (weight standardisation) compute theirs."""

PROBE_SIZE = (96, 160)
"""(H, W) of the image by which pairs are found and the result is checked."""

TOLERANCE = 1e-3
"""Most that an output of the probe may change, of its largest value. Folding alone changes 1e-5 of
it in float32; a convolution whose result is also read elsewhere, far more."""


def fold_batch_norms(model: UniSolo) -> int:
    """Fold every batch norm that directly follows a convolution into it, in place.

    Scale and shift of a batch norm in evaluation mode are constants, so the convolution's weight
    and bias can hold them: the same function with one pass over the map less. Which batch norm
    follows which convolution is seen in a run on a small image, whatever the backbone's code looks
    like; a second run checks the result. Both are run on the CPU, since a GPU's TF32 would blur the
    comparison, and the model goes back to its device.

    Args:
        model: In evaluation mode. Its state dict changes: fold a copy of what will be saved.

    Returns:
        How many were folded; 0, with a warning, if the check failed. Then the model is as before.

    Raises:
        ValueError: If the model is in training mode.
    """
    if model.training:
        raise ValueError(
            "batch norms can be folded in evaluation mode only: call model.eval() first"
        )
    device = model.mean.device
    model.cpu()
    try:
        with use_kernels("torch"):
            return _fold_checked(model)
    finally:
        model.to(device)


def _fold_checked(model: UniSolo) -> int:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *PROBE_SIZE), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        before, pairs = _watch(model, image)
        kept = {conv: (conv.weight, conv.bias) for conv, _ in pairs}
        norms = {norm: name for name, norm in model.named_modules() if isinstance(norm, nn.Module)}
        for conv, norm in pairs:
            _fold(conv, norm)
            _replace(model, norms[norm], _rest_of(norm))
        change = _difference(before, model(image))
        if change <= TOLERANCE:
            return len(pairs)
        for conv, norm in pairs:
            conv.weight, conv.bias = kept[conv]
            _replace(model, norms[norm], norm)
    warnings.warn(
        f"batch norms are not folded: outputs would change by {change:.1e} of their largest value, "
        f"more than {TOLERANCE}",
        stacklevel=3,
    )
    return 0


def _watch(model: UniSolo, image: Tensor) -> tuple[Outputs, list[tuple[nn.Conv2d, nn.BatchNorm2d]]]:
    """Run once; return the outputs and the pairs that always meet one another."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # tensors are held, so that no id comes twice
    calls: Counter[nn.Module] = Counter()
    met: Counter[tuple[nn.Conv2d, nn.BatchNorm2d]] = Counter()

    def after_conv(conv: nn.Module, _: object, result: Tensor) -> None:
        if isinstance(conv, nn.Conv2d):
            calls[conv] += 1
            made[id(result)] = conv, result

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(norm, nn.BatchNorm2d):
            calls[norm] += 1
            if id(inputs[0]) in made:
                met[made[id(inputs[0])][0], norm] += 1

    hooks = []
    for module in model.modules():
        if type(module) in PLAIN_CONVOLUTIONS:
            hooks.append(module.register_forward_hook(after_conv))
        elif _can_fold(module):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        outputs: Outputs = model(image)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [
        (conv, norm) for (conv, norm), times in met.items() if times == calls[conv] == calls[norm]
    ]
    return outputs, pairs


def _can_fold(module: nn.Module) -> bool:
    known = type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
    return known and module.running_mean is not None


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("a batch norm without running statistics cannot be folded")
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )


def _rest_of(norm: nn.Module) -> nn.Module:
    """What a batch norm does besides: timm has activations in some."""
    return norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _difference(before: Outputs, after: Outputs) -> float:
    """The largest change of an output, of its largest value."""
    pairs = [*zip(before[:3], after[:3], strict=True)]
    pairs += [(before.extras[name], after.extras[name]) for name in before.extras]
    return max(
        float((old - new).abs().amax() / old.abs().amax().clamp_min(1e-6)) for old, new in pairs
    )
