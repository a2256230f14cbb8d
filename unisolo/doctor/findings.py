"""The list of what was found wrong with a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unisolo.doctor.codes import CODES, Severity

__all__ = ["Evidence", "Finding", "Findings", "bare", "printable", "short"]


@dataclass(frozen=True)
class Evidence:
    """What to draw to show a finding.

    Attributes:
        image: The picture.
        other: A second picture to lay beside it.
        box: [x, y, width, height] as the JSON file gives it.
        mask_box: The same as the mask has it.
        segmentation: The mask of an annotation.
        png: The panoptic PNG that holds ...
        segment_id: ... this segment.
    """

    image: Path
    other: Path | None = None
    box: tuple[float, ...] | None = None
    mask_box: tuple[float, ...] | None = None
    segmentation: Any = None
    png: Path | None = None
    segment_id: int | None = None


@dataclass(frozen=True)
class Finding:
    """One fault.

    Attributes:
        code: A key of `CODES`.
        split: The split it was found in.
        file: The file at fault, relative to the data folder.
        message: What exactly is wrong there.
        image_id: Of the entry at fault, as in the JSON file; None = does not apply.
        annotation_id: The same for an object.
        segment_id: The same for a panoptic segment.
        category_id: The same for a category.
        weight: How far off, to show the worst first.
        evidence: What to draw.
    """

    code: str
    split: str
    file: str
    message: str
    image_id: Any = None
    annotation_id: Any = None
    segment_id: Any = None
    category_id: Any = None
    weight: float = 0.0
    evidence: Evidence | None = None

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return CODES[self.code].severity

    @property
    def entry(self) -> str:
        """The entry at fault in words; empty where it is a whole file."""
        parts = {
            "annotation": self.annotation_id,
            "segment": self.segment_id,
            "image id": self.image_id,
            "category id": self.category_id,
        }
        return ", ".join(
            f"{name} {short(value)}" for name, value in parts.items() if value is not None
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        ids = {
            name: getattr(self, name)
            for name in ("image_id", "annotation_id", "segment_id", "category_id")
        }
        return {
            "split": self.split,
            "file": self.file,
            **{
                name: value if isinstance(value, (int, str)) else short(value)
                for name, value in ids.items()
                if value is not None
            },
            "message": self.message,
        }


class Findings:
    """The list of faults, in the order of `CODES`.

    Args:
        root: The data folder; files are named relative to it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._by_code: dict[str, list[Finding]] = {code: [] for code in CODES}
        self.split = ""

    def add(self, code: str, file: Path, message: str, **facts: Any) -> None:
        """Add a fault of the split at hand.

        Args:
            code: A key of `CODES`.
            file: The file at fault.
            message: What is wrong there; names from files are given as `repr`.
            **facts: Further attributes of `Finding`.
        """
        shown = file.relative_to(self.root) if file.is_relative_to(self.root) else file
        name = printable(shown.as_posix())
        self._by_code[code].append(Finding(code, self.split, name, printable(message), **facts))

    def __iter__(self) -> Iterator[Finding]:
        for found in self._by_code.values():
            yield from found

    def __len__(self) -> int:
        return sum(map(len, self._by_code.values()))

    def groups(self) -> dict[str, list[Finding]]:
        """Return the findings by code, errors first, the worst of each code first."""
        rank = list(Severity)
        codes = [code for code, found in self._by_code.items() if found]
        codes.sort(key=lambda code: rank.index(CODES[code].severity))
        return {
            code: sorted(self._by_code[code], key=lambda finding: -finding.weight) for code in codes
        }

    def count(self, severity: Severity) -> int:
        """Return how many findings are of a severity."""
        return sum(finding.severity is severity for finding in self)


def bare(error: Exception, path: Path) -> str:
    """Return a reader's sentence without the file and the fix, which a finding names already."""
    return str(error).removeprefix(f"{path}: ").rsplit("; ", 1)[0]


def printable(text: str) -> str:
    """Return a name from a file for people: letters that steer a terminal must not reach it."""
    return text if text.isprintable() else ascii(text)


def short(value: Any) -> str:
    """Return a value of a file for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
