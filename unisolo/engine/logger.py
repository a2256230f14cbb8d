"""What a run says: a progress bar or plain lines, JSON lines, TensorBoard."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from unisolo.files import write_bytes
from unisolo.progress import progress_bar

__all__ = ["RunLogger"]


class RunLogger:
    """Writes a run's numbers; on processes other than the main one it does nothing.

    Args:
        out: Folder for `log.jsonl` and `tensorboard/`.
        total_steps: Length of the run, unless the clock ends it before.
        start_step: Steps done before (resumed runs).
        start_done: Likewise, as `Run.done` counts.
        evaluated: Step of the last evaluation done before; -1 = none.
        active: Whether this process writes.
        tensorboard: Whether to write TensorBoard event files as well.
    """

    def __init__(
        self,
        out: Path,
        *,
        total_steps: int,
        start_step: int = 0,
        start_done: float = 0,
        evaluated: int = -1,
        active: bool = True,
        tensorboard: bool = True,
    ) -> None:
        self.active = active
        self.total_steps = total_steps
        self._start_done = start_done
        self._start_time = time.monotonic()
        self._progress: Any = None
        self._writer: Any = None
        if not active:
            return
        out.mkdir(parents=True, exist_ok=True)
        self._path = out / "log.jsonl"
        _forget_after(self._path, start_step, evaluated)
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=start_step + 1)
        if sys.stderr.isatty():
            self._progress = progress_bar("{task.description}")
            self._task = self._progress.add_task("train", total=total_steps, completed=start_done)
            self._progress.start()

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self.active:
            return
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def say(self, text: str) -> None:
        """Print a line, above the progress bar where there is one."""
        if not self.active:
            return
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def advance(self, done: float) -> None:
        """Move the progress bar to `Run.done`."""
        if self._progress is not None:
            self._progress.update(self._task, completed=done)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record numbers of a step in `log.jsonl` and TensorBoard."""
        if not self.active:
            return
        row = {name: value if math.isfinite(value) else None for name, value in values.items()}
        # Opened for each row: if someone removes the folder of a running training, the next row
        # makes it again, and the next state is saved in it.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                tag = name if "/" in name else f"train/{name}"
                self._writer.add_scalar(tag, value, step)

    def line(self, step: int, values: dict[str, float], *, done: float) -> None:
        """Record and print one training step: losses, rate, speed, memory and time left.

        Args:
            step: Steps done.
            values: Numbers by name.
            done: `Run.done`, from which the time left follows.
        """
        if not self.active:
            return
        elapsed = time.monotonic() - self._start_time
        # Coarse clocks may stand still during a step.
        left = elapsed / max(done - self._start_done, 1e-9) * (self.total_steps - done)
        self.log(step, {**values, "seconds_left": left})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.say(f"step {step}/{self.total_steps}  {shown}  left {_duration(left)}")


def _forget_after(path: Path, step: int, evaluated: int) -> None:
    """Drop the rows that a resumed run writes again, and a row that a kill cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        last = step if "loss" in row else evaluated  # rows of steps, rows of evaluations
        if row["step"] <= last:
            kept.append(line if line.endswith("\n") else line + "\n")
    write_bytes(path, "".join(kept).encode())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
