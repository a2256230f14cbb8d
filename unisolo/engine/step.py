"""One optimiser step: forward, losses, backward, clip, update, average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unisolo.devices import autocast_for
from unisolo.engine.nonfinite import dump_step
from unisolo.engine.run import Run
from unisolo.structures import Batch

__all__ = ["OutOfMemory", "StepResult", "train_step"]


class OutOfMemory(MemoryError):
    """A step did not fit into memory; the message says what was big and what to lower."""


@dataclass(frozen=True)
class StepResult:
    """What a step came to.

    Attributes:
        losses: Unweighted losses and their weighted sum "loss": this process's share of the
            global batch's losses (their sum over processes is the loss of the global batch).
        grad_norm: Norm of the gradient before clipping.
        skipped: The step was not finite and was left out.
    """

    losses: dict[str, Tensor]
    grad_norm: Tensor
    skipped: bool = False


def train_step(
    run: Run, batches: Sequence[Batch], meanwhile: Callable[[], object] = lambda: None
) -> StepResult:
    """Take one optimiser step over the parts of a batch.

    Parts and processes are weighed by their content, so a batch trains the same however it is
    split (but for batch norms, which see one part at a time unless they are frozen or synced).

    Waits for the device once, to learn whether loss and gradient are finite. (In fp16 the loss
    scale waits again.)

    Args:
        run: Its weights are changed; `run.step` and the learning rate are not (see `Run.advance`).
        batches: `train.accumulate` batches, from the loader or on the device already.
        meanwhile: Called once the gradient has been asked for, while the device computes it.

    Raises:
        FloatingPointError: If the loss or the gradient is not finite and `train.on_nonfinite` is
            "raise", or it happened too often; the message names losses, images and the dump.
        OutOfMemory: If memory runs out.
    """
    settings = run.config.train
    norms = list(run.model.buffers()) if settings.on_nonfinite == "skip" else []
    before = [buffer.clone() for buffer in norms]
    run.optimizer.zero_grad(set_to_none=True)
    try:
        moved = [part.to(run.world.device, non_blocking=True) for part in batches]
        with _tensor_cores(run):
            losses = _accumulate_gradients(run, moved)
        run.scaler.unscale_(run.optimizer)
        limit = settings.clip_norm if settings.clip_norm > 0 else math.inf
        norm = nn.utils.clip_grad_norm_(run.model.parameters(), limit)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(_what_was_big(run, batches)) from error
    meanwhile()
    bad_loss, bad_norm = _not_finite(run, losses["loss"], norm)
    if bad_loss or bad_norm:
        run.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(norms, before, strict=True):
            buffer.copy_(value)
        _report_nonfinite(run, batches, losses, of_gradient=not bad_loss)
    else:
        run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.ema is not None and not (bad_loss or bad_norm):
        run.ema.update(run.model, step=run.step)
    return StepResult(losses, norm, skipped=bad_loss or bad_norm)


def _not_finite(run: Run, loss: Tensor, norm: Tensor) -> tuple[bool, bool]:
    """Whether loss and gradient are not finite, on any process: here the step waits for the device.

    One answer for all processes: one that goes on alone would wait for the others for ever.
    """
    bad = ~torch.stack((loss, norm)).isfinite()
    counts = run.world.total(list(bad.float()))
    bad_loss, bad_norm = (torch.stack(counts) > 0).tolist()
    # Infinite gradients are ordinary in fp16: the scaler leaves the step out and scales less.
    return bad_loss, bad_norm and not run.scaler.is_enabled()


@contextmanager
def _tensor_cores(run: Run) -> Iterator[None]:
    """Let products of float32 matrices use TF32 in a run whose network computes in 16 bits.

    They are those of the dynamic convolution: its inputs come from layers that round to as few
    digits as TF32 or fewer, and its gradients go back to them.
    """
    if run.world.device.type != "cuda" or run.dtype == torch.float32:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _accumulate_gradients(run: Run, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Backward through every part; return the summed losses, detached."""
    settings = run.config.train
    split = run.world.size > 1 or len(batches) > 1
    counts = _global_counts(run, batches) if split else None
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        images = batch.images
        if settings.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        last = number == len(batches) - 1
        waits = isinstance(run.forward, DistributedDataParallel) and not last
        with run.forward.no_sync() if waits else nullcontext():  # type: ignore[operator]
            with autocast_for(run.dtype, run.world.device):
                outputs = run.forward(images, batch.image_sizes)
                losses = run.task.losses(
                    outputs,
                    batch.targets,
                    run.model.grid,
                    counts=counts,
                    **settings.loss_options(),
                )
            weighted = [run.loss_weights[name] * loss for name, loss in losses.items()]
            losses["loss"] = torch.stack(weighted).sum()
            # Data-parallel training averages gradients; shares of one sum want adding.
            torch.autograd.backward(run.scaler.scale(losses["loss"] * run.world.size))
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.detach()
    return sums


def _global_counts(run: Run, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What the losses of the global batch are divided by."""
    sums: dict[str, Tensor] = {}
    for batch in batches:
        for name, count in _counts(run, batch).items():
            sums[name] = sums.get(name, 0) + count
    return dict(zip(sums, run.world.total(list(sums.values())), strict=True))


def _counts(run: Run, batch: Batch) -> dict[str, Tensor]:
    settings = run.config.train
    height, width = batch.images.shape[-2:]
    return run.task.loss_counts(
        batch.targets,
        run.model.grid,
        (height, width),
        **settings.loss_options(),
    )


def _report_nonfinite(
    run: Run, batches: Sequence[Batch], losses: dict[str, Tensor], *, of_gradient: bool
) -> None:
    """Write the batch to a file, and raise unless the step may be left out."""
    settings = run.config.train
    step = run.step + 1
    values = {name: float(loss) for name, loss in losses.items()}
    ids = [meta.image_id for batch in batches for meta in batch.metas]
    rank = f"_rank{run.world.rank}" if run.world.size > 1 else ""
    path: Path = settings.out / f"nonfinite_step{step}{rank}.pt"
    try:
        dump_step(
            path,
            step=step,
            batches=[batch.to("cpu") for batch in batches],
            losses=values,
            model=run.model,
            config=run.config,
            categories=run.task.categories,
        )
        kept = f"look into it with: tools/train.py --replay {path}"
    except OSError as error:  # a full disk must not hide the first problem
        kept = f"the batch could not be kept ({error})"
    what, although = ("the gradient", " although the losses are") if of_gradient else ("a loss", "")
    run.skipped += 1
    message = f"{what} is not finite at step {step}{although}: {values}, image ids {ids}; {kept}"
    if settings.on_nonfinite == "skip" and run.skipped <= settings.max_nonfinite:
        print(f"left out (train.on_nonfinite=skip, {run.skipped} so far): {message}", flush=True)
        return
    often = (
        f" More than train.max_nonfinite={settings.max_nonfinite} steps were left out."
        if settings.on_nonfinite == "skip"
        else ""
    )
    raise FloatingPointError(
        f"{message}.{often} Lower train.lr or train.clip_norm, train in another train.precision, "
        "or pass over such steps with train.on_nonfinite=skip. Saved states are unchanged."
    )


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _what_was_big(run: Run, batches: Sequence[Batch]) -> str:
    """What the step was made of, and the three settings that would make it smaller."""
    settings, config = run.config.train, run.config
    largest = max(batches, key=lambda batch: batch.images.numel())
    count, _, height, width = largest.images.shape
    objects = {
        meta.image_id: len(target)
        for batch in batches
        for meta, target in zip(batch.metas, batch.targets, strict=True)
    }
    crowded = max(objects, key=lambda image_id: objects[image_id])
    # On the CPU: the device may have no room left even for a sum.
    pairs = max(int(_counts(run, batch.to("cpu"))["loss_mask"]) for batch in batches)
    where = str(run.world.device)
    if run.world.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(run.world.device) / 2**30
        total = torch.cuda.get_device_properties(run.world.device).total_memory / 2**30
        where += f" ({peak:.1f} of {total:.1f} GiB used at most)"
    return (
        f"out of memory on {where} at step {run.step + 1}: {count} images padded to {height} x "
        f"{width}, {pairs} masks to train (cell-object pairs), at most {objects[crowded]} "
        f"objects in an image (id {crowded}). Change one of: train.accumulate="
        f"{2 * settings.accumulate} (the same batch in smaller parts; images per part are "
        f"{run.images_per_part} now); data.image_size={config.data.image_size} and data.max_size="
        f"{config.data.max_size}, or data.augment.crop, for smaller images; train.max_positives="
        f"{settings.max_positives}, for fewer masks. The last saved state is unchanged."
    )
