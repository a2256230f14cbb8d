"""Files from the network."""

from __future__ import annotations

from unisolo.download.fetch import by_hand, check_hash, download, mirrored
from unisolo.download.locking import exclusive
from unisolo.download.part import DownloadError
from unisolo.download.progress import say

__all__ = ["DownloadError", "by_hand", "check_hash", "download", "exclusive", "mirrored", "say"]
