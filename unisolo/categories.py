"""Categories of a data set: ids of the file, labels of the model, and nothing typed twice."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from unisolo.reading import file_problem, parse_json, read_yaml, short

__all__ = ["Categories", "Category"]


@dataclass(frozen=True)
class Category:
    """One category of a data set.

    Attributes:
        id: Id in the data set's file; any non-negative integer, gaps allowed.
        name: Name shown to people.
        isthing: True for countable objects (things), False for regions (stuff).
        color: RGB, each 0..255.
        supercategory: Group name, may be empty.
    """

    id: int
    name: str
    isthing: bool = True
    color: tuple[int, int, int] = (128, 128, 128)
    supercategory: str = ""


class Categories(Sequence[Category]):
    """The ordered categories of a data set: things first, then stuff, each by ascending id.

    A `label` is the position in this order. Things have labels `0 .. num_things - 1` and are the
    channels of the category branch; stuff has labels `num_things ..`. There is no background slot.

    Args:
        categories: Categories in any order.

    Raises:
        ValueError: If two categories share an id, or there is none.
    """

    def __init__(self, categories: Iterable[Category]) -> None:
        items = sorted(categories, key=lambda c: (not c.isthing, c.id))
        if not items:
            raise ValueError("no categories: the data set's file lists none under 'categories'")
        labels: dict[int, int] = {}
        for label, category in enumerate(items):
            if category.id in labels:
                raise ValueError(
                    f"category id {category.id} appears twice ({items[labels[category.id]].name!r} "
                    f"and {category.name!r}); ids must be unique"
                )
            labels[category.id] = label
        self._items = tuple(items)
        self._labels = labels

    @classmethod
    def from_coco(cls, entries: Iterable[Mapping[str, Any]]) -> Categories:
        """Read the `categories` list of a COCO file (instances or panoptic).

        Args:
            entries: Mappings with `id` and `name`, and optionally `isthing` (default 1),
                `color` (RGB list) and `supercategory`. A missing colour is drawn from a fixed
                palette by id, so it is the same in every run.

        Returns:
            The categories.

        Raises:
            ValueError: If an entry lacks `id` or `name` or holds values of another kind, or ids
                repeat.
        """
        return cls(_category(entry) for entry in entries)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Categories:
        """Make thing categories of names in the order of their labels.

        Args:
            names: E.g. `supervision.DetectionDataset.classes`. The n-th gets id n + 1: other tools
                take id 0 for "none".

        Raises:
            ValueError: If there is no name, one is no text, or one comes twice.
        """
        listed = list(names)
        strange = next((name for name in listed if not isinstance(name, str)), None)
        if strange is not None:
            raise ValueError(f"category name {short(strange)} is no text; put it in quotes")
        twice = [name for name, times in Counter(listed).items() if times > 1]
        if twice:
            raise ValueError(f"category names appear twice: {short(twice)}; rename one")
        return cls.from_coco({"id": n, "name": name} for n, name in enumerate(listed, start=1))

    @classmethod
    def from_yolo(cls, data_yaml: str | os.PathLike[str]) -> Categories:
        """Read the `names` of a YOLO `data.yaml`; the label is the class of the label files.

        Args:
            data_yaml: The file; `names` is a list, or a mapping from 0, 1, 2, ... to names.

        Raises:
            ValueError: If the file cannot be read or its names cannot be used.
        """
        names = read_yaml(data_yaml).get("names")
        if isinstance(names, dict) and set(names) == set(range(len(names))):
            names = [names[number] for number in range(len(names))]
        if not isinstance(names, list):
            raise ValueError(
                f"{data_yaml}: 'names' must list the class names, or map 0, 1, 2, ... to them"
            )
        try:
            return cls.from_names(names)
        except ValueError as error:
            raise ValueError(f"{data_yaml}: {error}") from None

    @classmethod
    def from_labelme(cls, files: Iterable[str | os.PathLike[str]]) -> Categories:
        """Collect the labels of LabelMe JSON files, in alphabetical order.

        Raises:
            ValueError: If a file is no LabelMe file, or there is no label at all.
        """
        labels: set[str] = set()
        for file in files:
            problem = file_problem(file, "LabelMe file")
            if problem is not None:
                raise ValueError(f"{file}: {problem}; check the path")
            try:
                tree = parse_json(Path(file).read_bytes())
                labels.update(shape["label"] for shape in tree["shapes"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{file}: not a LabelMe file ({error!r})") from None
        return cls.from_names(sorted(labels, key=str))

    @classmethod
    def from_label_studio(cls, config: str) -> Categories:
        """Read the labels of a Label Studio labelling config, in its order.

        Args:
            config: The XML text. Labels of brush, polygon and rectangle tags are taken, each name
                once; `background` is the colour where it is written as #rrggbb.

        Raises:
            ValueError: If it is not XML, declares entities, or has no such label.
        """
        # A few lines of entities can stand for more text than fits in memory.
        if "<!DOCTYPE" in config or "<!ENTITY" in config:
            raise ValueError("a labelling config has no document type; remove <!DOCTYPE ...>")
        try:
            root = ElementTree.fromstring(config)
        except ElementTree.ParseError as error:
            raise ValueError(f"the labelling config is not XML ({error})") from None
        colors: dict[str, str | None] = {}
        for tag in ("BrushLabels", "PolygonLabels", "RectangleLabels"):
            for label in root.findall(f".//{tag}/Label"):
                colors.setdefault(label.get("value", ""), label.get("background"))
        return cls.from_coco(
            {"id": number, "name": name, "color": _hex_color(color)}
            for number, (name, color) in enumerate(colors.items(), start=1)
        )

    def to_coco(self) -> list[dict[str, Any]]:
        """Return the `categories` list of a COCO panoptic file; `from_coco` reads it back."""
        return [
            {
                "id": c.id,
                "name": c.name,
                "isthing": int(c.isthing),
                "color": list(c.color),
                "supercategory": c.supercategory,
            }
            for c in self._items
        ]

    @property
    def things(self) -> tuple[Category, ...]:
        """Thing categories, in label order."""
        return tuple(c for c in self._items if c.isthing)

    @property
    def stuff(self) -> tuple[Category, ...]:
        """Stuff categories, in label order."""
        return tuple(c for c in self._items if not c.isthing)

    @property
    def num_things(self) -> int:
        """Number of thing categories: channels of the category branch."""
        return len(self.things)

    @property
    def num_stuff(self) -> int:
        """Number of stuff categories."""
        return len(self.stuff)

    def label(self, category_id: int) -> int:
        """Return the label of a data set id.

        Raises:
            KeyError: If the id is not in the data set's categories.
        """
        try:
            return self._labels[category_id]
        except KeyError:
            raise KeyError(
                f"category id {category_id} is not among the data set's categories "
                f"({len(self)} ids, {min(self._labels)} to {max(self._labels)})"
            ) from None

    def id(self, label: int) -> int:
        """Return the data set id of a label."""
        return self._items[label].id

    def __contains__(self, category_id: object) -> bool:
        """Whether a data set id is known (not a label, not a `Category`)."""
        return isinstance(category_id, Hashable) and category_id in self._labels

    def __getitem__(self, label: Any) -> Any:
        return self._items[label]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Categories) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        names = ", ".join(c.name for c in self._items[:6]) + (", ..." if len(self) > 6 else "")
        return f"Categories({self.num_things} things, {self.num_stuff} stuff: {names})"


def _category(entry: Mapping[str, Any]) -> Category:
    if not isinstance(entry, Mapping) or "id" not in entry or "name" not in entry:
        raise ValueError(f"category entry {short(entry)} needs 'id' and 'name'")
    try:
        number = int(entry["id"])
        color = entry.get("color")
        red, green, blue = _palette(number) if color is None else map(int, color)
        names = str(entry["name"]), str(entry.get("supercategory", ""))
        "".join(names).encode()  # half a character can be neither printed nor written
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"category entry {short(entry)}: {error}") from None
    if not 0 <= number < 2**63:
        raise ValueError(f"category id {number} must be from 0 to 2**63 - 1")
    if not 0 <= min(red, green, blue) <= max(red, green, blue) <= 255:
        raise ValueError(f"category id {number}: color {short(color)} must be three of 0..255")
    return Category(
        id=number,
        name=names[0],
        isthing=bool(entry.get("isthing", 1)),
        color=(red, green, blue),
        supercategory=names[1],
    )


def _hex_color(text: str | None) -> list[int] | None:
    """#rrggbb as numbers; None for names of colours, which get one of the palette."""
    return list(bytes.fromhex(text[1:])) if text and re.fullmatch("#[0-9a-fA-F]{6}", text) else None


def _palette(category_id: int) -> tuple[int, int, int]:
    """A bright, fixed colour for an id: hues a golden angle apart, so neighbours differ."""
    import colorsys

    hue = (category_id * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
