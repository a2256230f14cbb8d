"""Stopping a run from outside: a signal is noted, the step in hand ends, the state is saved."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["PREEMPTED", "StopRequest", "TrainingStopped"]

PREEMPTED = 75
"""Exit code of a run that SIGTERM or SIGUSR1 stopped after saving: EX_TEMPFAIL, "try again"."""

_WATCHED = ("SIGINT", "SIGTERM", "SIGUSR1")


class TrainingStopped(Exception):
    """A run stopped on request, its state saved; `--resume` goes on.

    Attributes:
        exit_code: For the process: 130 after Ctrl-C, else `PREEMPTED`.
    """

    def __init__(self, signal_name: str, message: str) -> None:
        super().__init__(message)
        self.exit_code = 130 if signal_name == "SIGINT" else PREEMPTED


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGUSR1 while it is entered, instead of dying of them.

    Schedulers send SIGTERM (or, where asked, SIGUSR1) some seconds before they kill; a terminal
    sends SIGINT on Ctrl-C. A second SIGINT quits at once. Outside the main thread, where Python
    allows no handlers, signals keep their meaning.

    Attributes:
        signal_name: Name of the first signal received; empty while there is none.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for name in _WATCHED:
                number = getattr(signal, name, None)  # Windows has no SIGUSR1
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal_name == name == "SIGINT":
            raise KeyboardInterrupt
        if not self.signal_name:
            self.signal_name = name
            again = "; Ctrl-C again quits at once" if name == "SIGINT" else ""
            print(f"{name}: stopping after this step{again}", file=sys.stderr, flush=True)
