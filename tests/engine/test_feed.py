"""The feed's batches bring what their cells are trained on: the loss's own answer."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_config
from torch.utils.data import dataloader

from unisolo.build import build_dataset, build_grid, with_grid
from unisolo.data.shapes import generate_shapes
from unisolo.engine.distributed import World
from unisolo.engine.feed import BatchFeed
from unisolo.losses.targets import cell_targets
from unisolo.structures import Batch


@pytest.mark.parametrize("one_object_per_cell", [True, False])
def test_batches_bring_the_targets_of_the_cells(one_object_per_cell: bool, tmp_path: Path) -> None:
    # Six images: the fifth holds no object, the third a crowd.
    generate_shapes(tmp_path / "data", num_train=6, num_val=1, image_size=(64, 96), seed=1)
    config = tiny_config(
        f"data.root={tmp_path / 'data'}",
        "train.batch_size=6",
        "train.accumulate=2",
        "train.max_positives=7",
        f"train.one_object_per_cell={one_object_per_cell}",
    )
    grid = build_grid(config)
    config = with_grid(config, grid)
    said: list[str] = []
    world = World(0, 1, torch.device("cpu"))
    feed = BatchFeed(build_dataset(config, split="train"), config, world, said.append)
    batches = feed.take(0)
    feed.prepare(1)  # nothing to do without a GPU
    assert [len(batch) for batch in batches] == [3, 3] and feed.waited() > 0 == feed.waited()
    crowded = paired = 0
    for batch in batches:
        height, width = batch.images.shape[-2:]
        for target in batch.targets:
            wanted = cell_targets(
                target,
                grid,
                (height, width),
                one_object_per_cell=one_object_per_cell,
                max_positives=7,
            )
            assert target.cells is not None
            for found, expected in zip(target.cells, wanted, strict=True):
                assert torch.equal(found, expected)
            paired += len(wanted.cells)
            crowded += len(wanted.crowd)
    assert paired > 0 and crowded > 0
    (whole,) = {len(target.cells.labels) for batch in batches for target in batch.targets}
    assert whole == grid.num_cells


def feed_for(tmp_path: Path, *settings: str) -> BatchFeed:
    generate_shapes(tmp_path / "data", num_train=6, num_val=1, image_size=(64, 96), seed=1)
    config = tiny_config(f"data.root={tmp_path / 'data'}", *settings)
    config = with_grid(config, build_grid(config))
    dataset = build_dataset(config, split="train")
    return BatchFeed(dataset, config, World(0, 1, torch.device("cpu")), print)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_one_piece_of_memory(workers: int, tmp_path: Path) -> None:
    # A file descriptor and a copy per batch, not per tensor.
    (batch,) = feed_for(tmp_path, "train.batch_size=6", f"data.workers={workers}").take(0)
    pieces = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(batch)}
    assert len(batch.targets) == 6 and len(pieces) == 1


def test_a_dead_thread_of_the_loader_means_a_killed_process(tmp_path: Path) -> None:
    # Only with a GPU is there one; a process that dies while it hands over a batch ends it.
    message = "Pin memory thread exited unexpectedly"
    assert message in inspect.getsource(dataloader)
    feed = feed_for(tmp_path, "data.workers=1")
    assert feed._means_killed(RuntimeError(message))
    assert not feed._means_killed(RuntimeError("Caught ImageError in pin memory thread"))
    assert not feed_for(tmp_path, "data.workers=0")._means_killed(RuntimeError(message))


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    found = [batch.images, batch.image_sizes]

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    for target in batch.targets:
        target.each(note)
    return found
