"""How fast a training goes, and how much of its time it waits for data."""

from __future__ import annotations

import time

__all__ = ["Meter"]

WAITING = 0.1
"""Share of the time spent waiting for data from which a run says what would help."""


class Meter:
    """Speed since the last line of the log, and how much of the time went into waiting for data.

    The times are those of this process's clock, which needs no wait for the device: every step
    waits once as it is (see `train_step`).
    """

    def __init__(self) -> None:
        self._all_steps, self._all_waited, self._all_seconds = 0, 0.0, 0.0
        self._restart()

    def add(self, *, waited: float) -> None:
        """Count a step that waited so many seconds for its data."""
        self._steps += 1
        self._waited += waited

    def leave_out(self, seconds: float) -> None:
        """Do not count time that was not training."""
        self._since += seconds

    def take(self, batch_size: int) -> dict[str, float]:
        """Return the numbers and start anew; `data_time` and `step_time` are seconds per step."""
        elapsed = time.monotonic() - self._since
        values = {
            "images_per_second": self._steps * batch_size / elapsed,
            "data_share": self._waited / elapsed,
            "data_time": self._waited / self._steps,
            "step_time": (elapsed - self._waited) / self._steps,
        }
        self._all_steps += self._steps
        self._all_waited += self._waited
        self._all_seconds += elapsed
        self._restart()
        return values

    def sentence(self) -> str:
        """Say what all steps of this process waited for data, and what helps."""
        if not self._all_steps:  # resumed after its last step
            return "no step was left to take"
        share = self._all_waited / self._all_seconds
        text = (
            f"waited for data {share:.1%} of the time: "
            f"{1e3 * self._all_waited / self._all_steps:.1f} of "
            f"{1e3 * self._all_seconds / self._all_steps:.1f} ms per step"
        )
        if share < WAITING:
            return text
        return f"{text}; more data.workers, data.cache=ram or smaller image files would help"

    def _restart(self) -> None:
        self._since = time.monotonic()
        self._steps, self._waited = 0, 0.0
