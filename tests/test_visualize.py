"""Pictures: what is painted where, checked pixel by pixel where that has a right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unisolo import Categories, Category, Result, Segment
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.visualize import draw_grid, draw_panoptic, draw_result, labels
from unisolo.visualize.fonts import category_name, font_for
from unisolo.visualize.regions import thing_color

CATEGORIES = Categories(
    [
        Category(1, "person"),
        Category(18, "dog"),
        Category(149, "road", isthing=False, color=(128, 64, 128)),
        Category(187, "sky", isthing=False, color=(70, 130, 180)),
    ]
)
PERSON, DOG, ROAD, SKY = range(4)
ORANGE, BLUE = thing_color(PERSON, 0), thing_color(DOG, 0)


def grey(height: int = 60, width: int = 90) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(90, 140, (height, width, 3), dtype=np.uint8)


def rectangle(size: tuple[int, int], box: Sequence[int]) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def result_of(
    masks: Sequence[np.ndarray],
    things: Sequence[int],
    *,
    size: tuple[int, int] = (60, 90),
    panoptic: dict[int, np.ndarray] | None = None,
    with_masks: bool = True,
) -> Result:
    """A result with these instances; `panoptic` gives stuff labels and their masks."""
    stack = torch.from_numpy(np.array(masks, dtype=bool).reshape(len(masks), *size))
    scores = torch.linspace(0.9, 0.4, len(masks)) if masks else torch.zeros(0)
    fields: dict[str, Any] = {}
    if panoptic is not None:
        seg = np.zeros(size, np.int32)
        parts = [(m, n) for n, m in panoptic.items()] + list(zip(masks, things, strict=True))
        segments = []
        for number, (mask, label) in enumerate(parts, start=1):
            seg[mask] = number
            category = CATEGORIES[label]
            segments.append(Segment(number, category.id, label, category.isthing, 0.5, 1))
        fields = {"panoptic_seg": torch.from_numpy(seg), "segments_info": tuple(segments)}
    return Result(
        image_size=size,
        categories=CATEGORIES,
        scores=scores,
        labels=torch.tensor(things, dtype=torch.int64),
        boxes=masks_to_boxes(stack),
        packed_masks=pack_bits(stack) if with_masks else None,
        **fields,
    )


def pixels(*arguments: Any, **options: Any) -> np.ndarray:
    return np.asarray(draw_result(*arguments, **options)).astype(int)


def blend(image: np.ndarray, color: Sequence[int], opacity: float) -> np.ndarray:
    return image * (1 - opacity) + np.array(color) * opacity


def test_nothing_found_leaves_the_image_alone() -> None:
    image = grey()
    void = result_of([], [], panoptic={})
    assert void.panoptic_seg is not None
    for result in (result_of([], []), void):
        picture = draw_result(image, result)
        assert picture.mode == "RGB"
        assert np.array_equal(np.asarray(picture), image)


@pytest.mark.parametrize("size", [(60, 90), (600, 700), (1300, 1400)])
def test_a_mask_is_blended_and_its_contour_is_one_to_two_pixels(size: tuple[int, int]) -> None:
    image = grey(*size)
    mask = rectangle(size, (20, 10, 50, 40))
    picture = pixels(image, result_of([mask], [PERSON], size=size), alpha=0.4, draw_labels=False)
    assert np.array_equal(picture[~mask], image[~mask])
    inside = rectangle(size, (22, 12, 48, 38))
    assert np.abs(picture[inside] - blend(image, ORANGE, 0.4)[inside]).max() <= 1
    edge = mask & ~rectangle(size, (21, 11, 49, 39))
    assert (picture[edge] == ORANGE).all()


def test_slanted_contours_are_soft() -> None:
    rows, columns = np.indices((60, 90))
    mask = (rows - 30) ** 2 + (columns - 45) ** 2 < 20**2
    image = np.full((60, 90, 3), 255, np.uint8)
    picture = pixels(image, result_of([mask], [DOG]), alpha=0, draw_labels=False)
    strength = (255 - picture[..., 0]) / (255 - BLUE[0])
    assert ((strength > 0.1) & (strength < 0.9)).sum() > 40  # in between
    assert (strength > 0.9).sum() > 40  # and a line nevertheless
    assert strength[30, 45] == strength[2, 2] == 0


def test_single_pixels_and_thin_lines_show() -> None:
    mask = rectangle((60, 90), (5, 5, 6, 6)) | rectangle((60, 90), (10, 20, 80, 21))
    picture = pixels(grey(), result_of([mask], [DOG]), draw_labels=False)
    assert (picture[mask] == BLUE).all()


def test_stuff_is_calm() -> None:
    image = grey()
    sky, road = rectangle((60, 90), (0, 0, 90, 30)), rectangle((60, 90), (0, 30, 90, 60))
    result = result_of([], [], panoptic={SKY: sky, ROAD: road})
    picture = pixels(image, result, alpha=0.6, draw_labels=False)
    for mask, label in ((sky, SKY), (road, ROAD)):  # no contour: the same to the very edge
        color = np.array(CATEGORIES[label].color)
        calm = color @ (0.299, 0.587, 0.114) * 0.5 + color * 0.5  # as bright, half as colourful
        expected = blend(image, calm, 0.6 * 0.55)
        assert np.abs(picture[mask] - expected[mask]).max() <= 1


def test_void_stays_as_it_is() -> None:
    image, dog = grey(), rectangle((60, 90), (30, 20, 60, 50))
    result = result_of([dog], [DOG], panoptic={})
    picture = pixels(image, result, draw_labels=False)
    assert np.array_equal(picture[~dog], image[~dog])
    assert (picture[dog] != image[dog]).any(axis=1).all()


def test_small_instances_lie_over_large_ones_in_any_order() -> None:
    large, small = rectangle((60, 90), (5, 5, 80, 55)), rectangle((60, 90), (30, 20, 50, 40))
    one = pixels(grey(), result_of([large, small], [PERSON, DOG]), draw_labels=False)
    other = pixels(grey(), result_of([small, large], [DOG, PERSON]), draw_labels=False)
    assert np.array_equal(one, other)
    assert (one[20, 30:50] == BLUE).all()


def test_instances_of_one_category_are_told_apart() -> None:
    left, right = rectangle((60, 90), (10, 10, 40, 50)), rectangle((60, 90), (40, 10, 70, 50))
    for panoptic in (None, {}):
        result = result_of([left, right], [DOG, DOG], panoptic=panoptic)
        picture = pixels(grey(), result, alpha=1.0, draw_labels=False)
        assert np.abs(picture[30, 25] - picture[30, 55]).sum() > 60
    colors = {thing_color(DOG, instance) for instance in range(5)}
    assert len(colors) == 5


def test_a_category_has_its_colour_in_every_picture() -> None:
    dog, person = rectangle((60, 90), (10, 10, 40, 50)), rectangle((60, 90), (50, 10, 80, 50))
    alone = pixels(grey(), result_of([dog], [DOG]), alpha=1.0, draw_labels=False)
    both = pixels(grey(), result_of([person, dog], [PERSON, DOG]), alpha=1.0, draw_labels=False)
    mapped = result_of([person, dog], [PERSON, DOG], panoptic={})
    seen = pixels(grey(), mapped, alpha=1.0, draw_labels=False)
    assert tuple(alone[30, 25]) == tuple(both[30, 25]) == tuple(seen[30, 25]) == BLUE


# Machado, Oliveira, Fernandes 2009, severity 1, linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.072175],
            [0.0193339, 0.119192, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1, 1.08883])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("vision", list(VISION))
def test_the_palette_is_safe_for_colour_blind_eyes(vision: str) -> None:
    colors = np.array([thing_color(label, 0) for label in range(133)]) / 255
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    seen = lab(np.clip(linear @ np.array(VISION[vision]).T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + 1000 * np.eye(133)
    assert apart[:12, :12].min() > 16
    assert apart[:21, :21].min() > 15
    assert np.diagonal(apart, 1).min() > 15  # neighbours in a long list


def test_many_categories_have_valid_colours() -> None:
    assert len({thing_color(label, 0) for label in range(63)}) == 63
    for label, instance in ((0, 999), (1202, 0), (1202, 7)):
        assert all(0 <= value <= 255 for value in thing_color(label, instance))


def scene() -> tuple[np.ndarray, Result]:
    size = (200, 300)
    dog, person = rectangle(size, (20, 90, 140, 190)), rectangle(size, (120, 100, 280, 180))
    person &= ~rectangle(size, (200, 100, 280, 120))  # so that its box is not its contour
    sky = rectangle(size, (0, 0, 300, 80))
    return grey(*size), result_of([dog, person], [DOG, PERSON], size=size, panoptic={SKY: sky})


@pytest.mark.parametrize("panoptic", [True, False])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.9),
        ("draw_boxes", True),
        ("draw_labels", False),
        ("draw_scores", False),
        ("scale", 2),
    ],
)
def test_every_argument_changes_the_picture(panoptic: bool, name: str, value: Any) -> None:
    image, result = scene()
    plain = draw_result(image, result, panoptic=panoptic)
    changed = draw_result(image, result, panoptic=panoptic, **{name: value})
    assert changed.size != plain.size or changed.tobytes() != plain.tobytes()
    seg, segments = result.panoptic_seg, result.segments_info
    if panoptic:
        again = draw_panoptic(image, seg, segments, CATEGORIES, **{name: value})
        assert again.tobytes() == changed.tobytes()


def test_the_map_is_drawn_where_there_is_one() -> None:
    image, result = scene()
    by_map, by_instances = (pixels(image, result, panoptic=choice) for choice in (True, False))
    assert np.array_equal(pixels(image, result), by_map)
    assert not np.array_equal(by_map, by_instances)
    plain = result_of([rectangle((60, 90), (5, 5, 50, 50))], [DOG])
    assert (
        draw_result(grey(), plain).tobytes() == draw_result(grey(), plain, panoptic=False).tobytes()
    )
    with pytest.raises(ValueError, match="no panoptic map"):
        draw_result(grey(), plain, panoptic=True)


def test_boxes_are_half_open_and_always_drawn_for_detection() -> None:
    mask = rectangle((60, 90), (20, 10, 50, 40))
    for result, options in (
        (result_of([mask], [DOG], with_masks=False), {}),
        (result_of([mask], [DOG]), {"draw_boxes": True, "alpha": 0.0}),
    ):
        picture = pixels(grey(), result, draw_labels=False, **options)
        frame = mask & ~rectangle((60, 90), (21, 11, 49, 39))
        assert (picture[frame] == BLUE).all()
        assert np.array_equal(picture[~mask], grey()[~mask])


def test_ground_truth_is_drawn_like_a_prediction() -> None:
    image, result = scene()
    assert result.panoptic_seg is not None
    ids = np.array([0, 5, 256**3 - 1, 70_000])[result.panoptic_seg.numpy()]
    truth = [
        {"id": int(ids[result.panoptic_seg.numpy() == s.id][0]), "category_id": s.category_id}
        for s in result.segments_info or ()
    ]
    ours = draw_panoptic(image, ids, truth, CATEGORIES, draw_labels=False)
    assert ours.tobytes() == draw_result(image, result, draw_labels=False).tobytes()
    named = draw_panoptic(image, torch.from_numpy(ids), truth, CATEGORIES)
    assert named.tobytes() != ours.tobytes()
    with_score = draw_panoptic(image, ids, [{**s, "score": 0.5} for s in truth], CATEGORIES)
    assert with_score.tobytes() == draw_result(image, result).tobytes() != named.tobytes()
    crowd = draw_panoptic(image, ids, [{**s, "iscrowd": 1} for s in truth], CATEGORIES)
    assert crowd.tobytes() != named.tobytes()
    absent = [*truth, {"id": 9, "category_id": 18}]  # listed, but without a pixel
    assert draw_panoptic(image, ids, absent, CATEGORIES).tobytes() == named.tobytes()
    void = draw_panoptic(image, ids, [], CATEGORIES)
    assert np.array_equal(np.asarray(void), image)


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"id": 1, "category_id": 4}, "segment 1: category id 4 is not"),
        ({"id": 0, "category_id": 1}, "ids of segments must be in 1"),
        ({"id": 256**3, "category_id": 1}, "ids of segments must be in 1"),
    ],
)
def test_wrong_segments_are_named(segment: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_panoptic(grey(), np.ones((60, 90), int), [segment], CATEGORIES)


def test_wrong_maps_are_named() -> None:
    with pytest.raises(ValueError, match="ids of segments"):
        draw_panoptic(grey(), np.full((60, 90), -1), [], CATEGORIES)
    with pytest.raises(ValueError, match=r"60 x 90 .* the panoptic map 90 x 60"):
        draw_panoptic(grey(), np.zeros((90, 60), int), [], CATEGORIES)


def test_images_may_be_arrays_or_pictures_and_are_not_changed() -> None:
    mask = rectangle((60, 90), (20, 10, 50, 40))
    result, image = result_of([mask], [DOG]), grey()
    picture = Image.fromarray(image)
    expected = draw_result(image, result).tobytes()
    assert draw_result(picture, result).tobytes() == expected
    assert result.plot(image).tobytes() == expected
    assert np.array_equal(image, grey())
    assert np.array_equal(np.asarray(picture), grey())
    one = draw_result(image[..., 0], result)
    assert one.tobytes() == draw_result(picture.getchannel(0), result).tobytes()
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6
    assert draw_result(turned, result).tobytes() == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (grey(61, 90), "the image is 61 x 90 .* the result 60 x 90"),
        (grey().astype(np.float32), r"float32 \[60, 90, 3\]"),
        (np.zeros((60, 90, 4), np.uint8), r"uint8 \[60, 90, 4\]"),
        (np.zeros((0, 90, 3), np.uint8), "no pixels"),
    ],
)
def test_wrong_images_are_named(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_result(image, result_of([], []))


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"alpha must be in 0\.\.1, got 1.5"):
        draw_result(grey(), result_of([], []), alpha=1.5)
    with pytest.raises(ValueError, match=r"scale must be .* got 0"):
        draw_result(grey(), result_of([], []), scale=0)


def test_scale_enlarges_masks_with_the_image() -> None:
    mask = rectangle((60, 90), (20, 10, 50, 40))
    picture = pixels(
        np.full((60, 90, 3), 255, np.uint8),
        result_of([mask], [DOG]),
        alpha=1.0,
        draw_labels=False,
        scale=3,
    )
    assert picture.shape == (180, 270, 3)
    painted = (picture == BLUE).all(axis=2)
    inner, outer = (
        rectangle((180, 270), (64, 34, 146, 116)),
        rectangle((180, 270), (60, 30, 150, 120)),
    )
    assert painted[inner].all()
    assert not painted[~outer].any()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (3, 300), (300, 3)])
def test_tiny_images(size: tuple[int, int]) -> None:
    whole = np.ones(size, bool)
    for panoptic in (None, {SKY: whole}):
        result = result_of([whole, whole], [DOG, PERSON], size=size, panoptic=panoptic)
        assert draw_result(grey(*size), result, draw_boxes=True).size == size[::-1]


def test_a_large_image_with_200_objects() -> None:
    size, rng = (3000, 4000), np.random.default_rng(0)
    seg = np.zeros(size, np.int32)
    segments = []
    for number in range(1, 201):
        y, x = rng.integers(0, (2700, 3700))
        seg[y : y + 250, x : x + 250] = number
        segments.append({"id": number, "category_id": 18, "score": 0.5})
    picture = np.asarray(draw_panoptic(np.zeros((*size, 3), np.uint8), seg, segments, CATEGORIES))
    assert (picture[seg > 0].any(axis=1)).all()


def test_boxes_need_not_come_from_the_masks() -> None:
    mask = rectangle((60, 90), (20, 10, 50, 40))
    result = result_of([mask], [DOG])
    boxes = torch.tensor([[0.4, 0.2, 70.6, 55.0]])
    moved = Result(**{**vars(result), "boxes": boxes})
    assert np.array_equal(
        pixels(grey(), result, draw_labels=False), pixels(grey(), moved, draw_labels=False)
    )


def placed(
    monkeypatch: pytest.MonkeyPatch, image: np.ndarray, result: Result, **options: Any
) -> list[tuple[str, tuple[int, int, int, int]]]:
    found: list[Any] = []
    monkeypatch.setattr(
        labels, "_draw_pill", lambda canvas, label, place, *_: found.append((label.text, place))
    )
    draw_result(image, result, **options)
    return found


def test_labels_say_name_and_score_and_stuff_only_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    image, result = scene()
    assert [text for text, _ in placed(monkeypatch, image, result)] == [
        "dog 0.50",
        "person 0.50",
        "sky",
    ]
    texts = [text for text, _ in placed(monkeypatch, image, result, panoptic=False)]
    assert texts == ["dog 0.90", "person 0.40"]


def test_instances_may_lie_over_the_maps_stuff_with_texts_and_shades(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, result = scene()
    options: dict[str, Any] = {"panoptic": "stuff", "texts": ["dog #7", "person #2"]}
    picture = pixels(image, result, draw_labels=False, **options)
    by_map = pixels(image, result, draw_labels=False)
    sky = result.panoptic_seg.numpy() == 1  # type: ignore[union-attr]
    assert np.array_equal(picture[sky], by_map[sky])
    assert not np.array_equal(picture, by_map)  # the instances overlap, the map's things do not
    texts = [text for text, _ in placed(monkeypatch, image, result, **options)]
    assert texts == ["dog #7 0.90", "person #2 0.40", "sky"]
    again = pixels(image, result, draw_labels=False, **options, shades=[5, 10])
    assert np.array_equal(again, picture)  # five shades, then the first again
    other = pixels(image, result, draw_labels=False, **options, shades=[1, 0])
    assert not np.array_equal(other, picture)


def test_texts_and_shades_are_one_for_each_instance_drawn() -> None:
    image, result = scene()
    with pytest.raises(ValueError, match="1 texts for 2 instances"):
        draw_result(image, result, panoptic=False, texts=["dog"])
    with pytest.raises(ValueError, match="3 shades for 2 instances"):
        draw_result(image, result, panoptic="stuff", shades=[1, 2, 3])
    with pytest.raises(ValueError, match='give panoptic=False or "stuff"'):
        draw_result(image, result, texts=["a", "b"])


def test_names_that_no_font_can_write_become_ids() -> None:
    for name in ("dog", "Straße", "tête-à-tête", "θάλασσα"):  # ß and θ: not in Pillow's own font
        assert category_name(Category(5, name)) == name or font_for(name, 10) is None
    for name in ("\U0010fffe", "a\nb", "\u0378"):  # never assigned, unprintable, unassigned
        assert category_name(Category(5, name)) == "category 5"
    assert font_for("dog 0.90", 10) is not None
    image = grey(200, 300)
    text = draw_result(image, named(["\U0010fffe"]), draw_scores=False)
    assert text.tobytes() == draw_result(image, named(["category 1"]), draw_scores=False).tobytes()
    given = draw_result(image, named(["x"]), draw_scores=False, texts=["\U0010fffe"])
    assert given.tobytes() == draw_result(image, named(["?"]), draw_scores=False).tobytes()


def test_long_names_are_cut_short_and_keep_their_score(monkeypatch: pytest.MonkeyPatch) -> None:
    image = grey(200, 300)
    ((text, (left, _, right, _)),) = placed(monkeypatch, image, named(["very " * 40]))
    assert text.startswith("very very")
    assert text.endswith("... 0.90")
    assert right - left <= 150


def named(names: Sequence[str]) -> Result:
    """One large instance of each name, in rows."""
    size, height = (200, 300), 200 // len(names)
    categories = Categories([Category(n + 1, name) for n, name in enumerate(names)])
    masks = [
        rectangle(size, (5, height * n + 5, 295, height * (n + 1) - 5)) for n in range(len(names))
    ]
    return replace(
        result_of(masks, [0] * len(names), size=size),
        categories=categories,
        labels=torch.arange(len(names)),
    )


def test_labels_lie_on_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (400, 500)
    ring = rectangle(size, (50, 50, 450, 350)) & ~rectangle(size, (50, 50, 300, 250))  # an L
    ((_, (left, top, right, bottom)),) = placed(
        monkeypatch, grey(*size), result_of([ring], [DOG], size=size)
    )
    assert ring[top:bottom, left:right].all()


def test_a_label_does_not_hide_a_small_object(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (400, 500)
    ball = rectangle(size, (200, 200, 212, 212))
    ((_, place),) = placed(monkeypatch, grey(*size), result_of([ball], [DOG], size=size))
    assert not ball[place[1] : place[3], place[0] : place[2]].any()
    near = rectangle(size, (place[0] - 4, place[1] - 4, place[2] + 4, place[3] + 4))
    assert (near & ball).any()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 290), st.integers(0, 190), st.integers(1, 200), st.integers(1, 200)
        ),
        max_size=40,
    )
)
def test_labels_stay_in_the_picture_apart_from_each_other(
    boxes: list[tuple[int, int, int, int]],
) -> None:
    size = (200, 300)
    masks = [rectangle(size, (x, y, min(x + w, 300), min(y + h, 200))) for x, y, w, h in boxes]
    result = result_of(masks, [n % 2 for n in range(len(masks))], size=size)
    with pytest.MonkeyPatch.context() as monkeypatch:
        places = [place for _, place in placed(monkeypatch, grey(*size), result)]
    for left, top, right, bottom in places:
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
    covered = sum(rectangle(size, place).astype(int) for place in places)
    assert np.max(covered, initial=0) <= 1
    assert np.mean(covered) <= 0.2
    for mask in masks:  # no label touches a thing smaller than itself
        for left, top, right, bottom in places:
            smaller = mask.sum() < (right - left) * (bottom - top)
            assert not (smaller and mask[top:bottom, left:right].any())


@given(
    st.lists(
        st.tuples(st.integers(0, 80), st.integers(0, 50), st.integers(1, 60), st.integers(1, 60)),
        max_size=12,
    ),
    st.sampled_from([0.0, 0.5]),
    st.booleans(),
)
def test_only_masks_contours_and_labels_change_and_always_alike(
    boxes: list[tuple[int, int, int, int]], alpha: float, in_map: bool
) -> None:
    masks = [rectangle((60, 90), (x, y, min(x + w, 90), min(y + h, 60))) for x, y, w, h in boxes]
    result = result_of(masks, [n % 2 for n in range(len(masks))], panoptic={} if in_map else None)
    image = grey()
    with pytest.MonkeyPatch.context() as monkeypatch:
        places = [place for _, place in placed(monkeypatch, image, result)]
    allowed = np.zeros((60, 90), bool)
    for mask in masks:
        allowed |= mask
        if alpha == 0:  # the inside keeps its pixels too
            inside = mask.copy()
            for shift in range(-3, 4):
                for axis in (0, 1):
                    inside &= np.roll(mask, shift, axis)
            plain = pixels(image, result_of([mask], [DOG]), alpha=0.0, draw_labels=False)
            assert np.array_equal(plain[inside], image[inside])
    for left, top, right, bottom in places:
        allowed[top:bottom, left:right] = True
    picture = pixels(image, result, alpha=alpha)
    assert np.array_equal(picture[~allowed], image[~allowed])
    assert np.array_equal(picture, pixels(image, result, alpha=alpha))


def test_a_label_between_objects_hides_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (200, 300)  # a chessboard of small things: labels have no place but the gaps
    dots = [(x, y, x + 12, y + 12) for x in range(4, 290, 16) for y in range(4, 190, 16)]
    masks = [rectangle(size, box) for box in dots]
    result = result_of(masks, [DOG] * len(masks), size=size)
    assert placed(monkeypatch, grey(*size), result) == []
    ((_, place),) = placed(monkeypatch, grey(*size), result[[0]])
    assert not masks[0][place[1] : place[3], place[0] : place[2]].any()


def test_letters_are_smaller_in_a_crowd_and_never_below_ten_pixels() -> None:
    assert labels.font_size((640, 480)) == labels.font_size((640, 480), 5) == 11
    assert labels.font_size((4000, 3000)) == 56
    assert labels.font_size((4000, 3000), 200) == 34
    assert labels.font_size((4000, 3000), 10_000) == 28
    assert labels.font_size((40, 30), 500) == 10


def test_a_label_is_white_on_dark() -> None:
    image = np.full((200, 300, 3), 255, np.uint8)
    mask = rectangle((200, 300), (20, 20, 280, 180))
    result = result_of([mask], [PERSON], size=(200, 300))
    picture = pixels(image, result, alpha=0.5)
    changed = (picture != pixels(image, result, alpha=0.5, draw_labels=False)).any(axis=2)
    brightness = picture.mean(axis=2)[changed]
    assert (brightness > 220).sum() > 30
    assert (brightness < 110).sum() > 300


def test_a_grid_places_pictures_row_by_row() -> None:
    colors = ["red", "lime", "blue"]
    sheet = draw_grid([Image.new("RGB", (10, 6), color) for color in colors], columns=2, gap=4)
    assert sheet.size == (2 * 10 + 3 * 4, 2 * 6 + 3 * 4)
    assert [sheet.getpixel(at) for at in ((4, 4), (18, 4), (4, 14), (18, 14), (3, 3), (14, 4))] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3, (255,) * 3, (255,) * 3,
    ]  # fmt: skip


def test_a_grid_centres_pictures_of_several_sizes_and_kinds() -> None:
    small, large = np.zeros((2, 4), np.uint8), Image.new("L", (8, 10), 50)
    sheet = np.asarray(draw_grid([small, large], columns=5, gap=0))
    assert sheet.shape == (10, 16, 3)
    assert (sheet[4:6, 2:6] == 0).all()
    assert (sheet[:, 8:] == 50).all()
    assert (sheet[:4, :8] == 255).all()


def test_a_grid_needs_pictures_and_columns() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        draw_grid([])
    with pytest.raises(ValueError, match="columns must be at least 1"):
        draw_grid([grey()], columns=0)
    with pytest.raises(ValueError, match="gap at least 0"):
        draw_grid([grey()], gap=-1)
