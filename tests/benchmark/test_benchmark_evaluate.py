"""`benchmark evaluate` on a few images. Times are not judged, figures are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unisolo.benchmark.generated_results import GeneratedResults, generate_results
from unisolo.cli import app
from unisolo.encoding import rgb_to_ids


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> GeneratedResults:
    return generate_results(
        tmp_path_factory.mktemp("truth"), images=20, predictions=7, size=(60, 90)
    )


def test_maps_and_segments_agree(generated: GeneratedResults) -> None:
    entries = generated.panoptic["annotations"]
    assert len(entries) == len(generated.maps) == 20
    for entry in entries:
        with Image.open(generated.panoptic_dir / entry["file_name"]) as picture:
            ids = rgb_to_ids(np.asarray(picture))
        assert ids.shape == (60, 90)
        assert (ids == 0).any(), "a strip of void"
        counted = dict(zip(*np.unique(ids[ids > 0], return_counts=True), strict=True))
        assert counted == {s["id"]: s["area"] for s in entry["segments_info"]}


def test_every_kind_of_difficulty_occurs(generated: GeneratedResults) -> None:
    truth = generated.instances["annotations"]
    assert {entry["iscrowd"] for entry in truth} == {0, 1}
    assert all(len(entries) == 7 for _, entries in generated.detections)
    categories = {entry["category_id"] for entry in truth}
    assert len(categories) > 40 and max(categories) <= generated.categories.num_things


def test_another_seed_gives_other_scenes(generated: GeneratedResults, tmp_path: Path) -> None:
    again = generate_results(tmp_path, images=2, predictions=7, size=(60, 90))
    other = generate_results(tmp_path / "b", images=2, predictions=7, size=(60, 90), seed=1)
    assert again.detections == generated.detections[:2]
    assert other.detections != again.detections


def test_both_back_ends_give_the_same_figures() -> None:
    pytest.importorskip("panopticapi", reason="pip install --no-deps panopticapi-lite")
    done = CliRunner().invoke(
        app, ["benchmark", "evaluate", "--images", "12", "--predictions", "20", "--json", "-"]
    )
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert [row["part"] for row in figures["rows"]] == ["bbox", "segm", "panoptic", "all"]
    assert all(row["difference"] < 1e-6 for row in figures["rows"])
    assert 0 < figures["metrics"]["segm/AP"] < 100 and 0 < figures["metrics"]["panoptic/PQ"] < 100


def test_no_images_is_an_error() -> None:
    done = CliRunner().invoke(app, ["benchmark", "evaluate", "--images", "0"])
    assert done.exit_code == 2
    assert "must be at least 1" in done.output
