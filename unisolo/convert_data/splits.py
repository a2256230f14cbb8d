"""Which image goes to which split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from unisolo.convert_data.source import Item, Log
from unisolo.data.coco_files import DatasetError

__all__ = ["assign_splits"]


def assign_splits(items: list[Item], val_share: float, seed: int, log: Log) -> list[Item]:
    """Give every image one split.

    The source's own splits stay. Images without one, and a source whose validation images are its
    training images or are missing, are shared out by chance: the same for the same seed.

    Args:
        items: Images in any order.
        val_share: Share of validation images where they are shared out.
        seed: Seed of the chance.
        log: Gets remarks.

    Returns:
        The images, each once, each with a split.

    Raises:
        DatasetError: If there is only one image to share out.
    """
    by_split: dict[str | None, dict[object, Item]] = {}
    for item in items:
        by_split.setdefault(item.split, {}).setdefault(_identity(item), item)
    train, val = by_split.pop("train", {}), by_split.pop("val", {})
    if train and val and train.keys() == val.keys():
        log.note("train and val were the same images: shared out anew")
        val = {}
    for key in train.keys() & val.keys():
        log.note("images in both train and val: left in val only")
        del train[key]
    shared = by_split.pop(None, {})
    if not val and not shared:
        shared, train = train, {}
    fixed = [
        replace(item, split=split)
        for split, members in (("train", train), ("val", val), *by_split.items())
        for item in members.values()
    ]
    return fixed + _share_out(list(shared.values()), val_share, seed)


def _share_out(items: list[Item], val_share: float, seed: int) -> list[Item]:
    if not items:
        return []
    if len(items) < 2:
        raise DatasetError("one image cannot be shared out to train and val; add a second one")
    count = min(max(1, round(val_share * len(items))), len(items) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    return [
        replace(item, split="val" if number in chosen else "train")
        for number, item in enumerate(items)
    ]


def _identity(item: Item) -> object:
    return item.image.resolve() if isinstance(item.image, Path) else item.image
