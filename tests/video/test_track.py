"""Track ids: what they promise on small cases, and how well they hold on moving shapes."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from identity import Identity, best_pairing, matched
from moving import Frame, clip, result_of

from unisolo import Categories, Category, Result
from unisolo.ops.boxes import masks_to_boxes
from unisolo.ops.masks import pack_bits
from unisolo.video import Tracker

CATEGORIES = Categories([Category(1, "ball"), Category(2, "box")])
SIZE = (60, 90)


def frame(
    *objects: tuple[int, int, int, int],
    labels: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    with_masks: bool = True,
    size: tuple[int, int] = SIZE,
) -> Result:
    """A result with rectangles (left, top, right, bottom) as masks."""
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, objects, strict=True):
        mask[top:bottom, left:right] = True
    count = len(objects)
    return Result(
        image_size=size,
        categories=CATEGORIES,
        scores=torch.tensor(scores or [0.9] * count, dtype=torch.float32),
        labels=torch.tensor(labels or [0] * count, dtype=torch.int64),
        boxes=masks_to_boxes(masks),
        packed_masks=pack_bits(masks) if with_masks else None,
    )


def ids_of(frames: Sequence[Result], **options: Any) -> list[list[int]]:
    tracker = Tracker(**options)
    return [tracker.update(result).tolist() for result in frames]


def test_nothing_gives_no_ids() -> None:
    tracker = Tracker()
    for result in (frame(), frame((3, 3, 9, 9)), frame(), frame((4, 3, 10, 9))):
        ids = tracker.update(result)
        assert ids.dtype == torch.int64
        assert ids.tolist() == [1] * len(result)


def test_one_pixel_and_the_whole_image() -> None:
    frames = [frame((5 + n, 7, 6 + n, 8), (0, 0, 90, 60), labels=[0, 1]) for n in range(3)]
    assert ids_of(frames) == [[1, 2]] * 3


@pytest.mark.parametrize("with_masks", [True, False])
def test_ids_follow_objects_whatever_their_order(with_masks: bool) -> None:
    frames = []
    for n in range(6):
        left, right = (5 + 4 * n, 5, 25 + 4 * n, 25), (60 - 4 * n, 30, 80 - 4 * n, 50)
        objects = (left, right) if n % 2 == 0 else (right, left)
        frames.append(frame(*objects, with_masks=with_masks))
    assert ids_of(frames) == [[1, 2], [2, 1]] * 3


def test_categories_do_not_mix() -> None:
    frames = [frame((5, 5, 25, 25)), frame((5, 5, 25, 25), labels=[1]), frame((5, 5, 25, 25))]
    assert ids_of(frames) == [[1], [2], [1]]


def test_masks_tell_apart_what_boxes_cannot() -> None:
    def cross(first: int, second: int) -> Result:
        wide, tall = (10, 28, 80, 32), (43, 2, 47, 58)
        outer = frame((10, 2, 80, 58), (10, 2, 80, 58))
        masks = torch.zeros(2, *SIZE, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(
            masks, ((wide, tall)[first], (wide, tall)[second]), strict=True
        ):
            mask[top:bottom, left:right] = True
        return Result(**{**vars(outer), "packed_masks": pack_bits(masks)})

    assert ids_of([cross(0, 1), cross(1, 0)]) == [[1, 2], [2, 1]]


def test_a_fast_object_is_followed_without_overlap() -> None:
    frames = [frame((5 + 9 * n, 20, 13 + 9 * n, 28)) for n in range(8)]
    assert ids_of(frames) == [[1]] * 8
    assert ids_of(frames, reach=0.0) == [[n] for n in range(1, 9)]


def test_an_object_behind_another_comes_out_with_its_id() -> None:
    frames = [frame((5 + 3 * n, 20, 17 + 3 * n, 32)) for n in range(5)]
    frames += [frame() for _ in range(8)]
    frames += [frame((5 + 3 * n, 20, 17 + 3 * n, 32)) for n in range(13, 16)]
    assert ids_of(frames)[-3:] == [[1]] * 3
    assert ids_of(frames, max_age=8)[-3:] == [[1]] * 3
    assert ids_of(frames, max_age=7)[-3:] == [[2]] * 3


def test_two_that_pass_through_one_another_keep_their_ids() -> None:
    frames = []
    for n in range(20):
        x, y = 5 + 3 * n, 71 - 3 * n
        behind = (y, 22, y + 12, 34)
        front = (x, 20, x + 12, 32)
        hidden = abs(x - y) < 6
        frames.append(frame(front) if hidden else frame(front, behind))
    found = ids_of(frames)
    assert all(ids == [1, 2][: len(ids)] for ids in found), found


def test_low_scores_get_no_track_and_empty_masks_neither() -> None:
    result = frame((5, 5, 25, 25), (40, 5, 40, 5), (40, 5, 60, 25), scores=[0.2, 0.9, 0.5])
    assert ids_of([result, result], min_score=0.5) == [[0, 0, 1], [0, 0, 1]]


def test_a_crowd_of_200_gets_200_ids_and_keeps_them() -> None:
    size = (300, 450)
    places = [(x, y, x + 10, y + 10) for x in range(5, 440, 22) for y in range(5, 290, 29)]
    rng = np.random.default_rng(0)
    order = rng.permutation(len(places)).tolist()
    moved = [tuple(side + 3 for side in places[n]) for n in order]
    first, second = ids_of([frame(*places, size=size), frame(*moved, size=size)])  # type: ignore[arg-type]
    assert len(places) == 200
    assert first == list(range(1, 201))
    assert second == [first[n] for n in order]


def test_ids_start_again_after_reset_and_sizes_may_not_change() -> None:
    tracker = Tracker()
    tracker.update(frame((5, 5, 25, 25)))
    with pytest.raises(ValueError, match=r"a frame of \(30, 30\) after frames of \(60, 90\)"):
        tracker.update(frame((5, 5, 25, 25), size=(30, 30)))
    tracker.reset()
    assert tracker.update(frame((5, 5, 25, 25), size=(30, 30))).tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_iou": 0.0}, "min_iou must be above 0"),
        ({"min_score": 1.5}, r"min_score must be in 0\.\.1"),
        ({"max_age": -1}, "may not be negative"),
        ({"reach": -1.0}, "may not be negative"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tracker(**options)


def test_the_best_pairing_is_the_best() -> None:
    assert best_pairing(Counter()) == 0
    together = Counter({(1, 1): 5, (1, 2): 6, (2, 2): 5, (3, 9): 1})
    assert best_pairing(together) == 5 + 5 + 1
    masks = np.zeros((3, 4, 4), bool)
    masks[0, :2], masks[1, :3], masks[2, 3:] = True, True, True
    assert matched({7: masks[0], 8: masks[2]}, [masks[1], masks[2]]) == [(8, 1), (7, 0)]


@functools.cache
def frames_of(seed: int, count: int) -> list[Frame]:
    return list(clip(seed, count))


def scores_on(
    seed: int, count: int, every: int = 1, **noise: Any
) -> tuple[float, int, list[list[int]]]:
    """IDF1, switches, and the ids of every frame, for a clip's noisy truth."""
    rng, tracker, identity = np.random.default_rng(seed), Tracker(), Identity()
    found = []
    for number, shown in enumerate(frames_of(seed, count)):
        if number % every == 0:
            result, identities = result_of(shown, rng, **noise)
            ids = tracker.update(result).tolist()
            identity.add(len(shown.masks), ids, list(zip(identities, ids, strict=True)))
            found.append(ids)
    return identity.idf1(), identity.switches, found


def test_ids_hold_on_moving_shapes_with_some_missing_and_ragged_masks() -> None:
    # One in ten is missing, so no tracker can do better than 2 * 0.9 / (1 + 0.9) = 0.947.
    idf1, switches, found = scores_on(0, 100, drop=0.1, jitter=2)
    assert idf1 > 0.9
    assert switches <= 6
    assert all(len(ids) == len(set(ids)) for ids in found)
    assert scores_on(0, 100, drop=0.1, jitter=2)[2] == found  # the same every time


@pytest.mark.slow
def test_identity_scores_of_the_docs() -> None:
    """docs/video.md has these numbers, from `pytest tests/video/test_track.py -m slow -s`."""
    noise = {"drop": 0.1, "jitter": 2}
    for name, floor, most, options in (
        ("truth", 0.98, 5, {}),
        ("one in ten missing, ragged masks", 0.90, 20, noise),
        ("the same at a third of the frame rate", 0.85, 20, {"every": 3, **noise}),
        ("the same at a sixth of the frame rate", 0.82, 30, {"every": 6, **noise}),
        ("boxes alone, ragged", 0.90, 25, {"with_masks": False, **noise}),
    ):
        scores = [scores_on(seed, 300, **options)[:2] for seed in range(3)]
        print(name, [(round(100 * idf1, 1), switches) for idf1, switches in scores])
        assert min(idf1 for idf1, _ in scores) > floor, name
        assert max(switches for _, switches in scores) <= most, name
