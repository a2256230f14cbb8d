"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write_atomically", "write_bytes", "write_json"]


def write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then sync and rename it into place.

    Args:
        path: Final place; its folder is made if missing.
        write: Called with the temporary file's name.

    Raises:
        OSError: If the file cannot be written; what was at `path` before is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
        os.close(handle)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # mkstemp files are private to their owner; give the usual permissions back.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except Exception as error:  # torch and safetensors have kinds of their own for a full disk
        raise OSError(
            f"{path}: could not be written ({error}); free disk space and check the folder's "
            "permissions. The previous file, if any, is unchanged."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file of bytes.

    Args:
        path: Final place.
        data: The content.

    Raises:
        OSError: If the file cannot be written; what was at `path` before is untouched.
    """
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(data))


def write_json(path: Path, values: Any, *, indent: int | None = None) -> None:
    """Write strict JSON; numbers that are not finite become null.

    Args:
        path: Final place.
        values: A mapping or list of plain values.
        indent: As for `json.dumps`.

    Raises:
        OSError: If the file cannot be written; what was at `path` before is untouched.
    """
    text = json.dumps(_finite(values), indent=indent, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can sync folders (Windows cannot)."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
