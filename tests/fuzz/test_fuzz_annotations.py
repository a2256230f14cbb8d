"""Annotation files and panoptic PNGs with arbitrary changes."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import both, byte_changes, changed_bytes, changed_tree, reads, tree_changes
from hypothesis import strategies as st
from tiny_coco import HEIGHT, MIXED, SPLIT, WIDTH, TinyCoco, save_ids, write_tiny_coco

from unisolo.data import CocoInstance, CocoPanoptic
from unisolo.data.coco_panoptic import read_segment_ids
from unisolo.tasks import TASKS

pytestmark = pytest.mark.filterwarnings("ignore")

KINDS: dict[str, Any] = {"panoptic": CocoPanoptic, "instance": CocoInstance}


class Data:
    """A data set on disk; hypothesis would print a `TinyCoco` with all its arrays."""

    def __init__(self, tiny: TinyCoco) -> None:
        self.tiny = tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Data:
    tiny = write_tiny_coco(tmp_path_factory.mktemp("fuzz"))
    # Categories are shared between the trees and with other tests.
    tiny.panoptic, tiny.instances = json.loads(json.dumps([tiny.panoptic, tiny.instances]))
    return Data(tiny)


def read_everything(name: str, root: Path) -> None:
    """All that training and evaluation ask of a data set, and whether the answers are sane."""
    dataset = KINDS[name].from_root(root, SPLIT)
    boxes = dataset.object_boxes()
    assert np.isfinite(boxes.boxes).all()
    for number in range(len(dataset)):
        sample = dataset[number]
        assert sample.image.shape == (3, *sample.meta.orig_size)
        target = sample.target
        assert (target.labels < dataset.categories.num_things).all()
        assert (target.labels >= 0).all()
        assert int(target.object_map.max()) == len(target)
        assert 0 <= int(target.crowd_map.max()) <= dataset.categories.num_things
        assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
        if target.stuff_map is not None:
            assert int(target.stuff_map.max()) <= dataset.categories.num_stuff
    truth = dataset.coco_ground_truth()
    assert {entry["image_id"] for entry in truth["annotations"]} <= set(dataset.image_ids)
    if dataset.categories.num_things:
        for evaluator in TASKS[name](dataset.categories).make_evaluators(dataset):
            evaluator.compute()


@both(st.tuples(st.sampled_from(["panoptic", "instance"]), tree_changes()), many=6000)
def check_tree(data: Data, case: Any) -> None:
    (name, changes), folder = case, data.tiny
    files = {"panoptic": folder.panoptic_file, "instance": folder.instances_file}
    tree = {"panoptic": folder.panoptic, "instance": folder.instances}[name]
    files[name].write_text(json.dumps(changed_tree(tree, changes)))
    try:
        reads(f"annotations, {name}", lambda: read_everything(name, folder.root), str(folder.root))
    finally:
        folder.panoptic_file.write_text(json.dumps(folder.panoptic))
        folder.instances_file.write_text(json.dumps(folder.instances))


TestTrees = check_tree


@both(st.tuples(st.sampled_from(["panoptic", "instance"]), byte_changes()), many=2000)
def check_text(data: Data, case: Any) -> None:
    (name, changes), folder = case, data.tiny
    files = {"panoptic": folder.panoptic_file, "instance": folder.instances_file}
    good = files[name].read_bytes()
    files[name].write_bytes(changed_bytes(good, changes))
    try:
        reads("annotations, text", lambda: read_everything(name, folder.root), str(folder.root))
    finally:
        files[name].write_bytes(good)


TestTexts = check_text


def resealed(png: bytes) -> bytes:
    """A PNG with the checksums of its chunks made right, as far as it can be followed."""
    done, at = bytearray(png[:8]), 8
    while at + 12 <= len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + size]
        done += struct.pack(">I", size) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return bytes(done)


@both(st.tuples(st.sampled_from(["bytes", "chunks", "ids"]), byte_changes()), many=4000)
def check_png(data: Data, case: Any) -> None:
    (kind, changes), folder = case, data.tiny
    path = folder.png(MIXED)
    good = path.read_bytes()
    if kind == "ids":
        ids = folder.pngs[MIXED].astype("<i4").tobytes()
        data = changed_bytes(ids, changes)[: len(ids)].ljust(len(ids), b"\1")
        save_ids(path, np.frombuffer(data, "<i4").reshape(HEIGHT, WIDTH) % 2**24)
    else:
        data = changed_bytes(good, changes)
        path.write_bytes(resealed(data) if kind == "chunks" else data)
    record = {"id": MIXED, "height": HEIGHT, "width": WIDTH}
    try:
        ids = reads("panoptic PNG", lambda: read_segment_ids(path, record), str(path))
        if ids is not None:
            assert ids.shape == (HEIGHT, WIDTH)
            assert 0 <= int(ids.min()) <= int(ids.max()) < 2**24
            dataset = CocoPanoptic.from_root(folder.root, SPLIT)
            place = dataset.image_ids.index(MIXED)
            reads("panoptic PNG, sample", lambda: dataset[place], str(path))
    finally:
        path.write_bytes(good)


TestPngs = check_png
