"""The deployable file: weights, configuration and categories in one safetensors file.

Nothing in it is executed on loading. The training state (optimiser, schedule, random numbers) is a
separate file, see `unisolo.engine.state`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from unisolo.build import build_model
from unisolo.categories import Categories
from unisolo.config import Config, config_to_dict, load_config
from unisolo.files import write_atomically
from unisolo.models import UniSolo
from unisolo.reading import file_problem, parse_json
from unisolo.tasks import get_task

__all__ = ["CheckpointError", "check_task", "load_checkpoint", "model_facts", "save_model"]

FORMAT = "unisolo"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the fix."""


def save_model(
    model: UniSolo,
    path: str | Path,
    *,
    state_dict: dict[str, Tensor] | None = None,
    config: Config | None = None,
) -> Path:
    """Write a model's weights, configuration and categories to one file.

    The file appears whole or not at all: it is written beside its place, synced and renamed.

    Args:
        model: A model made by `build_model` or `load_checkpoint`.
        path: Where to; the suffix should be `.safetensors`.
        state_dict: Other weights of the same model, e.g. averaged ones.
        config: Another configuration of the same network, e.g. without paths.

    Returns:
        The path.

    Raises:
        CheckpointError: If the model has no configuration or categories attached.
        OSError: If the file cannot be written; what was at `path` before is untouched.
    """
    from safetensors.torch import save_file

    own, categories = model_facts(model)
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "config": json.dumps(config_to_dict(config or own)),
        "categories": json.dumps(categories.to_coco()),
        "weights_sha256": _digest(tensors),
    }
    path = Path(path)
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))
    return path


class Described(Protocol):
    """A model, or what stands in for one."""

    @property
    def config(self) -> Config | None:
        """Its configuration."""

    @property
    def categories(self) -> Categories | None:
        """Its categories."""


def model_facts(model: Described) -> tuple[Config, Categories]:
    """Return the configuration and the categories that a model carries.

    Raises:
        CheckpointError: If it carries none, having been put together by hand.
    """
    if model.config is None or model.categories is None:
        raise CheckpointError(
            "this model carries no configuration or categories; build it with unisolo.build_model"
        )
    return model.config, model.categories


def load_checkpoint(
    source: str | Path, *, task: str | None = None, device: str | torch.device = "cpu"
) -> UniSolo:
    """Load a model from a file written by `save_model`, in evaluation mode.

    Args:
        source: Path of the checkpoint.
        task: Check that the checkpoint can answer this task. Each answers instance and detection;
            panoptic needs the stuff branch, which only a panoptic checkpoint has.
        device: Where the weights go.

    Returns:
        The model, with `config` and `categories` attached.

    Raises:
        CheckpointError: If the file is missing, damaged, not a unisolo checkpoint, of a newer
            format, or cannot answer the task.
    """
    path = Path(source)
    weights, metadata = _read(path)
    config, categories = _parse(path, metadata)
    check_task(config, task)
    try:
        model = build_model(config, categories, load_backbone=False, empty_heads=True)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    _check_weights(path, weights, model.state_dict())
    # safetensors checks its header only; files of others may come without a digest.
    digest = metadata.get("weights_sha256")
    if digest is not None and digest != _digest(weights):
        raise CheckpointError(
            f"{path}: damaged (the weights do not match their checksum); copy it again, or resume "
            "the run that wrote it"
        )
    for part in (model.neck, model.solo_head, model.mask_head, model.heads):
        part.to_empty(device="cpu")
    model.load_state_dict(weights)
    return model.to(device).eval()


def check_task(config: Config, task: str | None) -> None:
    """Raise a CheckpointError if a model of this configuration cannot answer a task."""
    if task is None:
        return
    missing = get_task(task).heads - get_task(config.task).heads
    if missing:
        branches = ", ".join(name.removesuffix("_logits") for name in sorted(missing))
        raise CheckpointError(
            f"the model was made for task '{config.task}' and has no {branches} branch, which task "
            f"'{task}' needs; train (or export) with --task {task}"
        )


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_weights(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuse weights of other names, shapes or kinds than the model's, or that are not finite."""
    for title, names in (
        ("lacks", expected.keys() - found.keys()),
        ("has the unknown", found.keys() - expected.keys()),
    ):
        if names:
            raise CheckpointError(
                f"{path}: the weights do not fit its configuration: it {title} "
                f"{len(names)} tensors, e.g. {sorted(names)[0]!r}"
            )
    for name, tensor in found.items():
        wanted = expected[name]
        floating = tensor.is_floating_point()
        if tensor.shape != wanted.shape or floating != wanted.is_floating_point():
            raise CheckpointError(
                f"{path}: the weights do not fit its configuration: {name!r} is {tensor.dtype} "
                f"{list(tensor.shape)} where the model has {wanted.dtype} {list(wanted.shape)}"
            )
        if floating and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{path}: {name!r} holds values that are not finite: the file is damaged, or "
                "written by a run that diverged"
            )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import safe_open

    problem = file_problem(path, "checkpoint file")
    if problem is not None:
        raise CheckpointError(f"{path}: {problem}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    # Its own errors, and for kinds of numbers that torch has not those of look-ups.
    except Exception as error:
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({error}); copy it again, or resume the "
            "run that wrote it"
        ) from None


def _parse(path: Path, metadata: dict[str, str]) -> tuple[Config, Categories]:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a unisolo checkpoint (no configuration inside); "
            "backbone weights go to model.backbone_weights"
        )
    try:
        version = int(metadata["format_version"])
        config_values = parse_json(metadata["config"])
        category_values = parse_json(metadata["categories"])
        if not isinstance(config_values, dict) or not isinstance(category_values, list):
            raise ValueError("the configuration is no mapping or the categories are no list")
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged ({error})") from None
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version} is newer than this package reads "
            f"({FORMAT_VERSION}); upgrade unisolo"
        )
    try:
        config = load_config(values=config_values)
        get_task(config.task)  # the file's may be one that is not imported
        return config, Categories.from_coco(category_values)
    except ValueError as error:  # a ConfigError is one
        raise CheckpointError(f"{path}: {error}") from None
