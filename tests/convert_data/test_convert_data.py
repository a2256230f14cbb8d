"""The embedded data set in other formats comes back pixel by pixel, and the doctor is content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sources import WRITERS, Scene, converted_masks, write_labelme, write_masks, write_voc
from typer.testing import CliRunner

from unisolo.cli import app
from unisolo.convert_data import FORMATS, convert_data
from unisolo.convert_data.source import Options
from unisolo.data import CocoPanoptic


def run(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def doctor_errors(root: Path, tmp_path: Path) -> list[dict]:
    report = tmp_path / "doctor.json"
    done = CliRunner().invoke(app, ["doctor", str(root), "--json", str(report)])
    assert done.exit_code == 0, done.output
    return [f for f in json.loads(report.read_text())["findings"] if f["severity"] == "error"]


def compare_objects(scenes: list[Scene], out: Path) -> None:
    found = {
        **converted_masks(out, "train2017"),
        **converted_masks(out, "val2017"),
    }
    assert set(found) == {scene.stem for scene in scenes}
    for scene in scenes:
        names = [scene.categories[label].name for label in scene.labels]
        objects = found[scene.stem]
        assert sorted(name for name, _ in objects) == sorted(names)
        for name, mask in zip(names, scene.masks, strict=True):
            same = [
                other for kind, other in objects if kind == name and np.array_equal(other, mask)
            ]
            assert len(same) == 1, (scene.stem, name)


@pytest.mark.parametrize("form", ["yolo", "labelme", "voc"])
def test_every_object_comes_back(form: str, scenes: list[Scene], tmp_path: Path) -> None:
    """IoU 1 for polygons too: ours run along the edges of pixels."""
    WRITERS[form](scenes, tmp_path / "source")
    out = tmp_path / "out"
    output = run("convert-data", tmp_path / "source", "--out", out)
    assert f"{form} data set as COCO" in output
    compare_objects(scenes, out)
    assert doctor_errors(out, tmp_path) == []
    assert not list(out.glob("annotations/panoptic*"))
    assert not list(tmp_path.glob(".out*"))  # nothing unfinished stays
    if form != "labelme":  # which has no splits of its own
        stems = {scene.stem for scene in scenes if scene.split == "val2017"}
        assert set(converted_masks(out, "val2017")) == stems


def test_voc_in_colours(scenes: list[Scene], tmp_path: Path) -> None:
    write_voc(scenes, tmp_path / "source", color=True)
    convert_data(tmp_path / "source", tmp_path / "out")
    compare_objects(scenes, tmp_path / "out")


def test_masks_become_panoptic(scenes: list[Scene], tmp_path: Path) -> None:
    write_masks(scenes, tmp_path / "source")
    stuff = [category.name for category in scenes[0].categories.stuff]
    words = [word for name in stuff for word in ("--stuff", name)]
    out = tmp_path / "out"
    run("convert-data", tmp_path / "source", "--out", out, *words)
    by_stem = {scene.stem: scene for scene in scenes}
    for split in ("train2017", "val2017"):
        data = CocoPanoptic.from_root(out, split)
        assert {c.name: c.isthing for c in data.categories} == {
            c.name: c.isthing for c in scenes[0].categories
        }
        for record in data._records:
            scene = by_stem[Path(record["file_name"]).stem]
            classes = np.full(scene.panoptic.shape, 255)
            segment_map = data._segment_map(record)
            for number, (_, label, _) in enumerate(record["segments"], start=1):
                name = data.categories[label].name
                labels = [c.name for c in scene.categories]
                classes[segment_map == number] = labels.index(name)
            assert np.array_equal(classes, scene.panoptic)
    assert doctor_errors(out, tmp_path) == []


def test_masks_with_background_are_objects(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / "source" / folder).mkdir(parents=True)
    numbers = np.zeros((20, 30), np.uint8)
    numbers[2:6, 2:9] = numbers[10:15, 20:28] = 1
    numbers[6, 9] = 1  # touches the first at a corner
    numbers[16:18, 1:4] = 2
    numbers[0] = 255
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "source" / "images" / f"{name}.png")
        Image.fromarray(numbers).save(tmp_path / "source" / "masks" / f"{name}.png")
    (tmp_path / "source" / "names.txt").write_text("background\nscratch\ndent\n")
    summary = convert_data(tmp_path / "source", tmp_path / "out")
    assert summary.objects == {"train2017": 3, "val2017": 3}
    (objects,) = converted_masks(tmp_path / "out", "train2017").values()
    assert sorted((name, int(mask.sum())) for name, mask in objects) == [
        ("dent", 6),
        ("scratch", 29),
        ("scratch", 40),
    ]
    assert not (tmp_path / "out" / "annotations" / "panoptic_train2017.json").exists()


def test_labelme_shapes_of_every_kind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    shapes = [
        {"label": "a", "points": [[2, 1], [6, 1], [6, 3], [2, 3]]},  # a polygon, of old versions
        {"label": "a", "points": [[20, 9], [12, 5]], "shape_type": "rectangle"},
        {"label": "e", "points": [[25, 2], [29, 2], [29, 4], [25, 4]],
         "shape_type": "oriented_rectangle"},
        {"label": "b", "points": [[30, 20], [30, 25]], "shape_type": "circle"},
        {"label": "b", "points": [[1, 1]], "shape_type": "point"},
        *({"label": "c", "group_id": 0, "points": [[x, 30], [x + 4, 30], [x + 4, 33], [x, 33]],
           "shape_type": "polygon"} for x in (1, 20)),
        {"label": "d", "group_id": 0, "points": [[40, 30], [45, 35], [40, 35]]},
    ]  # fmt: skip
    for name in ("x", "y"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{name}.png")
        tree = {"shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
        (source / f"{name}.json").write_text(json.dumps(tree))
    summary = convert_data(source, tmp_path / "out")
    assert summary.notes == ("shapes of type 'point' have no area: left out (2)",)
    (objects,) = converted_masks(tmp_path / "out", "val2017").values()
    areas = [(name, int(mask.sum())) for name, mask in objects]
    assert areas[:3] == [("a", 8), ("a", 32), ("e", 8)]
    assert areas[4] == ("c", 24)  # two parts, one object
    assert areas[3][1] == pytest.approx(np.pi * 25, rel=0.05)
    assert len(areas) == 6  # group 0 of another label is another object
    assert doctor_errors(tmp_path / "out", tmp_path) == []


def test_polygons_drawn_by_hand_keep_their_points(tmp_path: Path) -> None:
    """Of large objects at fractions of pixels: IoU at least 0.97 after YOLO's rounding."""
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    (source / "labels").mkdir()
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.stack([64 + 40.3 * np.cos(angles), 48 + 40.3 * np.sin(angles)], axis=1)
    for name in ("a", "b"):
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(source / "images" / f"{name}.jpg")
        values = " ".join(f"{v:.4f}" for v in (circle / [128, 96]).reshape(-1))
        (source / "labels" / f"{name}.txt").write_text(f"0 {values}\n")
    (source / "data.yaml").write_text("train: images\nval: images\nnames: [disc]\n")
    summary = convert_data(source, tmp_path / "out")
    assert summary.notes == ("train and val were the same images: shared out anew (1)",)
    assert summary.images == {"train2017": 1, "val2017": 1}
    ((_, mask),) = next(iter(converted_masks(tmp_path / "out", "train2017").values()))
    y, x = np.mgrid[:96, :128] + 0.5
    disc = np.hypot(x - 64, y - 48) <= 40.3
    assert (mask & disc).sum() / (mask | disc).sum() > 0.97


def test_same_seed_same_split_and_links(scenes: list[Scene], tmp_path: Path) -> None:
    write_labelme(scenes, tmp_path / "source")
    stems = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        summary = convert_data(
            tmp_path / "source", tmp_path / name, seed=seed, val_share=0.4, link=name == "b"
        )
        assert summary.images == {"train2017": 7, "val2017": 4}
        stems.append(set(converted_masks(tmp_path / name, "val2017")))
    assert stems[0] == stems[1] != stems[2]
    links = [path.is_symlink() for path in (tmp_path / "b" / "train2017").iterdir()]
    assert sum(links) >= len(links) - 1  # the picture inside a JSON file cannot be linked


def test_overwrite_only_what_it_wrote(scenes: list[Scene], tmp_path: Path) -> None:
    write_masks(scenes[:4], tmp_path / "source")
    out = tmp_path / "out"
    convert_data(tmp_path / "source", out)
    with pytest.raises(OSError, match="--overwrite"):
        convert_data(tmp_path / "source", out)
    convert_data(tmp_path / "source", out, overwrite=True)
    before = sorted(out.rglob("*"))
    with pytest.raises(ValueError, match="not among the names"):
        convert_data(tmp_path / "source", out, overwrite=True, options=Options(stuff=("cheese",)))
    assert sorted(out.rglob("*")) == before
    (out / "convert_data.json").unlink()
    with pytest.raises(OSError, match="was not written by convert-data"):
        convert_data(tmp_path / "source", out, overwrite=True)
    with pytest.raises(OSError, match="holds the source"):
        convert_data(tmp_path / "source", tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    write_labelme(scenes[:2], tmp_path / "labelme")
    with pytest.raises(OSError, match="lies in the source"):
        convert_data(tmp_path / "labelme", tmp_path / "labelme" / "coco")


def test_formats_of_the_command_are_those_that_exist() -> None:
    from unisolo.cli.data import SourceChoice

    assert [choice.value for choice in SourceChoice] == ["auto", *FORMATS]


@pytest.mark.slow
@pytest.mark.parametrize(("form", "task"), [("yolo", "instance"), ("masks", "panoptic")])
def test_what_was_converted_trains(
    form: str, task: str, scenes: list[Scene], tmp_path: Path
) -> None:
    from tiny_model import tiny_config

    from unisolo.engine.train import train

    WRITERS[form](scenes, tmp_path / "source")
    stuff = tuple(category.name for category in scenes[0].categories.stuff)
    options = Options(stuff=stuff if task == "panoptic" else ())
    convert_data(tmp_path / "source", tmp_path / "out", options=options)
    summary = train(
        tiny_config(
            f"task={task}", f"data.root={tmp_path / 'out'}", f"train.out={tmp_path / 'run'}"
        )
    )
    assert summary.steps == 2
    assert summary.checkpoint.is_file()
