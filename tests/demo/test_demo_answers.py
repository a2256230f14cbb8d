"""What the page shows and gives away is what `Predictor` says, from one forward pass."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import CATEGORIES, lively_model

from unisolo import Predictor
from unisolo.demo.answers import Answers, without
from unisolo.demo.choice import Choice
from unisolo.demo.find import find_checkpoint
from unisolo.demo.hover import hover_map
from unisolo.demo.kept import PictureGone, Store
from unisolo.results import Result, Segment

SKY = 92


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(lively_model())


@pytest.fixture
def answers(predictor: Predictor) -> Answers:
    return Answers(predictor, Store())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def download(answers: Answers, key: str, name: str) -> tuple[bytes, str]:
    kept = answers.store.get(key)
    return answers.file(kept, kept.shown, name)


def choice(task: str, score: float = 0.05) -> Choice:
    return Choice(task, score, 0.5, 0.05, 0.5, 16)


def test_one_forward_and_the_same_files_as_predictor(
    answers: Answers, predictor: Predictor, photo: Path
) -> None:
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    handle = predictor.model.register_forward_hook(count)
    key = answers.take(photo, "photo.png")
    found = {}
    for task, score in (("panoptic", 0.05), ("instance", 0.1), ("detection", 0.05)):
        page = answers.show(key, choice(task, score))
        found[task] = (page, {f["file"]: download(answers, key, f["file"]) for f in page["files"]})
    handle.remove()
    assert forwards == answers.forwards == 1

    for task, (page, files) in found.items():
        score = 0.1 if task == "instance" else 0.05
        panoptic = {"panoptic_score_threshold": score} if task == "panoptic" else {}
        expected = Predictor(predictor.model, task=task).predict(
            photo, score_threshold=score, candidate_threshold=0.05, **panoptic
        )
        assert len(expected) > 0
        coco, kind = files["coco.json"]
        assert json.loads(coco) == expected.to_coco("photo") and kind == "application/json"
        overlay = Image.open(io.BytesIO(files["overlay.png"][0]))
        assert np.array_equal(overlay, expected.plot(Image.open(photo)))
        if task == "panoptic":
            rgb, annotation = expected.to_panoptic("photo", file_name="photo_panoptic.png")
            assert np.array_equal(Image.open(io.BytesIO(files["panoptic.png"][0])), rgb)
            assert json.loads(files["panoptic.json"][0]) == annotation
            assert len(page["segments"]) == len(annotation["segments_info"])
        else:
            assert set(files) == {"overlay.png", "coco.json"}
            assert len(page["segments"]) == len(expected)


def test_a_large_picture_is_shown_small_and_given_away_whole(
    answers: Answers, predictor: Predictor, tmp_path: Path
) -> None:
    path = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((1600, 200)).save(path)
    key = answers.take(path, "wide.png")
    page = answers.show(key, choice("panoptic"))
    kept = answers.store.get(key)
    assert page["size"] == [200, 1600] and kept.shown.result.image_size == (160, 1280)
    assert Image.open(io.BytesIO(download(answers, key, "view.jpg")[0])).size == (1280, 160)
    expected = predictor.predict(
        path, score_threshold=0.05, candidate_threshold=0.05, panoptic_score_threshold=0.05
    )
    small = kept.nbytes
    assert json.loads(download(answers, key, "coco.json")[0]) == expected.to_coco("wide")
    assert np.array_equal(
        Image.open(io.BytesIO(download(answers, key, "panoptic.png")[0])),
        expected.to_panoptic("wide")[0],
    )
    assert [s["name"] for s in page["segments"]] == [
        expected.categories[s.label].name for s in expected.segments_info
    ]
    assert kept.nbytes > small and answers.forwards == 1


def test_hidden_categories_leave_picture_list_and_files(answers: Answers, photo: Path) -> None:
    key = answers.take(photo, "photo.png")
    kept = answers.store.get(key)
    before = answers.show(key, choice("panoptic"))
    assert SKY in {c["id"] for c in before["categories"]}
    kept.hidden = frozenset({SKY, 7})
    after = answers.show(key, choice("panoptic"))
    assert [c["id"] for c in after["categories"]] == [c["id"] for c in before["categories"]]
    assert {c["id"] for c in after["categories"] if c["hidden"]} <= {SKY, 7}
    assert "sky" not in {s["name"] for s in after["segments"]}
    coco = json.loads(download(answers, key, "coco.json")[0])
    assert 7 not in {entry["category_id"] for entry in coco}
    annotation = json.loads(download(answers, key, "panoptic.json")[0])
    assert not {SKY, 7} & {s["category_id"] for s in annotation["segments_info"]}
    assert after["base"] != before["base"]


def test_nothing_found_says_why(answers: Answers, photo: Path) -> None:
    key = answers.take(photo, "photo.png")
    page = answers.show(key, choice("instance", 1.0))
    assert page["segments"] == [] and page["summary"] == "0 objects"
    assert "score_threshold" in page["note"]
    assert json.loads(download(answers, key, "coco.json")[0]) == []


@pytest.mark.parametrize(
    ("mode", "size", "ending"),
    [
        ("RGB", (1, 1), "png"),
        ("L", (40, 30), "png"),
        ("RGBA", (40, 30), "png"),
        ("I;16", (40, 30), "png"),
        ("RGB", (40, 30), "jpg"),
    ],
)
def test_every_kind_of_picture(
    answers: Answers, tmp_path: Path, mode: str, size: tuple[int, int], ending: str
) -> None:
    path = tmp_path / f"p.{ending}"
    picture = Image.new(mode, size, 0 if mode in ("L", "I;16") else None)
    exif = picture.getexif()
    if ending == "jpg":
        exif[0x0112] = 6  # a quarter turn
    picture.save(path, **({"exif": exif} if ending == "jpg" else {}))
    page = answers.show(answers.take(path, f"p.{ending}"), choice("panoptic"))
    width, height = size if ending != "jpg" else size[::-1]
    assert page["size"] == [height, width]


def test_bad_pictures_are_told_by_their_own_name(answers: Answers, tmp_path: Path) -> None:
    broken, text, huge = tmp_path / "x1", tmp_path / "x2", tmp_path / "x3"
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300)).save(buffer, format="PNG")
    broken.write_bytes(buffer.getvalue()[:90])
    text.write_text("no picture")
    Image.new("1", (8000, 5000)).save(huge, format="PNG")
    for path, name, words in (
        (broken, "cut.png", "damaged"),
        (text, "notes.jpg", "not an image"),
        (huge, "huge.png", "megapixels"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            answers.take(path, name)
        assert str(caught.value).startswith(name) and str(tmp_path) not in str(caught.value)
    assert answers.forwards == 0 and len(answers.store) == 0


def test_the_store_is_bounded_and_forgets(answers: Answers, photo: Path) -> None:
    keys = [answers.take(photo, "photo.png") for _ in range(3)]
    size = answers.store.get(keys[0]).nbytes
    assert size > 48 * 70 * 3

    small = Store(max_bytes=int(2.5 * size))
    kept = [answers.store.get(key) for key in keys]
    first, second = small.put(kept[0]), small.put(kept[1])
    small.get(first)  # so the second is the one that nobody used for longest
    third = small.put(kept[2])
    assert len(small) == 2 and small.get(first) and small.get(third)
    with pytest.raises(PictureGone, match="Add it again"):
        small.get(second)

    assert len(Store(max_bytes=1)) == 0
    tiny = Store(max_bytes=1)
    assert tiny.get(tiny.put(kept[0])) is kept[0]  # one that is too large is still answered
    expired = Store(max_age=-1.0)
    with pytest.raises(PictureGone):
        expired.get(expired.put(kept[0]))
    answers.store.drop(keys[0])
    answers.store.drop(None)
    assert len(answers.store) == 2


def result(masks: np.ndarray, **changes: object) -> Result:
    count, height, width = masks.shape
    whole = Result(
        image_size=(height, width),
        categories=CATEGORIES,
        scores=torch.linspace(0.9, 0.5, count),
        labels=torch.zeros(count, dtype=torch.int64),
        boxes=torch.tensor([[0.0, 0.0, width, height]]).repeat(count, 1),
        packed_masks=torch.from_numpy(np.packbits(masks, axis=-1)),
    )
    return replace(whole, **changes)


def test_hover_map_names_every_mask_at_a_place() -> None:
    masks = np.random.default_rng(1).random((9, 23, 37)) < 0.3
    found = hover_map(result(masks))
    assert found.size == (23, 37) and found.sets[0] == []
    areas = masks.sum(axis=(1, 2))
    for y in range(23):
        for x in range(37):
            here = found.sets[found.numbers[y, x]]
            assert sorted(here) == np.flatnonzero(masks[:, y, x]).tolist()
            assert areas[here].tolist() == sorted(areas[here])  # the smallest is on top
    assert len(found.tobytes()) == 4 * 23 * 37


def test_hover_map_of_nothing_of_all_and_of_boxes() -> None:
    empty = hover_map(result(np.zeros((0, 5, 7), dtype=bool)))
    assert empty.sets == [[]] and not empty.numbers.any()
    full = hover_map(result(np.ones((1, 1, 1), dtype=bool)))
    assert full.sets == [[], [0]] and full.numbers.tolist() == [[1]]
    large = hover_map(result(np.ones((1, 9, 3000), dtype=bool)))
    assert max(large.size) == 640 and large.numbers.all()
    boxes = torch.tensor([[1.0, 2.0, 4.0, 3.0]])
    found = hover_map(
        result(np.zeros((1, 5, 7), dtype=bool), packed_masks=None, boxes=boxes)
    ).numbers
    assert np.argwhere(found).tolist() == [[2, 1], [2, 2], [2, 3]]


def test_panoptic_map_is_hovered_and_hidden_by_segment() -> None:
    seg = torch.tensor([[0, 5], [5, 9]], dtype=torch.int32)
    segments = (Segment(5, 7, 1, True, 0.8, 2), Segment(9, SKY, 2, False, 1.0, 1))
    whole = result(np.zeros((0, 2, 2), dtype=bool), panoptic_seg=seg, segments_info=segments)
    found = hover_map(whole)
    assert [found.sets[n] for n in found.numbers.ravel()] == [[], [0], [0], [1]]
    left = without(whole, frozenset({SKY}))
    assert left.panoptic_seg.tolist() == [[0, 5], [5, 0]]
    assert left.segments_info == segments[:1]
    assert without(whole, frozenset()) is whole


def test_the_newest_run_is_found_or_the_way_to_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unisolo train.*unisolo models"):
        find_checkpoint(tmp_path)
    for age, name in ((10, "new"), (500, "old")):
        place = tmp_path / name / "model.safetensors"
        place.parent.mkdir()
        place.touch()
        os.utime(place, (1e9 - age, 1e9 - age))
    assert find_checkpoint(tmp_path) == tmp_path / "new" / "model.safetensors"


@pytest.mark.slow
def test_an_exported_graph_answers_too(tmp_path: Path, photo: Path) -> None:
    pytest.importorskip("onnxruntime")
    from unisolo.export import export_checkpoint

    graph = tmp_path / "model.onnx"
    export_checkpoint(lively_model(), graph, size="stride4", images=None)
    predictor = Predictor(graph)
    answers = Answers(predictor, Store())
    start = answers.start()
    assert answers.selection_is_fixed and start.task == "panoptic"
    key = answers.take(photo, "photo.png")
    page = answers.show(key, start)
    expected = predictor.predict(photo, score_threshold=start.min_score)
    assert len(page["segments"]) == len(expected.segments_info) > 0
    coco = json.loads(download(answers, key, "coco.json")[0])
    assert coco == expected.to_coco("photo")


def test_the_command_without_a_run_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from unisolo.cli import app

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["demo"])
    assert done.exit_code == 2 and "unisolo models" in done.output
    assert "Traceback" not in done.output


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from unisolo.demo import serve

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ImportError, match=r"unisolo\[demo\]"):
        serve("model.safetensors")


def test_a_taken_port_and_a_foreign_address_are_told_at_once() -> None:
    import socket

    from unisolo.demo import serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is taken; give another --port"):
            serve("model.safetensors", port=port)
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1"):
        serve("model.safetensors", host="192.0.2.1")
