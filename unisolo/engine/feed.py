"""Training batches, step by step, also past the death of a loader process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from unisolo.build import build_grid
from unisolo.config import Config
from unisolo.data.loader import build_loader, collate
from unisolo.engine.copying import Copy, start_copy
from unisolo.engine.distributed import World
from unisolo.engine.packing import PackedBatch, pack
from unisolo.engine.sampler import TrainSampler
from unisolo.losses.targets import with_cell_targets
from unisolo.structures import Batch, GridSpec, Sample

__all__ = ["BatchFeed", "LoaderDied"]

_ATTEMPTS = 3


class LoaderDied(OSError):
    """Loader processes were killed again and again."""


class BatchFeed:
    """Gives the batches of each step; what a step receives follows from its number alone.

    So when a loader process is killed (mostly by the system, for memory), the loader is started
    again at the same step, and the run goes on as if nothing had happened.

    Args:
        dataset: The training set.
        config: The run's configuration.
        world: This process's place.
        say: Told a sentence when a loader process was killed.
    """

    def __init__(
        self, dataset: Any, config: Config, world: World, say: Callable[[str], None]
    ) -> None:
        self._dataset = dataset
        self._config = config
        self._world = world
        self._say = say
        self._batches: Iterator[PackedBatch] | None = None
        self._ahead: Copy | list[PackedBatch] | Exception | None = None
        self._waited = 0.0

    def take(self, step: int) -> list[Batch]:
        """Return the batches of one step: `train.accumulate` of them.

        Args:
            step: Steps done before; calls go up by one.

        Returns:
            Batches on the device where `prepare` was called before and found room there; else as
            the loader made them.

        Raises:
            LoaderDied: If loader processes were killed `_ATTEMPTS` times in a row.
            ValueError: If an image or annotation cannot be used; the message names it.
        """
        ahead, self._ahead = self._ahead, None
        if isinstance(ahead, Exception):
            raise ahead
        if isinstance(ahead, Copy):
            return ahead.finish()
        if ahead is None:
            begin = time.monotonic()
            ahead = self._read(step)
            self._waited += time.monotonic() - begin
        return [batch.unpacked() for batch in ahead]

    def prepare(self, step: int) -> None:
        """Start to copy the batches of the coming step to a GPU that is busy with this one.

        Elsewhere there is nothing to gain, and nothing is done. What goes wrong is raised by the
        `take` of that step, so that the step in hand is not lost.

        Args:
            step: The step of the next `take`.
        """
        device = self._world.device
        if device.type != "cuda":
            return
        busy = torch.cuda.Event()  # type: ignore[no-untyped-call]
        busy.record(torch.cuda.current_stream(device))
        begin = time.monotonic()
        try:
            batches = self._read(step)
            idle = busy.query()  # type: ignore[no-untyped-call]
            if idle:  # the GPU has run out of work, so (part of) this was a wait for data
                self._waited += time.monotonic() - begin
            self._ahead = self._copied(batches)
        except Exception as error:
            self._ahead = error

    def _copied(self, batches: list[PackedBatch]) -> Copy | list[PackedBatch]:
        try:
            return start_copy(batches, self._world.device)
        except torch.OutOfMemoryError:
            # Beside the step in hand there is no room for more. The coming step copies them when
            # this one's memory is free, and says what was big if that is not enough.
            return batches

    def waited(self) -> float:
        """Return how many seconds the device has waited for data since the last call, at most."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _read(self, step: int) -> list[PackedBatch]:
        for attempt in range(_ATTEMPTS):
            try:
                if self._batches is None:
                    self._batches = self._open(step)
                return [next(self._batches) for _ in range(self._config.train.accumulate)]
            except (RuntimeError, OSError, EOFError) as error:
                if not self._means_killed(error):
                    raise
                self._batches = None
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                if attempt + 1 < _ATTEMPTS:
                    self._say(f"a loader process was killed ({reason}); starting it again")
        raise LoaderDied(
            f"loader processes were killed {_ATTEMPTS} times at step {step + 1} ({reason}). The "
            "system does that when memory runs out: lower data.workers or train.batch_size, or "
            "look into the kernel's log. --resume goes on from the last saved state."
        )

    def close(self) -> None:
        """Let the loader processes go."""
        self._batches = None
        self._ahead = None

    def _means_killed(self, error: BaseException) -> bool:
        """Whether an error comes from a dead loader process, not from the data set."""
        # What a data set raises in a worker arrives as "Caught ... in DataLoader worker process".
        if self._config.data.workers == 0 or "Caught " in str(error):
            return False
        # Sockets and pipes to a process that died while it handed over a batch fail in their way.
        # Where a thread of the loader was the receiver, that has ended the thread.
        return not isinstance(error, RuntimeError) or any(
            sign in str(error) for sign in ("DataLoader worker", "Pin memory thread exited")
        )

    def _open(self, step: int) -> Iterator[PackedBatch]:
        settings, world = self._config.train, self._world
        seen = step * settings.batch_size
        sampler = TrainSampler(
            len(self._dataset),
            seed=settings.seed,
            rank=world.rank,
            world_size=world.size,
            start=seen,
        )
        loader = build_loader(
            self._dataset,
            batch_size=settings.batch_size // (world.size * settings.accumulate),
            workers=self._config.data.workers,
            sampler=sampler,
            seed=settings.seed,
            first_position=seen + world.rank,
            position_step=world.size,
            pin_memory=world.device.type == "cuda",
            make_batch=_MakeBatch(build_grid(self._config), settings.loss_options()),
        )
        batches = iter(loader)
        _leave_deaths_to_next()
        return batches


@dataclass(frozen=True)
class _MakeBatch:
    """Joins samples and works out what each grid cell is trained on, while nobody waits for it."""

    grid: GridSpec
    options: dict[str, Any]

    def __call__(self, samples: Sequence[Sample]) -> PackedBatch:
        batch = collate(samples)
        height, width = batch.images.shape[-2:]
        targets = with_cell_targets(
            batch.targets,
            self.grid,
            (height, width),
            **self.options,
        )
        return pack(replace(batch, targets=targets))


def _leave_deaths_to_next() -> None:
    """Take back the signal handler by which torch tells at once that a loader process died.

    It raises wherever the main process is, also in the middle of an update of the weights. Without
    it the next batch tells, some seconds later.
    """
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    if number is None or threading.current_thread() is not threading.main_thread():
        return
    if getattr(signal.getsignal(number), "__module__", "").startswith("torch.utils.data"):
        signal.signal(number, signal.SIG_DFL)
