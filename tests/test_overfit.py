from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unisolo.cli import app
from unisolo.config import Config
from unisolo.data.shapes import generate_shapes
from unisolo.engine.train import TrainSummary
from unisolo.overfit import check_learning


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overfit") / "data"
    return generate_shapes(folder, num_train=4, num_val=1, image_size=(64, 64))


def test_too_few_steps_exit_with_1(data: Path) -> None:
    done = CliRunner().invoke(
        app,
        ["doctor", str(data), "--overfit", "2", "--steps", "2", "data.image_size=64",
         "train.device=cpu", "train.warmup_steps=1"],
    )  # fmt: skip
    assert done.exit_code == 1, done.output
    assert "on the 2 images trained on, after 2 steps" in done.output
    assert "60 was wanted" in done.output


@pytest.mark.parametrize(
    ("task", "metrics", "learned"),
    [
        ("panoptic", {"panoptic/PQ": 60.0, "segm/AP50": 1.0, "bbox/AP50": 1.0}, True),
        ("panoptic", {"panoptic/PQ": 59.9, "segm/AP50": 99.0}, False),
        ("instance", {"bbox/AP50": 1.0, "segm/AP50": 70.0}, True),
        ("detection", {"bbox/AP50": 70.0}, True),
        ("detection", {"bbox/AP50": float("nan")}, False),
    ],
)
def test_the_first_score_decides(
    data: Path, monkeypatch: pytest.MonkeyPatch, task: str, metrics: dict[str, float], learned: bool
) -> None:
    seen: list[Config] = []

    def train(config: Config) -> Any:
        seen.append(config)
        return TrainSummary(Path("model"), 7, 60.0, metrics)

    monkeypatch.setattr("unisolo.overfit.train", train)
    verdict = check_learning(data, task=task, images=9, steps=7, overrides=["train.lr=0.5"])
    assert verdict.learned is learned
    assert "on the 4 images trained on, after 7 steps in 1.0 min" in verdict.sentence
    (config,) = seen
    assert config.task == task
    assert config.data.val_split == config.data.train_split == "train2017"
    assert (config.data.max_images, config.train.batch_size, config.train.steps) == (9, 9, 7)
    assert config.train.lr == 0.5
    assert not config.model.pretrained
    assert not config.train.out.exists()


@pytest.mark.slow
def test_eight_generated_images_are_learned(tmp_path: Path) -> None:
    root = generate_shapes(tmp_path / "data", num_train=8, num_val=1, image_size=(128, 128))
    verdict = check_learning(root, overrides=["data.image_size=128", "data.max_size=128"])
    assert verdict.learned, verdict.sentence
