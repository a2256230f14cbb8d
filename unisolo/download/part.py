"""What is kept of a download that is not complete, and the errors of downloads."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from unisolo.files import write_json

__all__ = ["DownloadError", "Note", "Part", "writing"]


class DownloadError(OSError):
    """A file that could not be fetched; the message names the address and the fix."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of writing into what to do about them; none is taken for the network's.

    Args:
        path: What is written, for the message.

    Raises:
        DownloadError: In place of another OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full; free some space"
        raise DownloadError(
            f"{path} cannot be written ({reason}); UNISOLO_HOME names another folder"
        ) from error


@dataclass
class Note:
    """What a server said about the file of which a part is kept.

    Attributes:
        address: Where it comes from.
        etag: Its ETag, or empty.
        modified: Its Last-Modified, or empty.
        size: Bytes in all, or None where the server did not say.
    """

    address: str
    etag: str
    modified: str
    size: int | None

    @property
    def validator(self) -> str:
        """What `If-Range` takes; a weak ETag promises no equal bytes."""
        return self.modified if not self.etag or self.etag.startswith("W/") else self.etag


class Part:
    """The incomplete file, and the note that says what it is a part of.

    Args:
        path: Place of the complete file.

    Attributes:
        file: The part, `NAME.part`.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")

    def note(self, address: str) -> Note | None:
        """Return the note, if the part can be resumed from this address."""
        try:
            note = Note(**json.loads(self._note.read_text(encoding="utf-8")))
            fits = note.address == address and bool(note.validator)
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return note if fits else None

    def size(self) -> int:
        """Bytes there."""
        return self.file.stat().st_size if self.file.exists() else 0

    def begin(self, note: Note) -> None:
        """Forget what is there, then note what comes."""
        with writing(self.file), open(self.file, "wb"):
            write_json(self._note, asdict(note))

    def drop(self) -> None:
        """Delete both."""
        self.file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
