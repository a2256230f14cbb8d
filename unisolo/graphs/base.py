"""A graph in the place of a model: the same call, instances instead of raw outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from unisolo.checkpoint import CheckpointError
from unisolo.config import InferenceConfig
from unisolo.graphs.facts import KEY, GraphFacts
from unisolo.structures import MASK_STRIDE, SIZE_DIVISOR, Instances

__all__ = ["Arrays", "Graph", "GraphError", "Selected", "fit_images", "read_facts"]

Arrays = dict[str, NDArray[np.generic]]


class GraphError(CheckpointError):
    """A graph that cannot be used, or not for this; the message names the file and the fix."""


class Selected(NamedTuple):
    """What is left to finish at the size of the original images.

    Attributes:
        instances: From `select_instances`, here or inside a graph.
        extras: Outputs of the task's own heads, as in `Outputs`.
    """

    instances: Instances
    extras: dict[str, Tensor]

    @property
    def padded_size(self) -> tuple[int, int]:
        """(H, W) of the model's input with padding."""
        height, width = self.instances.mask_probs.shape[-2:]
        return height * MASK_STRIDE, width * MASK_STRIDE


def fit_images(images: Tensor, facts: GraphFacts, path: Path) -> Tensor:
    """Pad images at the bottom and right to the size of a graph's input, where it is fixed.

    Args:
        images: [B, 3, H, W].
        facts: Of the graph.
        path: Of its file, for the message.

    Raises:
        GraphError: If they are larger.
    """
    if facts.image_size is None:
        return images
    height, width = facts.image_size
    bottom, right = height - images.shape[2], width - images.shape[3]
    if bottom < 0 or right < 0:
        raise GraphError(
            f"{path}: made for inputs of {height} x {width}, got {images.shape[2]} x "
            f"{images.shape[3]}; set data.image_size and data.max_size at the export so that "
            "images fit, or export without --fixed"
        )
    return F.pad(images, (0, right, 0, bottom))


def read_facts(path: Path, text: str | None) -> GraphFacts:
    """Return the facts of a file.

    Raises:
        GraphError: If it has none or they are damaged.
    """
    if not text:
        raise GraphError(
            f"{path}: not exported by unisolo (it lacks the metadata entry '{KEY}'); make one "
            "with `unisolo export`"
        )
    try:
        return GraphFacts.from_json(text)
    except ValueError as error:
        raise GraphError(f"{path}: {error}") from None


class Graph(ABC):
    """An exported graph, opened by its runtime.

    Args:
        path: Of its file, for messages.
        facts: What the file says about itself.

    Attributes:
        path: See above.
        facts: See above.
        config: The configuration, with the thresholds that are constants of the graph.
        categories: The categories.
        device: Where the results are: the CPU.
    """

    def __init__(self, path: Path, facts: GraphFacts) -> None:
        self.path = path
        self.facts = facts
        self.config = facts.config
        self.categories = facts.categories
        self.device = torch.device("cpu")

    @abstractmethod
    def _run(self, inputs: Arrays) -> list[NDArray[np.generic]]:
        """Run once; the outputs in the order of `facts.outputs`."""

    def run(self, images: Tensor, image_sizes: Tensor) -> dict[str, Tensor]:
        """Run the graph.

        Where its size or batch is fixed, images are padded at the bottom and right, and the batch
        is run in parts.

        Args:
            images: [B, 3, H, W] uint8 RGB; H and W multiples of 32.
            image_sizes: [B, 2] int64, (H, W) of the valid part of each.

        Returns:
            The outputs by name; see `unisolo.export.ExportGraph`.

        Raises:
            GraphError: If there are no images, their sides are no multiples of 32, they are larger
                than the graph's fixed size, or the runtime fails.
        """
        if images.shape[0] == 0 or any(side % SIZE_DIVISOR for side in images.shape[2:]):
            # A runtime would give numbers for other sides too, and wrong ones.
            raise GraphError(
                f"{self.path}: needs at least one image, with sides that are multiples of "
                f"{SIZE_DIVISOR}, got {list(images.shape)}; pad at the bottom and right with 0"
            )
        images = fit_images(images, self.facts, self.path)
        step = self.facts.batch or images.shape[0]
        parts = []
        for start in range(0, images.shape[0], step):
            part, sizes = images[start : start + step], image_sizes[start : start + step]
            count = part.shape[0]
            missing = step - count
            if missing:  # repeats: any image will do
                part = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
                sizes = torch.cat([sizes, sizes[-1:].expand(missing, -1)])
            parts.append([output[:count] for output in self._checked_run(part, sizes)])
        joined = [torch.cat(outputs) for outputs in zip(*parts, strict=True)]
        return dict(zip(self.facts.outputs, joined, strict=True))

    def __call__(self, images: Tensor, image_sizes: Tensor) -> Selected:
        """Run the graph as a model.

        Raises:
            GraphError: As `run`, or if the graph's masks are final in the frame of its input.
        """
        self.check_unfinished()
        named = self.run(images.cpu(), image_sizes.cpu())
        valid = torch.arange(named["scores"].shape[1]) < named["count"].unsqueeze(1)
        instances = Instances(**{name: named[name] for name in _INSTANCE_FIELDS}, valid=valid)
        extras = {name: named[name] for name in ("stuff_logits",) if name in named}
        return Selected(instances, extras)

    def check_unfinished(self) -> None:
        """Raise a GraphError unless masks come soft at stride 4, for results at any size."""
        if self.facts.size != "stride4":
            raise GraphError(
                f"{self.path}: exported with masks of its input's frame, which cannot be brought "
                "to the original image exactly; for Predictor and evaluate export with "
                "--size stride4 (the default), or call `run` of unisolo.graphs.open_graph"
            )

    def check_settings(self, settings: InferenceConfig) -> None:
        """Raise a GraphError if a threshold differs from the one that was exported."""
        ours = self.facts.config.inference.select_arguments()
        theirs = settings.select_arguments()
        changed = [name for name, value in theirs.items() if value != ours[name]]
        if changed:
            name = changed[0]
            shown = "candidate_threshold" if name == "score_threshold" else name
            raise GraphError(
                f"{self.path}: {shown} is a constant of the graph ({ours[name]}); export again "
                f"with inference.{name}={theirs[name]}"
            )

    def _checked_run(self, images: Tensor, image_sizes: Tensor) -> list[Tensor]:
        pixels: NDArray[np.generic] = np.ascontiguousarray(images.numpy())
        if self.facts.image_dtype == "float32":
            pixels = pixels.astype(np.float32)
        inputs: Arrays = {
            "images": pixels,
            "image_sizes": np.ascontiguousarray(image_sizes.numpy(), dtype=np.int64),
        }
        try:
            outputs = self._run(inputs)
        # Each runtime raises types of its own.
        except Exception as error:
            raise GraphError(
                f"{self.path}: the runtime failed on inputs {list(images.shape)}: {error}"
            ) from error
        return [torch.from_numpy(np.array(output)) for output in outputs]


_INSTANCE_FIELDS = (
    "scores",
    "labels",
    "cells",
    "mask_probs",
    "stage_counts",
    "top_probs",
    "top_labels",
)
