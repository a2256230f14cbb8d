"""What a reader of any format gives the writer, and what both say on the way."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unisolo.categories import Categories
from unisolo.data.coco_files import DatasetError
from unisolo.data.images import IMAGE_ENDINGS
from unisolo.reading import file_problem

__all__ = [
    "SPLITS",
    "Content",
    "Embedded",
    "Item",
    "Log",
    "Options",
    "Panoptic",
    "Shape",
    "Source",
    "find_image",
    "find_names",
    "read_lines",
    "split_of_folder",
]

SPLITS = {
    "train": re.compile(r"train(ing)?\d*"),
    "val": re.compile(r"val(id|idation)?\d*"),
    "test": re.compile(r"test\d*"),
}


@dataclass(frozen=True)
class Options:
    """What the person said about the source.

    Attributes:
        names: File of class names; None = the source's own.
        stuff: Names of classes that are regions, not objects.
        boxes_as_masks: Take boxes without an outline for masks.
    """

    names: Path | None = None
    stuff: tuple[str, ...] = ()
    boxes_as_masks: bool = False


@dataclass(frozen=True)
class Shape:
    """One object.

    Attributes:
        category_id: Its category.
        segmentation: COCO polygons in pixels, or an RLE mapping.
        where: File and entry, for messages.
        crowd: Whether it is a crowd of them that nobody has counted.
    """

    category_id: int
    segmentation: Any
    where: str
    crowd: bool = False


@dataclass(frozen=True)
class Panoptic:
    """A map of all pixels.

    Attributes:
        ids: [H, W] int32, segment id; 0 is void.
        categories: Category id of every segment id.
    """

    ids: NDArray[np.int32]
    categories: dict[int, int]


@dataclass(frozen=True)
class Content:
    """What is annotated in one image."""

    shapes: list[Shape]
    panoptic: Panoptic | None = None


@dataclass(frozen=True)
class Embedded:
    """An image that its annotation file holds; decoded anew each time, so that one is in memory.

    Attributes:
        digest: Of its bytes: images of one digest are the same image.
        name: Name for the file it becomes.
        load: Returns its bytes.
    """

    digest: bytes
    name: str
    load: Callable[[], bytes] = field(compare=False)


@dataclass(frozen=True)
class Item:
    """One image of the source.

    Attributes:
        image: Its file, or what the annotation file holds in its place.
        split: "train", "val" or "test"; None where the source has no splits.
        read: Reads the annotation, given the upright image's (H, W); may raise `DatasetError`.
    """

    image: Path | Embedded
    split: str | None
    read: Callable[[tuple[int, int]], Content]


@dataclass(frozen=True)
class Source:
    """A data set as a reader sees it.

    Attributes:
        categories: Its categories.
        items: Its images.
        panoptic: Whether its contents have panoptic maps.
    """

    categories: Categories
    items: list[Item]
    panoptic: bool = False


@dataclass
class Log:
    """Faults and remarks of one conversion.

    Attributes:
        faults: Sentences, each with file, entry and what to do.
        notes: How often each remark was made.
    """

    faults: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def fault(self, sentence: object) -> None:
        """Say that something cannot be used."""
        self.faults.append(str(sentence))

    def note(self, remark: str) -> None:
        """Count a remark that the person should know of."""
        self.notes[remark] += 1


def split_of_folder(relative: Path) -> str | None:
    """Return the split that the first folder of a relative path is called after, or None."""
    for split, pattern in SPLITS.items():
        if len(relative.parts) > 1 and pattern.fullmatch(relative.parts[0].lower()):
            return split
    return None


def find_image(folder: Path, stem: str) -> Path | None:
    """Return the image of a name without ending, or None."""
    for ending in IMAGE_ENDINGS:
        for path in (folder / f"{stem}{ending}", folder / f"{stem}{ending.upper()}"):
            if path.is_file():
                return path
    return None


def read_lines(path: Path, kind: str) -> list[tuple[int, str]]:
    """Read the lines of a text file that are not empty, each with its number from 1.

    Raises:
        DatasetError: If it cannot be read as UTF-8 text.
    """
    problem = file_problem(path, kind)
    if problem is not None:
        raise DatasetError(f"{path}: {problem}; check the path")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path}: not readable as UTF-8 text ({error}); write it again"
        ) from None
    lines = enumerate(map(str.strip, text.splitlines()), start=1)
    return [(number, line) for number, line in lines if line]


def find_names(src: Path, options: Options, usual: Iterable[str]) -> list[str] | None:
    """Read the class names, one a line: the file named, else the first usual one in `src`.

    Raises:
        DatasetError: If the file named cannot be read, or a line between names is empty.
    """
    files = [options.names] if options.names is not None else [src / name for name in usual]
    for file in files:
        if options.names is not None or file.is_file():
            lines = read_lines(file, "file of class names")
            for place, (number, _) in enumerate(lines, start=1):
                if number != place:  # the class of a name is the number of its line
                    raise DatasetError(f"{file}: line {place} is empty; write a name, or remove it")
            return [name for _, name in lines]
    return None
