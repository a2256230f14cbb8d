"""One process at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unisolo.download.progress import say

__all__ = ["exclusive"]


@contextmanager
def exclusive(path: Path, *, quiet: bool = False) -> Iterator[None]:
    """Hold a file against other processes and threads that ask for it in the same way.

    The lock is the system's, on a hidden file beside `path`, so it ends with the process.

    Args:
        path: The file; it need not exist, its folder must.
        quiet: Do not say that another process is waited for.

    Raises:
        OSError: If the folder cannot be written, or its file system has no locks.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = _acquire(lock, quiet)
    try:
        yield
    finally:
        # While it is held: whoever waits for the old file notices that it is no longer there.
        with suppress(OSError):
            lock.unlink()
        os.close(handle)


def _acquire(lock: Path, quiet: bool) -> int:
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(
                f"{lock} cannot be made ({error.strerror}); use a folder that can be written"
            ) from error
        try:
            if not _try_lock(handle):
                if not quiet:
                    say(f"waiting for another process that holds {lock}")
                _wait_for_lock(handle)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    return handle
        except OSError as error:
            os.close(handle)
            raise OSError(
                f"{lock} cannot be locked ({error}); use a folder of a local disk"
            ) from error
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _wait_for_lock(handle: int) -> None:
        while True:
            with suppress(OSError):  # it gives up after ten seconds
                msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
                return

else:
    import fcntl

    def _try_lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _wait_for_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX)
