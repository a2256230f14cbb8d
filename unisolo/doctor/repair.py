"""A repaired copy of a data set; the source is only read."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.doctor.codes import CODES
from unisolo.doctor.examine import Report
from unisolo.doctor.split import JsonFile, Split
from unisolo.encoding import encode_png, ids_to_rgb
from unisolo.files import write_json

__all__ = ["Repaired", "repair"]


@dataclass(frozen=True)
class Repaired:
    """What a repair did.

    Attributes:
        out: The new folder.
        mended: How often each code was mended.
        kept: Per annotation file: images before and after, annotations before and after.
    """

    out: Path
    mended: dict[str, int]
    kept: dict[str, tuple[int, int, int, int]]

    @property
    def sentences(self) -> list[str]:
        """What was done, a sentence each."""
        said = [f"{count} x {code}: {CODES[code].mend}" for code, count in self.mended.items()]
        for name, (images, images_kept, entries, entries_kept) in self.kept.items():
            said.append(
                f"{name}: {images_kept} of {images} images and {entries_kept} of {entries} "
                "annotations kept"
            )
        return said


def repair(report: Report, out: Path) -> Repaired:
    """Write what `examine` found usable, as it should be, to a new folder.

    The folder appears whole or not at all: it is written beside its final place and renamed.

    Args:
        report: Of the data set; only the splits it looked at are written.
        out: The new folder: absent or empty, and not inside the data set.

    Returns:
        What was done.

    Raises:
        ValueError: If `out` is not free, or nothing can be made of a split; the message says why.
        OSError: If a file cannot be read or written.
    """
    _check_place(report.root, out)
    _check_usable(report)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        for split in report.splits:
            _write_split(split, report.root, temporary)
        # mkdtemp folders are private to their owner; give the usual permissions back.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    mended = {
        code: len(found) for code, found in report.findings.groups().items() if CODES[code].mend
    }
    kept = {
        file.path.name: (
            len(file.tree["images"]),
            len(file.images.usable),
            len(file.tree["annotations"]),
            len(file.annotations),
        )
        for split in report.splits
        for file in split.files
    }
    return Repaired(out, mended, kept)


def _check_place(root: Path, out: Path) -> None:
    if out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{out} lies in the data set itself; give another folder for --fix")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; give a new or an empty folder for --fix")


def _check_usable(report: Report) -> None:
    groups = report.findings.groups()
    for code in ("json-unusable", "folder-missing"):
        if code in groups:
            finding = groups[code][0]
            raise ValueError(
                f"{finding.file}: {finding.message}; nothing can be made of split "
                f"{finding.split!r}: mend this by hand, or name the other splits with --split"
            )
    for split in report.splits:
        for file in split.files:
            things = [e for e in file.categories.values() if e.get("isthing", 1)]
            if not file.images.usable or not things:
                what = "images" if things else "thing categories"
                raise ValueError(f"{file.path}: no usable {what} are left; nothing was written")


def _write_split(split: Split, root: Path, out: Path) -> None:
    for file in split.files:
        write_json(out / file.path.relative_to(root), _tree(file))
    pictures = {image.path for file in split.files for image in file.images.usable.values()}
    for path in sorted(pictures):
        _copy(path, out / path.relative_to(root))
    if split.panoptic is None:
        return
    for image_id, image in split.panoptic.images.usable.items():
        png = split.segments.pngs[image_id]
        place = out / png.relative_to(root)
        if image_id not in split.segments.rewrite:
            _copy(png, place)
            continue
        ids = read_segment_ids(png, image.entry)
        segments = split.segments.annotations[image_id]["segments_info"]
        ids[~np.isin(ids, [segment["id"] for segment in segments])] = 0
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode_png(ids_to_rgb(ids)))


def _tree(file: JsonFile) -> dict[str, Any]:
    return {
        **file.tree,
        "images": [image.entry for image in file.images.usable.values()],
        "annotations": file.annotations,
        "categories": list(file.categories.values()),
    }


def _copy(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, place)
