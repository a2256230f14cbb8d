"""The files that people take away: those that `Result` writes, of the size of their picture."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from unisolo.encoding import encode_png
from unisolo.results import Result

__all__ = ["file_of", "files_of"]


def files_of(result: Result) -> list[dict[str, str]]:
    """What can be downloaded: a word for people, the file, and how its name ends."""
    files = [
        {"label": "Picture", "file": "overlay.png", "ending": "_overlay.png"},
        {"label": "COCO JSON", "file": "coco.json", "ending": "_coco.json"},
    ]
    if result.panoptic_seg is not None:
        files += [
            {"label": "Panoptic PNG", "file": "panoptic.png", "ending": "_panoptic.png"},
            {"label": "Panoptic JSON", "file": "panoptic.json", "ending": "_panoptic.json"},
        ]
    return files


def file_of(
    result: Result, image: npt.NDArray[np.uint8], name: str, file: str
) -> tuple[bytes, str] | None:
    """Make one of the files.

    Args:
        result: What was found.
        image: Its picture, [H, W, 3] uint8 RGB.
        name: `image_id`, and the beginning of file names.
        file: A `file` of `files_of`.

    Returns:
        (the file, its media type); None if there is no such file.
    """
    if file == "overlay.png":
        return encode_png(result.plot(image)), "image/png"
    if file == "coco.json":
        return json.dumps(result.to_coco(name)).encode(), "application/json"
    if result.panoptic_seg is not None and file in ("panoptic.png", "panoptic.json"):
        rgb, annotation = result.to_panoptic(name, file_name=f"{name}_panoptic.png")
        if file == "panoptic.png":
            return encode_png(rgb), "image/png"
        return json.dumps(annotation).encode(), "application/json"
    return None
