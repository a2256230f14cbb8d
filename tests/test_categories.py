from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisolo import Categories, Category

ENTRIES = st.lists(
    st.tuples(st.integers(0, 10**6), st.booleans()),
    min_size=1,
    max_size=30,
    unique_by=lambda pair: pair[0],
).map(
    lambda pairs: [
        {"id": number, "name": f"name {number}", "isthing": int(thing)} for number, thing in pairs
    ]
)


@given(ENTRIES)
def test_labels_are_contiguous_things_first_and_ids_come_back(entries: list[dict]) -> None:
    categories = Categories.from_coco(entries)
    assert [categories.label(categories.id(label)) for label in range(len(categories))] == list(
        range(len(categories))
    )
    things = [category.isthing for category in categories]
    assert things == sorted(things, reverse=True)
    assert categories.num_things == sum(entry["isthing"] for entry in entries)
    assert categories.num_things + categories.num_stuff == len(entries)
    assert {category.id for category in categories} == {entry["id"] for entry in entries}
    assert Categories.from_coco(categories.to_coco()) == categories


def test_colours_of_the_file_are_kept_and_missing_ones_are_fixed() -> None:
    given_color = {"id": 1, "name": "a", "color": [1, 2, 3]}
    first = Categories.from_coco([given_color, {"id": 2, "name": "b"}])
    second = Categories.from_coco([{"id": 2, "name": "b"}])
    assert first[0].color == (1, 2, 3)
    assert first[1].color == second[0].color


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="id 3 appears twice"):
        Categories([Category(3, "a"), Category(3, "b")])
    with pytest.raises(ValueError, match="no categories"):
        Categories([])
    with pytest.raises(ValueError, match="needs 'id' and 'name'"):
        Categories.from_coco([{"id": 3}])
    with pytest.raises(KeyError, match="category id 4"):
        Categories([Category(3, "a")]).label(4)
    assert 3 in Categories([Category(3, "a")])
    assert 0 not in Categories([Category(3, "a")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"id": -1}, "from 0 to"),
        ({"id": 10**400}, "must be|too large"),
        ({"id": "one"}, "invalid literal"),
        ({"id": None}, "category entry"),
        ({"name": "\ud800"}, "encode"),
        ({"color": [1, 2]}, "category entry"),
        ({"color": "red"}, "category entry"),
        ({"color": [0, 0, 256]}, r"color \[0, 0, 256\] must be three of 0\.\.255"),
        ({"color": [10**400] * 3}, "must be three of"),
    ],
)
def test_values_of_another_kind_name_their_entry(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Categories.from_coco([{"id": 1, "name": "cat", **change}])
    assert [] not in Categories.from_coco([{"id": 1, "name": "cat"}])
