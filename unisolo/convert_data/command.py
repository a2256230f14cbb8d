"""The work of `unisolo convert-data`: find the format, read, write, and only then put in place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from unisolo.convert_data.coco import has_coco, read_coco_files
from unisolo.convert_data.labelme import has_labelme, read_labelme
from unisolo.convert_data.masks import read_masks
from unisolo.convert_data.source import Log, Options, Source
from unisolo.convert_data.splits import assign_splits
from unisolo.convert_data.voc import read_voc
from unisolo.convert_data.write import SplitWriter
from unisolo.convert_data.yolo import find_data_yaml, read_yolo
from unisolo.data.coco_files import CocoLayout, DatasetError
from unisolo.files import write_json

__all__ = ["FORMATS", "Summary", "convert_data"]

FORMATS: Mapping[str, Callable[[Path, Options, Log], Source]] = {
    "yolo": read_yolo,
    "labelme": read_labelme,
    "voc": read_voc,
    "masks": read_masks,
    "coco": read_coco_files,
}

SPLIT_NAMES = {"train": "train2017", "val": "val2017", "test": "test2017"}
"""COCO's own names, which are the defaults of `data.train_split` and `data.val_split`."""

_SEARCHED = ("labelme", "coco")
"""Formats that are looked for in all folders of the source."""

_MARKER = "convert_data.json"
_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
        form: Format of the source.
        images: Number of images by split.
        objects: Number of objects by split.
        notes: Remarks, with how often they apply.
        faults: What was left out because it cannot be used.
    """

    form: str
    images: dict[str, int]
    objects: dict[str, int]
    notes: tuple[str, ...]
    faults: tuple[str, ...]


def convert_data(
    src: Path,
    out: Path,
    *,
    form: str = "auto",
    options: Options | None = None,
    val_share: float = 0.2,
    seed: int = 0,
    link: bool = False,
    skip_faulty: bool = False,
    overwrite: bool = False,
) -> Summary:
    """Write a data set of another format as a COCO-layout folder.

    The folder appears when everything is written; until then, and after a fault, there is nothing.

    Args:
        src: Folder of the source (for YOLO also its data.yaml).
        out: Folder to write.
        form: A name of `FORMATS`, or "auto".
        options: What the source does not say itself.
        val_share: Share of validation images where the source has no splits, above 0, below 1.
        seed: Seed of sharing out.
        link: Link images instead of copying them.
        skip_faulty: Leave out what cannot be used instead of refusing.
        overwrite: Replace a folder that this function has written.

    Returns:
        What was written.

    Raises:
        DatasetError: If something cannot be used; the message lists every fault.
        ValueError: If the format is unknown or an argument is out of range.
        OSError: If `out` is in the way or cannot be written.
    """
    if form not in ("auto", *FORMATS):
        raise ValueError(f"format {form!r} is not one of auto, {', '.join(FORMATS)}")
    if not 0 < val_share < 1:
        raise ValueError(f"val_share={val_share} must be above 0 and below 1")
    if not src.exists():
        raise DatasetError(f"{src}: no such folder; check the path")
    _check_out(src, out, overwrite)
    form = find_format(src) if form == "auto" else form
    if form in _SEARCHED and out.resolve().is_relative_to(src.resolve()):
        raise OSError(
            f"{out}: lies in the source, all of whose JSON files are read, so the next conversion "
            "would read this one; give a folder beside it"
        )
    log = Log()
    source = FORMATS[form](src, options or Options(), log)
    try:
        items = assign_splits(source.items, val_share, seed, log)
    except DatasetError as error:  # faults of the other images may be why
        raise DatasetError("\n".join([*log.faults[:_FAULTS_SHOWN], str(error)])) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        writers: dict[str, SplitWriter] = {}
        for split in SPLIT_NAMES:
            members = [item for item in items if item.split == split]
            if members:
                writers[split] = SplitWriter(
                    CocoLayout(unfinished, SPLIT_NAMES[split]),
                    source.categories,
                    panoptic=source.panoptic,
                    link=link,
                    log=log,
                )
            for item in members:
                writers[split].add(item)
        if log.faults and not skip_faulty:
            raise DatasetError(_all_faults(log.faults))
        summary = _summary(form, writers, log)
        for writer in writers.values():
            writer.finish()
        write_json(unfinished / _MARKER, {"source": str(src.resolve()), **vars(summary)}, indent=1)
        _put_in_place(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return summary


def find_format(src: Path) -> str:
    """Tell the format of a folder by what is in it.

    Raises:
        DatasetError: If it looks like none.
    """
    if (src / "SegmentationObject").is_dir():
        return "voc"
    if (src / "images").is_dir() and (src / "masks").is_dir():
        return "masks"
    if find_data_yaml(src) is not None:
        return "yolo"
    if has_labelme(src):
        return "labelme"
    if has_coco(src):
        return "coco"
    raise DatasetError(
        f"{src}: looks like no format that can be read: YOLO has a data.yaml, LabelMe JSON files "
        "with 'shapes', VOC the folders SegmentationClass and SegmentationObject, masks the "
        "folders images and masks, COCO a JSON file with images, annotations and categories; name "
        "it with --from"
    )


def _check_out(src: Path, out: Path, overwrite: bool) -> None:
    """Refuse to write over anything but an earlier conversion, and never over the source."""
    if src.resolve().is_relative_to(out.resolve()):
        raise OSError(f"{out}: holds the source; give another folder")
    if out.exists() and not out.is_dir():
        raise OSError(f"{out}: is a file; give a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARKER).is_file():
            raise OSError(
                f"{out}: is not empty and was not written by convert-data; give another folder"
            )
        if not overwrite:
            raise OSError(f"{out}: holds a converted data set; replace it with --overwrite")


def _put_in_place(unfinished: Path, out: Path) -> None:
    """Rename the finished folder; what was there goes only when the new one is in its place."""
    unfinished.chmod(0o755)  # mkdtemp's are private to their owner
    if not out.exists():
        os.replace(unfinished, out)
        return
    # Within a folder of its own: Windows cannot replace a folder by another, even an empty one.
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-old-"))
    os.replace(out, aside / out.name)
    try:
        os.replace(unfinished, out)
    except OSError:
        os.replace(aside / out.name, out)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def _all_faults(faults: list[str]) -> str:
    more = len(faults) - _FAULTS_SHOWN
    lines = [*faults[:_FAULTS_SHOWN], *([f"... and {more} more"] if more > 0 else [])]
    things, them = ("1 thing", "it") if len(faults) == 1 else (f"{len(faults)} things", "them")
    return (
        f"{things} cannot be used, so nothing is written (--skip-faulty leaves {them} out):\n"
        + "\n".join(lines)
    )


def _summary(form: str, writers: Mapping[str, SplitWriter], log: Log) -> Summary:
    if not any(writer.images for writer in writers.values()):
        raise DatasetError("no image is left to write:\n" + "\n".join(log.faults[:_FAULTS_SHOWN]))
    return Summary(
        form=form,
        images={SPLIT_NAMES[split]: len(writer.images) for split, writer in writers.items()},
        objects={SPLIT_NAMES[split]: len(writer.annotations) for split, writer in writers.items()},
        notes=tuple(f"{remark} ({times})" for remark, times in log.notes.items()),
        faults=tuple(log.faults),
    )
