"""Objects of one training image pasted into another ("Simple Copy-Paste", arXiv 2012.07177).

Where a pasted object lies, everything is the donor's: pixels, object, crowd and stuff numbers.
Everywhere else everything stays as it was. So what was covered loses those pixels, and its box and
area follow, because both are measured on the maps afterwards (`unisolo.data.raw.to_sample`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from unisolo.data.raw import MAX_OBJECTS, Int16Map, RawSample, RawTarget, to_sample
from unisolo.data.transforms import TrainTransform
from unisolo.structures import Sample

__all__ = ["CopyPaste", "HasRawSamples", "paste_objects"]


_Number = TypeVar("_Number", np.uint8, np.int16)


class HasRawSamples(Protocol):
    """A data set that gives images before their transform."""

    cache: Sequence[RawSample] | None

    def __len__(self) -> int:
        """Return the number of images."""

    def read(self, index: int) -> RawSample:
        """Read one of them from disk."""


class CopyPaste:
    """A training transform that also pastes objects of another image of the data set.

    Both images go through the transform on their own first (the paper: each has its own jitter).
    The donor is drawn evenly from all images, the image itself among them. Of its objects a random
    number is pasted, drawn evenly from one to all. All that is random follows from torch's CPU
    generator, which the loader sets for each place in the order: batches do not depend on the
    number of workers, and a resumed run goes on with the same ones.

    Args:
        transform: The transform of every image.
        probability: Share of the images that objects are pasted into.
        source: Where donors come from; from its `cache` where it has one.

    Raises:
        ValueError: If the probability is not in 0..1.
    """

    def __init__(
        self, transform: TrainTransform, probability: float, source: HasRawSamples
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"copy_paste must lie between 0 and 1, got {probability}")
        self.transform = transform
        self.probability = probability
        self.source = source

    def __call__(self, raw: RawSample) -> Sample:
        """Return a randomly changed sample; two calls after the same torch seed agree.

        Raises:
            ImageError: If the donor's file cannot be used; likewise what else `read` raises.
        """
        changed = self.transform.change(raw)
        rng = np.random.default_rng(int(torch.randint(2**31 - 1, ())))
        if rng.random() < self.probability:
            donor = self.transform.change(self._read(int(rng.integers(len(self.source)))))
            changed = paste_objects(
                changed, donor, rng, min_object_area=self.transform.min_object_area
            )
        return to_sample(changed, min_object_area=self.transform.min_object_area)

    def _read(self, index: int) -> RawSample:
        cache = self.source.cache
        return self.source.read(index) if cache is None else cache[index]


def paste_objects(
    base: RawSample, donor: RawSample, rng: np.random.Generator, *, min_object_area: int = 1
) -> RawSample:
    """Paste a random part of the donor's objects.

    Objects keep their size and their places among each other. The donor's frame is laid over the
    base's at a random place: along each axis the shorter of the two lies wholly within the longer.
    Crowd regions and stuff are never pasted. Objects that overlap in the donor's layers go on
    overlapping; whatever of the base lies under a pasted pixel is hidden by it.

    Args:
        base: Image and target.
        donor: Likewise, of the same data set.
        rng: Chooses place and objects.
        min_object_area: Objects of the donor with fewer pixels are not pasted.

    Returns:
        The base with pasted objects behind its own in the order of numbers; the base's arrays are
        not changed. Without objects to paste, the base itself.

    Raises:
        ValueError: If one has no target, or stuff in only one of the two.
    """
    if base.target is None or donor.target is None:
        raise ValueError("copy_paste needs targets; open the data set with with_targets=True")
    if (base.target.stuff_map is None) != (donor.target.stuff_map is None):
        raise ValueError(
            f"copy_paste: only one of {base.meta.file_name} and {donor.meta.file_name} has a stuff "
            "map; both must come from one data set"
        )
    overlay = _overlay(base.image.shape[:2], donor.image.shape[:2], rng)
    rows, columns = overlay.of_donor
    numbers = donor.target.object_map[:, rows, columns]
    room = MAX_OBJECTS - len(base.target.labels)
    chosen = _choose(numbers, len(donor.target.labels), max(min_object_area, 1), room, rng)
    if not len(chosen):
        return base
    table = np.zeros(len(donor.target.labels) + 1, dtype=np.int16)
    table[chosen + 1] = len(base.target.labels) + 1 + np.arange(len(chosen))
    pasted = table[numbers]
    covered = (pasted > 0).max(axis=0)
    labels = np.concatenate([base.target.labels, donor.target.labels[chosen]])
    return replace(
        base,
        image=overlay.joined(base.image, donor.image, covered),
        target=RawTarget(labels, *_maps(base.target, donor.target, pasted, covered, overlay)),
    )


@dataclass(frozen=True)
class _Overlay:
    """The part that two frames have in common, as rows and columns of each."""

    of_base: tuple[slice, slice]
    of_donor: tuple[slice, slice]

    def joined(
        self,
        base: npt.NDArray[_Number],
        donor: npt.NDArray[_Number],
        covered: npt.NDArray[np.bool_],
    ) -> npt.NDArray[_Number]:
        """A copy of the base with the donor's values where the common part is covered."""
        result: npt.NDArray[_Number] = base.copy()
        result[self.of_base][covered] = donor[self.of_donor][covered]
        return result


def _overlay(base: tuple[int, ...], donor: tuple[int, ...], rng: np.random.Generator) -> _Overlay:
    of_base, of_donor = [], []
    for ours, theirs in zip(base, donor, strict=True):
        length = min(ours, theirs)
        start = int(rng.integers(abs(ours - theirs) + 1))
        inner, whole = slice(start, start + length), slice(0, length)
        of_base.append(inner if ours > theirs else whole)
        of_donor.append(whole if ours > theirs else inner)
    return _Overlay((of_base[0], of_base[1]), (of_donor[0], of_donor[1]))


def _choose(
    numbers: Int16Map, count: int, min_area: int, room: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Rising indices of the objects to paste, of those that show enough pixels."""
    areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    visible = np.flatnonzero(areas >= min_area)
    if not len(visible):
        return visible
    wanted = min(int(rng.integers(1, len(visible) + 1)), room)
    return np.sort(rng.permutation(visible)[:wanted])


def _maps(
    base: RawTarget,
    donor: RawTarget,
    pasted: Int16Map,
    covered: npt.NDArray[np.bool_],
    overlay: _Overlay,
) -> tuple[Int16Map, Int16Map, Int16Map | None]:
    """Object, crowd and stuff map; pasted is [D, h, w], with the numbers that objects get."""
    depth = max(len(base.object_map), len(pasted))
    object_map = np.zeros((depth, *base.crowd_map.shape), dtype=np.int16)
    object_map[: len(base.object_map)] = base.object_map
    rows, columns = overlay.of_base
    common = object_map[:, rows, columns]  # a view
    common[:, covered] = 0
    common[: len(pasted)] += pasted
    crowd_map = overlay.joined(base.crowd_map, donor.crowd_map, covered)
    if base.stuff_map is None or donor.stuff_map is None:
        return object_map, crowd_map, None
    return object_map, crowd_map, overlay.joined(base.stuff_map, donor.stuff_map, covered)
