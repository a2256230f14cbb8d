from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from results import CATEGORIES, hard_masks, make

from unisolo.categories import Categories
from unisolo.interop.label_studio import label_studio_config


def names(categories: Categories) -> list[str]:
    return [category.name for category in categories]


def test_names() -> None:
    found = Categories.from_names(["zebra", "ant"])
    assert names(found) == ["zebra", "ant"]  # the label is the place
    assert [category.id for category in found] == [1, 2]
    for wrong, words in [([], "no categories"), (["a", "a"], "twice"), (["a", 5], "5 is no text")]:
        with pytest.raises(ValueError, match=words):
            Categories.from_names(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["names: [zebra, ant]", "names: {1: ant, 0: zebra}\nnc: 2"])
def test_yolo(tmp_path: Path, text: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    assert names(Categories.from_yolo(file)) == ["zebra", "ant"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: 5", "must list"),
        ("names: {1: ant, 2: zebra}", "map 0, 1, 2"),
        ("nc: 5", "must list"),
        ("names: [no, ant]", "False is no text"),
        ("[1]", "must hold a mapping"),
        ("names: [", "not usable YAML"),
        ("a: &x [1]\nnames: *x", "aliases"),
        ("[" * 999, "nested|YAML"),
    ],
)
def test_yolo_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "data.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"data.yaml.*({words})"):
        Categories.from_yolo(file)
    with pytest.raises(ValueError, match="no such YAML file"):
        Categories.from_yolo(tmp_path / "other.yaml")


def test_labelme(tmp_path: Path) -> None:
    file, other = tmp_path / "a.json", tmp_path / "b.json"
    file.write_text(json.dumps(make(hard_masks()).to_labelme("a.jpg")))
    other.write_text(json.dumps({"shapes": [{"label": "ant"}]}))
    assert names(Categories.from_labelme([file, other])) == ["ant", "cat", 'dog & "friend"']
    for text in ("{}", "[", '{"shapes": [5]}'):
        other.write_text(text)
        with pytest.raises(ValueError, match="not a LabelMe file"):
            Categories.from_labelme([other])
    with pytest.raises(ValueError, match="no categories"):
        Categories.from_labelme([])


def test_label_studio() -> None:
    found = Categories.from_label_studio(label_studio_config(CATEGORIES))
    assert names(found) == names(CATEGORIES)[:2]  # things
    assert [category.color for category in found] == [c.color for c in CATEGORIES.things]
    named = (
        "<View><PolygonLabels name='p'><Label value='x' background='red'/></PolygonLabels></View>"
    )
    assert names(Categories.from_label_studio(named)) == ["x"]
    with pytest.raises(ValueError, match="not XML"):
        Categories.from_label_studio("<View>")
    with pytest.raises(ValueError, match="no categories"):
        Categories.from_label_studio("<View/>")
    bomb = '<!DOCTYPE a [<!ENTITY b "cat"><!ENTITY c "&b;&b;">]><View><Label value="&c;"/></View>'
    with pytest.raises(ValueError, match="no document type"):
        Categories.from_label_studio(bomb)


def test_brush_is_small() -> None:
    """Runs, not pixels: an even picture of a megapixel is a few hundred bytes."""
    from unisolo.interop.label_studio import encode_brush

    assert len(encode_brush(np.ones((1000, 1000), bool))) < 300
