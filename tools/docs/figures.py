"""Draw the figures of docs/concepts.md from the tensors of a real model.

python tools/docs/figures.py --checkpoint runs/quickstart/model.safetensors \
    --image runs/quickstart/data/val2017/000000001135.jpg

Every number in a figure is what the model gave for that image; the same checkpoint and image give
the same files.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import drawings

from unisolo import Predictor, Result
from unisolo.files import write_bytes
from unisolo.ops.masks import mask_intersections
from unisolo.ops.matrix_nms import matrix_nms
from unisolo.ops.select import (
    Candidates,
    candidate_masks,
    category_probs,
    nms_inputs,
    top_candidates,
)
from unisolo.structures import GridSpec, Outputs

MAX_BYTES = 150_000
"""Largest file of a figure: pages stay light."""


@dataclass(frozen=True)
class Steps:
    """All that happens to one image between the network and the result.

    Attributes:
        image: The padded input, RGB.
        valid: (H, W) of the part of it that is no padding.
        outputs: Raw outputs, batch of one.
        grid: The model's grid.
        names: Name of each category by label, things first.
        probs: [L, C] category probabilities after points NMS.
        threshold: The probability above which a pair is a candidate.
        entered: Candidates in the order of Matrix NMS, scores weighted by maskness.
        masks: [N, h, w] bool, theirs.
        iou: [N, N] intersection over union of the masks.
        decayed: [N] scores after Matrix NMS.
        result: The panoptic result.
    """

    image: Image.Image
    valid: tuple[int, int]
    outputs: Outputs
    grid: GridSpec
    names: list[str]
    probs: Tensor
    threshold: float
    entered: Candidates
    masks: Tensor
    iou: Tensor
    decayed: Tensor
    result: Result


@torch.inference_mode()
def steps_of(predictor: Predictor, path: Path) -> Steps:
    """Take one image through the stages of `select_instances`, one call per stage."""
    sample = predictor.preprocess(path)
    outputs = predictor.forward([sample])
    model, settings = predictor.model, predictor.config.inference
    if not isinstance(outputs, Outputs):
        raise ValueError(f"{model.path}: figures need a checkpoint, not an exported graph")  # type: ignore[union-attr]
    grid = model.grid  # type: ignore[union-attr]
    probs = category_probs(outputs.category_logits, grid)[0]
    candidates = top_candidates(
        probs,
        score_threshold=settings.score_threshold,
        max_candidates=int((probs > settings.score_threshold).sum()),
    )
    made = candidate_masks(
        outputs.kernels[0, candidates.cells],
        outputs.mask_features[0],
        mask_threshold=settings.mask_threshold,
    )
    strides = torch.cat(
        [
            torch.full((size * size,), stride)
            for size, stride in zip(grid.sizes, grid.strides, strict=True)
        ]
    )
    entered, masks = nms_inputs(
        candidates, made, min_areas=strides[candidates.cells], pre_nms=settings.pre_nms
    )
    real = entered.scores > 0
    entered, masks = Candidates(*(field[real] for field in entered)), masks[real]
    shared = mask_intersections(masks.flatten(1))
    areas = shared.diagonal()
    decayed = matrix_nms(
        masks,
        entered.labels,
        entered.scores,
        kernel=settings.nms_kernel,
        sigma=settings.nms_sigma,
    )
    (result,) = predictor.postprocess(outputs, [sample.meta], score_threshold=0.05)
    padded = tuple(4 * side for side in outputs.mask_features.shape[-2:])
    canvas = Image.new("RGB", (padded[1], padded[0]))
    canvas.paste(Image.fromarray(sample.image.permute(1, 2, 0).numpy()))
    return Steps(
        image=canvas,
        valid=sample.meta.input_size,
        outputs=outputs,
        grid=grid,
        names=[category.name for category in predictor.categories],
        probs=probs,
        threshold=settings.score_threshold,
        entered=entered,
        masks=masks,
        iou=shared / (areas[:, None] + areas[None] - shared).clamp_min(1),
        decayed=decayed,
        result=result,
    )


def write_figure(figure: drawings.Figure, path: Path) -> int:
    """Write a figure as PNG with a palette of 256 colours; returns its bytes.

    Raises:
        ValueError: If it came out larger than `MAX_BYTES`.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120, bbox_inches="tight", pad_inches=0.12)
    picture = Image.open(drawn).convert("RGB")
    packed = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(packed, format="PNG", optimize=True)
    content = packed.getvalue()
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: {len(content)} bytes; a figure may have {MAX_BYTES}")
    write_bytes(path, content)
    return len(content)


def main(
    checkpoint: Annotated[Path, typer.Option(help="A panoptic checkpoint.")],
    image: Annotated[Path, typer.Option(help="An image of the embedded data set.")],
    out: Annotated[Path, typer.Option(help="Folder of the figures.")] = Path("docs/images"),
) -> None:
    """Draw every figure of the documentation."""
    steps = steps_of(Predictor(checkpoint, task="panoptic", device="cpu"), image)
    for name, draw in drawings.FIGURES.items():
        path = out / f"{name}.png"
        typer.echo(f"{path}: {write_figure(draw(steps), path)} bytes")


if __name__ == "__main__":
    typer.run(main)
