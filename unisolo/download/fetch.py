"""Fetch a file over HTTP: whole, checked and resumable, or an error that says what to do by hand.

A download lies beside its place as `NAME.part`, with a note of what the server said about it, until
it is complete and its hash is checked; then it is renamed. What was cut off is resumed.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from unisolo.download.attempt import TransientError, fetch
from unisolo.download.locking import exclusive
from unisolo.download.part import DownloadError, Part, writing
from unisolo.download.progress import progress_of_bytes, say

__all__ = ["by_hand", "check_hash", "download", "mirrored"]

LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer pause gets this one."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str = "",
    quiet: bool = False,
    attempts: int = 5,
    wait: float = 1.0,
    timeout: float = 30.0,
) -> Path:
    """Fetch a file, unless it is there already.

    `UNISOLO_MIRROR` replaces scheme and host of the address; with `UNISOLO_OFFLINE=1` nothing is
    fetched. Two processes that want one file take turns, and the second finds it there.

    Args:
        url: Address, http or https.
        path: Where the file goes; its folder is made.
        sha256: Hexadecimal SHA-256 of the file, or its first digits; empty = not checked.
        quiet: Print neither progress nor what is being waited for.
        attempts: Tries in all, where an error may pass.
        wait: Seconds before the second try; doubled for each one after it.
        timeout: Seconds without a byte after which a try has failed.

    Returns:
        The path.

    Raises:
        DownloadError: If the file could not be fetched whole, or is not the one of the hash. What
            has arrived is kept to be resumed, unless it is wrong.
        ValueError: If the address or `UNISOLO_MIRROR` is not http or https.
    """
    address = mirrored(url)
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path, quiet=quiet):
        if path.exists():  # put there by hand, or by a process that was faster
            try:
                check_hash(path, sha256)
            except DownloadError as error:
                raise DownloadError(f"{error}; delete it to have it fetched") from None
            return path
        if os.environ.get("UNISOLO_OFFLINE", "").lower() not in ("", "0", "false", "no"):
            raise DownloadError(f"UNISOLO_OFFLINE is set: {by_hand(url, path)}")
        part = Part(path)
        try:
            _fetch_patiently(address, part, quiet, attempts, wait, timeout)
        except DownloadError as error:
            raise DownloadError(f"{address}: {error}; or {by_hand(url, path)}") from error
        try:
            check_hash(part.file, sha256)
        except DownloadError as error:
            part.drop()
            raise DownloadError(f"{address}: {error}; it was deleted") from None
        with writing(path):
            os.replace(part.file, path)
        part.drop()
    return path


def mirrored(url: str) -> str:
    """Return an address with scheme and host of `UNISOLO_MIRROR`, where that is set.

    Raises:
        ValueError: If either is not http or https.
    """
    mirror = os.environ.get("UNISOLO_MIRROR", "")
    for name, value in (("address", url), ("UNISOLO_MIRROR", mirror or url)):
        if urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc:
            raise ValueError(f"{name} {value!r} must look like https://host/...")
    if not mirror:
        return url
    base, parts = urlsplit(mirror.rstrip("/")), urlsplit(url)
    return urlunsplit((base.scheme, base.netloc, base.path + parts.path, parts.query, ""))


def by_hand(url: str, path: Path) -> str:
    """Say how to do without this machine's network."""
    return f"fetch {url} on another machine and put the file here: {path}"


def check_hash(path: Path, sha256: str) -> None:
    """Compare a file with a hash.

    Args:
        path: The file.
        sha256: Hexadecimal digits the hash must start with; empty = not checked.

    Raises:
        DownloadError: If it is another file.
        OSError: If it cannot be read.
    """
    if not sha256:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    if not digest.hexdigest().startswith(sha256.lower()):
        raise DownloadError(
            f"{path} is damaged or another file: its sha256 starts with "
            f"{digest.hexdigest()[: len(sha256)]} where {sha256} is published"
        )


def _fetch_patiently(
    address: str, part: Part, quiet: bool, attempts: int, wait: float, timeout: float
) -> None:
    """Try until the part is complete.

    Raises:
        DownloadError: If it cannot be.
    """
    with progress_of_bytes(part.file.stem, quiet=quiet) as report:
        for attempt in range(1, attempts + 1):
            try:
                return fetch(address, part, report, timeout)
            except TransientError as error:
                if attempt == attempts:
                    kept = part.size() if part.note(address) else 0
                    advice = f"call again to go on after {kept} bytes" if kept else "try later"
                    raise DownloadError(f"{error} ({attempts} attempts); {advice}") from error
                pause = wait * 2 ** (attempt - 1) if error.pause is None else error.pause
                pause = min(pause, LONGEST_WAIT)
                if not quiet:
                    say(f"{address}: {error}; trying again in {pause:g} s")
                time.sleep(pause)
