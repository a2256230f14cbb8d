"""What this machine can do: device, precision, loader processes, batch."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from unisolo.choose.chosen import Draft
from unisolo.choose.facts import Facts
from unisolo.config import Config
from unisolo.devices import resolve_device, resolve_precision

__all__ = ["Machine", "batch_that_fits", "choose_batch", "choose_device", "find_machine"]

_MOST_WORKERS = 8
_BATCH_CPU, _BATCH_GPU = 8, 16
_ROOM = 2**30
"""Bytes set aside per image of 512 x 512 on a GPU: a cautious guess, not a measurement. A run that
does not fit says so, and what to lower."""
_FEW = 4
"""Images in one pass below which batch statistics are too noisy to train with."""


@dataclass(frozen=True)
class Machine:
    """The machine, as one process of a run sees it.

    Attributes:
        device: Where it computes.
        memory: Bytes of the GPU; 0 = not known.
        cores: Processor cores that the processes here share.
        processes: Processes of the run, over all machines.
        local_processes: Those on this machine.
    """

    device: torch.device
    memory: int
    cores: int
    processes: int
    local_processes: int

    @property
    def is_cpu(self) -> bool:
        """Whether there is no accelerator."""
        return self.device.type == "cpu"


def find_machine(config: Config) -> Machine:
    """Look at the machine and at what torchrun says of the run.

    Raises:
        ValueError: If `train.device` is not there.
    """
    device = resolve_device(config.train.device, int(os.environ.get("LOCAL_RANK", "0")))
    memory = 0
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    usable = getattr(os, "sched_getaffinity", None)  # not on every system
    return Machine(
        device=device,
        memory=memory,
        cores=(os.cpu_count() or 1) if usable is None else len(usable(0)),
        processes=int(os.environ.get("WORLD_SIZE", "1")),
        local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def choose_device(draft: Draft, machine: Machine) -> None:
    """Say where the run computes, and choose the loader processes."""
    dtype = str(resolve_precision(draft.config.train.precision, machine.device))
    name = str(machine.device)
    if machine.device.type == "cuda":
        name = f"{machine.processes} x {torch.cuda.get_device_name(machine.device)}"
    draft.note(
        "device",
        ("train.device",),
        "there is no GPU" if machine.is_cpu else "the fastest here",
        lambda config: f"{name}, {dtype.removeprefix('torch.')}",
    )
    spare = machine.cores // machine.local_processes - 1
    draft.put({"data.workers": max(0, min(spare, 1 if machine.is_cpu else _MOST_WORKERS))})
    draft.note("loader processes", ("data.workers",), f"{machine.cores} cores")


def choose_batch(draft: Draft, facts: Facts, machine: Machine) -> None:
    """Choose batch and norm; the learning rate follows the batch."""
    config = draft.config
    if machine.is_cpu:
        batch, why = _BATCH_CPU, "the recipe's"
    else:
        batch = _BATCH_GPU
        fits = batch_that_fits(machine.memory, config.data.image_size) * machine.processes
        why = "the recipe's" if fits >= batch else f"{machine.memory / 2**30:.0f} GiB of memory"
        batch = min(batch, fits)
    if facts.images < batch:
        batch, why = facts.images, "all images"
    batch = max(1, batch // machine.processes) * machine.processes
    draft.put({"train.batch_size": batch})
    draft.note("batch", ("train.batch_size",), why)
    settings = draft.config.train
    if settings.batch_size // (machine.processes * settings.accumulate) < _FEW:
        draft.put({"model.fpn_norm": "group"})
        draft.note("norm", ("model.fpn_norm",), "the batch is too small for batch statistics")
    draft.note(
        "learning rate",
        ("train.lr",),
        f"the recipe's {settings.lr:g} at {settings.lr_batch_size} images, in proportion",
        lambda config: (
            f"{config.train.lr * config.train.batch_size / config.train.lr_batch_size:.3g} "
            f"({config.train.optimizer})"
        ),
    )


def batch_that_fits(memory: int, image_size: int) -> int:
    """Return how many images one process takes at once: a power of two, 2 to 16.

    Args:
        memory: Bytes of the GPU; 0 = not known, which is taken for plenty.
        image_size: Short side of the images.
    """
    if not memory:
        return _BATCH_GPU
    room = _ROOM * (image_size / 512) ** 2
    batch = _BATCH_GPU
    while batch > 2 and batch * room > memory:
        batch //= 2
    return batch
