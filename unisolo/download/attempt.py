"""One try at a download: request, answer, body."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from unisolo import __version__
from unisolo.download.part import DownloadError, Note, Part, writing

__all__ = ["Report", "TransientError", "fetch"]

CHUNK = 2**18

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""Answers of servers that are busy or restarting."""

Report = Callable[[int, "int | None"], None]
"""Told the bytes that are there and those of the whole file, where known."""


class TransientError(Exception):
    """A try that failed for a reason that may pass.

    Attributes:
        pause: Seconds the server asks to wait, or None.
    """

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _ChangedError(TransientError):
    """The part does not belong to the file that is on the server now."""

    def __init__(self) -> None:
        super().__init__("the file has changed on the server; starting anew", 0.0)


def fetch(address: str, part: Part, report: Report, timeout: float) -> None:
    """Make one try, going on where the part ends.

    Args:
        address: Where from.
        part: What is there already; filled further.
        report: Told about the progress.
        timeout: Seconds without a byte after which the try has failed.

    Raises:
        TransientError: If another try may help.
        DownloadError: If none will.
    """
    note = part.note(address)
    have = part.size() if note is not None else 0
    if note is not None and have and have == note.size:
        return
    headers = {"User-Agent": f"unisolo/{__version__}", "Accept-Encoding": "identity"}
    if note is not None and have:
        headers.update({"Range": f"bytes={have}-", "If-Range": note.validator})
    request = urllib.request.Request(address, headers=headers)
    with _open(request, part, timeout) as response:
        size = _size_of_answer(response)
        if response.status == 206:
            if note is None or not _continues(response, note, have):
                part.drop()
                raise _ChangedError
            total = note.size
        else:  # a new file, a changed one, or a server that sends no parts
            have, total = 0, size
            etag, modified = (response.headers.get(key, "") for key in ("ETag", "Last-Modified"))
            part.begin(Note(address, etag, modified, total))
        _check_space(part.file, size)
        _copy(response, part.file, have, total, report)


def _open(request: urllib.request.Request, part: Part, timeout: float) -> Any:
    """Send the request; errors come as those of `fetch`."""
    opener = urllib.request.build_opener(_Redirects)
    try:
        return opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is longer than the file is now
            part.drop()
            raise _ChangedError from None
        reason = f"the server answers {error.code} {error.reason}"
        if error.code in TRANSIENT:
            after = error.headers.get("Retry-After", "")
            raise TransientError(reason, float(after) if after.isdigit() else None) from None
        raise DownloadError(f"{reason}; the file may have moved") from None
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, (socket.gaierror, ssl.SSLCertVerificationError)):
            raise DownloadError(f"no connection ({cause}); check the network") from error
        raise TransientError(f"no connection ({_words(cause)})") from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects that stay on HTTP and do not lose encryption."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Refuse other schemes: urllib would follow to FTP."""
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise DownloadError(f"redirects from {req.type} to {newurl!r}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _size_of_answer(response: Any) -> int | None:
    """Bytes that follow, where the server says so; refuse what cannot be the file."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise DownloadError(f"answers in the encoding {encoding!r}, which was not asked for")
    if response.headers.get_content_type() == "text/html":  # of a log-in page, for instance
        raise DownloadError("answers with a web page instead of the file")
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _continues(response: Any, note: Note, have: int) -> bool:
    """Whether a partial answer goes on exactly where the part ends, in the same file."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if found is None or int(found[1]) != have:
        return False
    size = note.size if found[2] == "*" else int(found[2])
    # Servers exist that ignore If-Range.
    etag = response.headers.get("ETag", note.etag)
    modified = response.headers.get("Last-Modified", note.modified)
    return (size, etag, modified) == (note.size, note.etag, note.modified)


def _check_space(path: Path, needed: int | None) -> None:
    with writing(path):
        free = shutil.disk_usage(path.parent).free
    if needed is not None and needed > free:
        raise DownloadError(
            f"{path} needs {needed} bytes and its disk has {free}; free some space, or name "
            "another folder with UNISOLO_HOME"
        )


def _copy(response: Any, path: Path, have: int, total: int | None, report: Report) -> None:
    """Append the body; a short one is an error."""
    with writing(path):
        # Not buffered: what a full disk refuses would be refused again on closing.
        file = open(path, "ab", buffering=0)  # noqa: SIM115
    with file:
        report(have, total)
        while True:
            try:
                block = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise TransientError(f"cut off after {have} bytes ({_words(error)})") from error
            if not block:
                break
            with writing(path):
                rest = memoryview(block)
                while rest:
                    rest = rest[file.write(rest) :]
            have += len(block)
            report(have, total)
        with writing(path):
            os.fsync(file.fileno())
    if total is not None and have != total:
        raise TransientError(f"cut off after {have} of {total} bytes")


def _words(error: object) -> str:
    return str(error) or type(error).__name__
