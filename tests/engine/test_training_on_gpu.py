"""Training on a GPU: nothing waits where it should not, copies are whole, losses are the CPU's."""

from __future__ import annotations

import gc
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from assign_twin import TINY_GRID, make_target, rectangles
from tiny_model import tiny_config
from train_process import differences, lasting, newest
from train_process import run as run_process

from unisolo.build import build_dataset, build_grid, with_grid
from unisolo.config import Config
from unisolo.data.shapes import generate_shapes
from unisolo.engine.distributed import World
from unisolo.engine.feed import BatchFeed
from unisolo.engine.run import Run, prepare
from unisolo.engine.step import train_step
from unisolo.engine.train import train
from unisolo.losses.core import loss_counts, solo_losses
from unisolo.losses.targets import with_cell_targets
from unisolo.structures import Batch, Outputs
from unisolo.tasks import get_task

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZE = (64, 96)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    return generate_shapes(root, num_train=7, num_val=3, image_size=(64, 64), seed=5)


def config_for(shapes: Path, out: Path, *overrides: str) -> Config:
    settings = ("train.device=cuda", "data.workers=1", *overrides)
    config = tiny_config(f"data.root={shapes}", f"train.out={out}", *settings)
    return with_grid(config, build_grid(config))


def run_for(config: Config) -> tuple[Run, BatchFeed, list[str]]:
    world = World(0, 1, torch.device("cuda", 0))
    dataset = build_dataset(config, split="train")
    task = get_task(config.task)(dataset.categories)
    run = prepare(config, world, task, len(dataset), load_backbone=False)
    said: list[str] = []
    return run, BatchFeed(dataset, config, world, said.append), said


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_wait_for_nothing_and_are_those_of_the_processor(dtype: torch.dtype) -> None:
    boxes = [(4, 4, 60, 50), (10, 8, 30, 30), (20, 20, 24, 26)]
    crowd = torch.zeros(SIZE, dtype=torch.int16)
    crowd[40:60, 60:80] = 2
    targets = [
        make_target(rectangles(SIZE, boxes), [0, 1, 2], crowd=crowd.numpy()),
        make_target(rectangles(SIZE, []), []),
    ]
    targets = list(with_cell_targets(targets, TINY_GRID, SIZE))
    shapes = ((2, TINY_GRID.num_cells, 3), (2, TINY_GRID.num_cells, 8), (2, 8, 16, 24))
    values = [torch.randn(shape).to(dtype) for shape in shapes]
    results = []
    for device in ("cpu", "cuda", "cuda"):
        leaves = [value.to(device).requires_grad_() for value in values]
        moved = [target.to(device) for target in targets]
        # Libraries may wait while they start, in the first run.
        torch.cuda.set_sync_debug_mode("error" if len(results) == 2 else "default")
        try:
            losses = solo_losses(Outputs(*leaves, {}), moved, TINY_GRID)
            counts = loss_counts(moved, TINY_GRID, SIZE)
            torch.stack(list(losses.values())).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results.append(
            [*(loss.detach().cpu() for loss in losses.values())]
            + [leaf.grad.float().cpu() for leaf in leaves if leaf.grad is not None]
            + [count.cpu() for count in counts.values()]
        )
    rtol = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(results[2], results[0], rtol=rtol, atol=1e-5)


def check_equal(found: Batch, wanted: Batch) -> None:
    assert torch.equal(found.images.cpu(), wanted.images)
    assert torch.equal(found.image_sizes.cpu(), wanted.image_sizes)
    for ours, theirs in zip(found.targets, wanted.targets, strict=True):
        assert torch.equal(ours.object_map.cpu(), theirs.object_map)
        assert torch.equal(ours.crowd_map.cpu(), theirs.crowd_map)
        assert ours.cells is not None and theirs.cells is not None
        for value, expected in zip(ours.cells, theirs.cells, strict=True):
            assert torch.equal(value.cpu(), expected)


def test_batches_that_were_copied_ahead_are_whole(shapes: Path, tmp_path: Path) -> None:
    config = config_for(shapes, tmp_path)
    _, feed, _ = run_for(config)
    _, plain, _ = run_for(config)
    busy = torch.randn(4096, 4096, device="cuda")
    for step in range(6):
        (found,) = feed.take(step)
        assert found.images.is_cuda == (step > 0)
        (wanted,) = plain.take(step)
        # Work in flight while the next copy runs, on memory that the copy's allocator sees freed.
        busy = (busy @ busy).clamp(-1, 1)
        feed.prepare(step + 1)
        check_equal(found, wanted)
        del found
    assert feed.waited() > 0


def test_without_room_the_next_step_copies_its_batch(shapes: Path, tmp_path: Path) -> None:
    config = config_for(shapes, tmp_path)
    run, feed, _ = run_for(config)
    _, plain, _ = run_for(config)
    run.forward.train()
    train_step(run, feed.take(0))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.0)  # nothing more is given
    try:
        feed.prepare(1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    (found,) = feed.take(1)
    plain.take(0)
    check_equal(found, plain.take(1)[0])
    assert not found.images.is_cuda
    assert not train_step(run, [found]).skipped


def test_a_killed_loader_process_is_started_again(shapes: Path, tmp_path: Path) -> None:
    config = config_for(shapes, tmp_path, "data.workers=2")
    _, feed, said = run_for(config)
    _, plain, _ = run_for(config)
    for step in range(9):
        (found,) = feed.take(step)
        check_equal(found, plain.take(step)[0])
        if step % 3 == 0:  # it dies in the middle of handing a batch over, or between two
            os.kill(feed._batches._workers[step % 2].pid, signal.SIGKILL)
        feed.prepare(step + 1)
    assert said and all("a loader process was killed" in sentence for sentence in said)


def test_a_deterministic_run_gives_the_same_bits(shapes: Path, tmp_path: Path) -> None:
    # Processes of their own: torch looks for cuBLAS's setting at the first product of matrices.
    settings = ("train.device=cuda", "train.deterministic=true", "train.steps=4")
    outs = [tmp_path / name for name in ("first", "second")]
    for out in outs:
        run_process(out, shapes, *settings, "train.precision=bf16", "data.workers=1")
    assert differences(newest(outs[0]), newest(outs[1])) == []
    assert [row for row in lasting(outs[0]) if "loss" in row] == [
        row for row in lasting(outs[1]) if "loss" in row
    ]


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_a_step_waits_once(optimizer: str, shapes: Path, tmp_path: Path) -> None:
    settings = (f"train.optimizer={optimizer}", "train.precision=bf16", "train.ema_decay=0.9")
    run, feed, _ = run_for(config_for(shapes, tmp_path, *settings))
    run.forward.train()
    for step in range(4):
        batches = feed.take(step)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train_step(run, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        run.step += 1
        feed.prepare(step + 1)
        waits = [str(one.message) for one in caught if "synchroniz" in str(one.message)]
    assert len(waits) == 1, waits


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_goes_to_its_end_and_resumes(
    precision: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (f"train.precision={precision}", "train.ema_decay=0.9", "data.cache=ram")
    summary = train(config_for(shapes, tmp_path, *settings, "train.steps=4"))
    assert summary.steps == 4 and summary.checkpoint.is_file()
    assert "waited for data" in capsys.readouterr().out
    assert train(config_for(shapes, tmp_path, *settings, "train.steps=4"), resume=True).steps == 4


@pytest.mark.slow
def test_a_compiled_run_goes_to_its_end(shapes: Path, tmp_path: Path) -> None:
    settings = ("train.compile=true", "train.steps=3", "data.augment.crop=[64, 64]")
    assert train(config_for(shapes, tmp_path, *settings)).steps == 3
