"""What happens when a loss or a gradient is NaN or infinite, and how to look into it afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unisolo.build import build_model
from unisolo.categories import Categories
from unisolo.checkpoint import CheckpointError
from unisolo.config import Config, config_to_dict, load_config
from unisolo.devices import autocast_for, resolve_device, resolve_precision
from unisolo.files import write_atomically
from unisolo.models import UniSolo
from unisolo.structures import Batch, ImageMeta, Target
from unisolo.tasks import get_task

__all__ = ["dump_step", "replay"]

FORMAT = "unisolo-nonfinite-step"


def dump_step(
    path: Path,
    *,
    step: int,
    batches: list[Batch],
    losses: dict[str, float],
    model: UniSolo,
    config: Config,
    categories: Categories,
) -> None:
    """Write all that is needed to repeat one process's part of a step.

    Args:
        path: The file, read again by `replay`.
        step: Number of the step, from 1.
        batches: Its batches, as they came from the loader.
        losses: What was computed.
        model: The model with the weights the step was taken with.
        config: The run's configuration.
        categories: The data set's categories.

    Raises:
        OSError: If the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "step": step,
        "losses": losses,
        "config": config_to_dict(config),
        "categories": categories.to_coco(),
        "model": model.state_dict(),
        "batches": [_packed(batch) for batch in batches],
    }
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def replay(path: Path, say: Callable[[str], None], *, device: str = "auto") -> bool:
    """Repeat a dumped step and say where the first value that is not finite comes from.

    Args:
        path: A file written by `dump_step`.
        say: Receives the findings, a line each.
        device: Where to compute; the precision is the run's.

    Returns:
        Whether the step is finite this time (on another device or version it may be).

    Raises:
        CheckpointError: If the file is missing, damaged or of another kind.
        ValueError: If the device does not exist.
    """
    content = _read(path)
    config = load_config(values=content["config"])
    categories = Categories.from_coco(content["categories"])
    place = resolve_device(device)
    dtype = resolve_precision(config.train.precision, place)
    model = build_model(config, categories, load_backbone=False)
    model.load_state_dict(content["model"])
    model.to(place).train()
    say(f"step {content['step']} on {place} in {str(dtype).removeprefix('torch.')}")
    say(f"losses of the run: {content['losses']}")
    wrong = [name for name, value in model.state_dict().items() if not _finite(value)]
    if wrong:
        say(f"weights that are not finite before the step: {', '.join(wrong[:5])}")
    task = get_task(config.task)(categories)
    losses_of = partial(task.losses, grid=model.grid)
    options = config.train.loss_options()
    finite = not wrong
    for packed in content["batches"]:
        batch = _unpacked(packed).to(place)
        with _FirstBad(model) as first, autocast_for(dtype, place):
            outputs = model(batch.images, batch.image_sizes)
            for name in first.names[:1]:
                say(f"first module with an output that is not finite: {name}")
            for index, meta in enumerate(batch.metas):
                alone = outputs._replace(
                    category_logits=outputs.category_logits[index : index + 1],
                    kernels=outputs.kernels[index : index + 1],
                    mask_features=outputs.mask_features[index : index + 1],
                    extras={k: v[index : index + 1] for k, v in outputs.extras.items()},
                )
                losses = losses_of(alone, batch.targets[index : index + 1], **options)
                values = {name: round(float(loss.detach()), 6) for name, loss in losses.items()}
                say(
                    f"image id {meta.image_id} ({meta.file_name}), {meta.input_size[0]} x "
                    f"{meta.input_size[1]}, {len(batch.targets[index])} objects: {values}"
                )
                finite &= all(math.isfinite(value) for value in values.values())
            losses = losses_of(outputs, batch.targets, **options)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    if bad:
        say(f"{len(bad)} gradients are not finite, the first of {bad[0]}")
    finite &= not bad
    say("everything is finite this time" if finite else "the step is not finite")
    return finite


class _FirstBad:
    """Notes, while entered, the modules whose outputs are not finite, in the order they ran."""

    def __init__(self, model: nn.Module) -> None:
        self.names: list[str] = []
        self._model = model
        self._handles: list[Any] = []

    def __enter__(self) -> _FirstBad:
        for name, module in self._model.named_modules():
            if not list(module.children()):
                self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *unused: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[Any, Any, Any], None]:
        def look(module: Any, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not _finite(output):
                self.names.append(name)

        return look


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _packed(batch: Batch) -> dict[str, Any]:
    """A batch as plain values, which `torch.load(weights_only=True)` reads.

    Copies, because `torch.save` takes no tensors of several dtypes that are parts of one block.
    """
    return {
        "images": batch.images.clone(),
        "image_sizes": batch.image_sizes.clone(),
        "metas": [
            [meta.image_id, meta.file_name, list(meta.orig_size), list(meta.input_size)]
            for meta in batch.metas
        ],
        "targets": [
            [t.labels, t.boxes, t.object_map, t.crowd_map, t.stuff_map]
            for t in (target.each(torch.clone) for target in batch.targets)
        ],
    }


def _unpacked(values: dict[str, Any]) -> Batch:
    return Batch(
        images=values["images"],
        image_sizes=values["image_sizes"],
        metas=tuple(
            ImageMeta(image_id, file_name, tuple(orig_size), tuple(input_size))
            for image_id, file_name, orig_size, input_size in values["metas"]
        ),
        targets=tuple(Target(*fields) for fields in values["targets"]),
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = content["format"] == FORMAT
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged or not a dumped step ({reason})") from None
    if not known:
        raise CheckpointError(f"{path}: not a dumped step (nonfinite_step*.pt)")
    return content
