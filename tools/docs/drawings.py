"""The figures themselves: each function draws one from the steps of one image.

Figures have a light ground of their own, so that one file reads well on light and dark pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unisolo.ops.panoptic import segment_stuff

if TYPE_CHECKING:
    from figures import Steps

__all__ = ["FIGURES"]

GROUND, INK, PALE = "#f7f7f9", "#22262e", "#9aa0ab"
ACCENT, SECOND = "#d9480f", "#1f5fbf"
TOP = 12
"""Candidates shown in the Matrix NMS figures: the best before decay."""

matplotlib.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": PALE,
        "xtick.color": INK,
        "ytick.color": INK,
        "figure.facecolor": GROUND,
        "axes.facecolor": GROUND,
        "savefig.facecolor": GROUND,
    }
)


def draw_grid(steps: Steps) -> Figure:
    """The five grids over the image: every cell's best probability, candidates outlined."""
    figure = _figure(2.55)
    axes = figure.subplots(1, len(steps.grid.sizes))
    best = steps.probs.amax(-1)
    sizes, offsets = steps.grid.sizes, steps.grid.offsets
    for level, (axis, size, start) in enumerate(zip(axes, sizes, offsets, strict=True)):
        cells = best[start : start + size * size].reshape(size, size).numpy()
        _picture(axis, steps, pale=True)
        height, width = steps.image.height, steps.image.width
        frame = (0, width, height, 0)
        shown = np.ma.masked_less(cells, 0.02)
        axis.imshow(shown, extent=frame, cmap="inferno_r", vmin=0, vmax=1, alpha=0.8)
        for line in range(size + 1):
            axis.axhline(line * height / size, color="white", linewidth=0.25)
            axis.axvline(line * width / size, color="white", linewidth=0.25)
        fired = np.argwhere(cells > steps.threshold)
        for row, column in fired:
            corner = (column * width / size, row * height / size)
            axis.add_patch(_frame(corner, width / size, height / size))
        low, high = steps.grid.scale_ranges[level]
        reach = f"{low:.0f} to {high:.0f} px" if high < 10_000 else f"from {low:.0f} px"
        axis.set_title(
            f"level {level} (P{level + 2}): {size} x {size}\n{reach}\n{len(fired)} cells fire"
        )
    return figure


def draw_kernels(steps: Steps) -> Figure:
    """One cell, its kernel, and what the kernel makes of the mask features; for two cells."""
    first, second = _two_of_one_category(steps)
    figure = _figure(4.15)
    axes = figure.subplots(2, 5, gridspec_kw={"width_ratios": [1, 1.1, 1, 1, 1]})
    titles = ("one cell fires", "its kernel (48 values)", "mask logits", "probability", "mask")
    features = steps.outputs.mask_features[0]
    for row, place in enumerate((first, second)):
        cell = int(steps.entered.cells[place])
        label = steps.names[int(steps.entered.labels[place])]
        kernel = steps.outputs.kernels[0, cell]
        logits = torch.einsum("e,ehw->hw", kernel, features)
        where, bars, plain, soft, mask = axes[row]
        _picture(where, steps)
        where.add_patch(_cell_patch(steps, cell))
        where.set_xlabel(f"{label}, score {steps.decayed[place]:.2f}")
        bars.bar(range(len(kernel)), kernel.numpy(), color=SECOND, width=1.0)
        bars.axhline(0, color=INK, linewidth=0.5)
        bars.set_xticks([])
        bars.tick_params(labelsize=7)
        bars.spines[["top", "right", "bottom"]].set_visible(False)
        reach = float(logits.abs().max())
        _map(plain, logits, steps, cmap="RdBu_r", vmin=-reach, vmax=reach)
        plain.set_xlabel(f"{logits.min():.0f} to {logits.max():.0f}")
        _map(soft, logits.sigmoid(), steps, cmap="viridis", vmin=0, vmax=1)
        _picture(mask, steps, pale=True)
        _overlay(mask, steps.masks[place], steps, ACCENT)
        inside = steps.masks[place]
        maskness = float(logits.sigmoid()[inside].mean())
        mask.set_xlabel(f"{int(inside.sum())} pixels, maskness {maskness:.2f}")
        if row == 0:
            for axis, title in zip(axes[0], titles, strict=True):
                axis.set_title(title.replace("48", str(len(kernel))))
    return figure


def draw_features(steps: Steps) -> Figure:
    """Mask features: three principal components as red, green, blue, and single channels."""
    figure = _figure(2.25)
    axes = figure.subplots(1, 5)
    features = steps.outputs.mask_features[0]
    channels, height, width = features.shape
    flat = features.flatten(1).T.double()
    flat = flat - flat.mean(0)
    _, strength, directions = torch.linalg.svd(flat, full_matrices=False)
    # The sign of a direction is arbitrary: the largest weight is made positive.
    largest = directions[:3].abs().argmax(1)
    directions = directions[:3] * directions[:3].gather(1, largest[:, None]).sign()
    colours = (flat @ directions.T).reshape(height, width, 3)
    low, high = (torch.quantile(colours.flatten(0, 1), q, dim=0) for q in (0.01, 0.99))
    colours = ((colours - low) / (high - low)).clamp(0, 1)
    share = float((strength[:3] ** 2).sum() / (strength**2).sum())
    _picture(axes[0], steps)
    axes[0].set_title("input")
    axes[1].imshow(colours.numpy(), extent=_extent(steps), interpolation="nearest")
    axes[1].set_title(f"3 components\n({share:.0%} of the variance)")
    spread = features.flatten(1).std(1).argsort(descending=True, stable=True)
    for axis, channel in zip(axes[2:], spread[:3].tolist(), strict=True):
        _map(axis, features[channel], steps, cmap="magma")
        axis.set_title(f"channel {channel} of {channels}")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


def draw_nms(steps: Steps) -> Figure:
    """Overlaps of the best candidates, the two decay curves, and scores before and after."""
    figure = _figure(3.6)
    overlap, curves, bars = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.15, 0.8, 1.2]})
    count = min(TOP, len(steps.entered.scores))
    names = [
        f"{number + 1} {steps.names[label]}"
        for number, label in enumerate(steps.entered.labels[:count].tolist())
    ]
    labels = steps.entered.labels[:count]
    same = labels[:, None] == labels
    iou = steps.iou[:count, :count]
    above = torch.ones_like(iou).triu(1).bool()
    shown = np.ma.masked_where(~(above & same).numpy(), iou.numpy())
    overlap.imshow(shown, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere((above & same).numpy()):
        value = float(iou[row, column])
        text = f"{value:.2f}" if value >= 0.005 else "0"
        colour = "white" if value > 0.5 else INK
        overlap.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    overlap.set_xticks(range(count), names, rotation=60, ha="right", fontsize=7)
    overlap.set_yticks(range(count), names, fontsize=7)
    overlap.set_title("IoU with better masks of the category")

    axis = np.linspace(0, 1, 200)
    for sigma, style in ((0.5, ":"), (2.0, "-"), (4.0, "--")):
        curve = np.exp(-sigma * axis**2)
        curves.plot(axis, curve, style, color=SECOND, label=f"gaussian, sigma = {sigma:g}")
    curves.plot(axis, 1 - axis, color=ACCENT, label="linear")
    curves.set_xlabel("IoU")
    curves.set_ylabel("f(IoU)")
    curves.set_title("decay f")
    curves.set_ylim(0, 1.4)
    curves.set_yticks([0, 0.5, 1])
    curves.legend(fontsize=7, frameon=False, loc="upper right")
    curves.spines[["top", "right"]].set_visible(False)

    places = np.arange(count)
    bars.barh(places - 0.2, steps.entered.scores[:count].numpy(), 0.38, color=PALE, label="before")
    bars.barh(places + 0.2, steps.decayed[:count].numpy(), 0.38, color=ACCENT, label="after")
    bars.set_yticks(places, names, fontsize=7)
    bars.invert_yaxis()
    bars.set_xlabel("score")
    bars.set_title("scores before and after")
    bars.legend(fontsize=7, frameon=False, loc="lower right")
    bars.spines[["top", "right"]].set_visible(False)
    return figure


def draw_merge(steps: Steps) -> Figure:
    """The panoptic merge: instances, who owns each pixel, stuff, and the map."""
    figure = _figure(2.35)
    axes = figure.subplots(1, 5)
    result = steps.result
    masks, ids = result.masks, result.panoptic_seg
    if masks is None or ids is None or result.segments_info is None:
        raise ValueError("the merge is drawn of a panoptic model: give another checkpoint")
    colours = [category.color for category in result.categories]
    things = result.categories.num_things
    axes[0].set_title(f"{len(result)} instances\nby score")
    axes[0].imshow(_soft_union(masks.numpy(), [colours[label] for label in result.labels.tolist()]))
    in_map = [segment for segment in result.segments_info if segment.isthing]
    axes[1].set_title(f"{len(in_map)} own pixels\n(better ones first)")
    axes[1].imshow(_painted(ids.numpy(), [(s.id, colours[s.label]) for s in in_map]))
    logits = steps.outputs.extras["stuff_logits"][0]
    size = (steps.image.height, steps.image.width)
    stuff = segment_stuff(
        logits, padded_size=size, input_size=steps.valid, orig_size=result.image_size
    ).numpy()
    pairs = list(enumerate(colours[things:]))
    axes[2].set_title("likeliest stuff\n(dark: any thing)")
    axes[2].imshow(_painted(stuff + 1, [(index + 1, colour) for index, colour in pairs]))
    free = np.where(np.isin(ids.numpy(), [s.id for s in in_map]), 0, stuff + 1)
    axes[3].set_title("stuff where\npixels are free")
    axes[3].imshow(_painted(free, [(index + 1, colour) for index, colour in pairs]))
    axes[4].set_title(f"panoptic map:\n{len(result.segments_info)} segments")
    every = [(segment.id, colours[segment.label]) for segment in result.segments_info]
    axes[4].imshow(_painted(ids.numpy(), every))
    void = float((ids == 0).float().mean())
    axes[4].set_xlabel(f"{void:.1%} void")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure


FIGURES: dict[str, Callable[[Steps], Figure]] = {
    "grid": draw_grid,
    "kernels": draw_kernels,
    "mask-features": draw_features,
    "matrix-nms": draw_nms,
    "panoptic-merge": draw_merge,
}


def _figure(height: float) -> Figure:
    return Figure(figsize=(9.6, height), layout="constrained")


def _extent(steps: Steps) -> tuple[int, int, int, int]:
    return (0, steps.image.width, steps.image.height, 0)


def _picture(axis: Any, steps: Steps, *, pale: bool = False) -> None:
    """The padded input; pale = a ground for maps."""
    pixels = np.asarray(steps.image, dtype=np.float32) / 255
    if pale:
        pixels = 0.35 * pixels.mean(2, keepdims=True).repeat(3, 2) + 0.6
    axis.imshow(pixels, extent=_extent(steps))
    axis.set_xticks([])
    axis.set_yticks([])


def _map(axis: Any, values: torch.Tensor, steps: Steps, **style: Any) -> None:
    axis.imshow(values.numpy(), extent=_extent(steps), interpolation="nearest", **style)
    axis.set_xticks([])
    axis.set_yticks([])


def _overlay(axis: Any, mask: torch.Tensor, steps: Steps, colour: str) -> None:
    layer = np.zeros((*mask.shape, 4))
    layer[mask.numpy()] = matplotlib.colors.to_rgba(colour, 0.8)
    axis.imshow(layer, extent=_extent(steps), interpolation="nearest")


def _frame(corner: tuple[float, float], width: float, height: float) -> Any:
    return matplotlib.patches.Rectangle(
        corner, width, height, fill=False, edgecolor=SECOND, linewidth=1.2
    )


def _cell_patch(steps: Steps, cell: int) -> Any:
    """The rectangle of a cell in the padded input."""
    level = max(n for n, start in enumerate(steps.grid.offsets) if start <= cell)
    size = steps.grid.sizes[level]
    row, column = divmod(cell - steps.grid.offsets[level], size)
    width, height = steps.image.width / size, steps.image.height / size
    patch = _frame((column * width, row * height), width, height)
    patch.set(edgecolor="white", linewidth=2.0)
    return patch


def _two_of_one_category(steps: Steps) -> tuple[int, int]:
    """Places of two instances of one category, both sure and apart from each other.

    Raises:
        ValueError: If no two instances are of one category.
    """
    best = steps.decayed.argsort(descending=True, stable=True)[:40]
    worth = steps.decayed[best, None] * steps.decayed[best] * (1 - steps.iou[best][:, best])
    alike = (steps.entered.labels[best, None] == steps.entered.labels[best]).triu(1)
    if not alike.any():
        raise ValueError("the image shows no two instances of one category: give another one")
    first, second = divmod(int(torch.where(alike, worth, -1).argmax()), len(best))
    return int(best[first]), int(best[second])


def _painted(ids: NDArray[Any], colours: Sequence[tuple[int, Any]]) -> NDArray[Any]:
    """Ids as colours; what has no colour stays dark. Neighbours are parted by a thin line."""
    ids = np.where(np.isin(ids, [number for number, _ in colours]), ids, 0)
    picture = np.full((*ids.shape, 3), 40, dtype=np.uint8)
    for number, colour in colours:
        picture[ids == number] = colour
    edge = np.zeros(ids.shape, dtype=bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    picture[edge] = 255
    return picture


def _soft_union(masks: NDArray[Any], colours: Sequence[Any]) -> NDArray[Any]:
    """Masks over one another, worst first, half transparent: overlaps stay visible."""
    picture = np.full((*masks.shape[1:], 3), 40.0)
    for mask, colour in list(zip(masks, colours, strict=True))[::-1]:
        picture[mask] = 0.4 * picture[mask] + 0.6 * np.asarray(colour, dtype=float)
    return picture.astype(np.uint8)
