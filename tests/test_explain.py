"""`Result.explain`: the threshold that took the instances is the one that is named."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_predictor import picture
from test_results import make
from tiny_model import lively_model, tiny_model

from unisolo import Predictor, Result, UniSolo
from unisolo.explain import Explanation, Stage, combine
from unisolo.tasks import TASKS

STEPS = [
    "candidate_threshold",
    "max_candidates",
    "area",
    "pre_nms",
    "update_threshold",
    "max_instances",
    "pixels",
    "score_threshold",
]


@pytest.fixture(scope="module")
def model() -> UniSolo:
    return lively_model()


@pytest.fixture
def predictor(model: UniSolo) -> Predictor:
    return Predictor(model)


def explanation(result: Result) -> Explanation:
    assert result.explanation is not None
    return result.explanation


@pytest.mark.parametrize(
    ("setting", "name", "words"),
    [
        ({"candidate_threshold": 1.0}, "candidate_threshold", "is above candidate_threshold=1.0"),
        ({"mask_threshold": 1 - 1e-12}, "area", "masks of the last 7. are too small: lower mask_"),
        ({"update_threshold": 1.0}, "update_threshold", "=1.0 removed the last 7."),
        ({"score_threshold": 1.0}, "score_threshold", "the best score is 0.9"),
    ],
)
@pytest.mark.parametrize("task", list(TASKS))
def test_what_took_the_last_candidate_is_named(
    model: UniSolo, task: str, setting: dict[str, float], name: str, words: str
) -> None:
    result = Predictor(model, task=task).predict(picture(60, 84), **setting)
    assert len(result) == 0
    seen = explanation(result)
    assert next(stage.name for stage in seen.stages if stage.left == 0) == name
    assert re.search(words, result.explain()), result.explain()
    keyword = "mask_threshold" if name == "area" else name
    assert f"lower {keyword}=" in result.explain()
    assert result.explain().startswith("Result(0 instances")


@pytest.mark.parametrize("task", list(TASKS))
def test_the_numbers_are_those_of_the_result(model: UniSolo, task: str) -> None:
    predictor = Predictor(model, task=task)
    for threshold in (0.0, 0.2, 0.45, 0.7):
        result = predictor.predict(picture(60, 84), score_threshold=threshold)
        seen = explanation(result)
        assert [stage.name for stage in seen.stages] == STEPS
        left = [stage.left for stage in seen.stages]
        assert left == sorted(left, reverse=True)
        assert left[-1] == len(result) > 0
        assert seen.stages[0].value == predictor.config.inference.score_threshold
        assert seen.stages[-1].value == threshold
        assert len(seen.top) == 5
        assert seen.top[0][1] >= seen.best_score >= float(result.scores[0])
        names = {category.name for category in result.categories.things}
        assert {name for name, _ in seen.top} <= names
    lowest = predictor.predict(picture(60, 84), score_threshold=0.0)
    assert float(lowest.scores[0]) == explanation(lowest).best_score


def test_panoptic_steps_are_those_of_the_map(predictor: Predictor) -> None:
    for settings in (
        {},
        {"score_threshold": 0.9},
        {"panoptic_overlap_threshold": 0.0, "panoptic_score_threshold": 0.2},
        {"stuff_area_threshold": 2000},
    ):
        result = predictor.predict(picture(60, 84), **settings)
        seen = explanation(result)
        assert seen.stuff is not None and result.segments_info is not None
        things = [segment for segment in result.segments_info if segment.isthing]
        stuff = [segment for segment in result.segments_info if not segment.isthing]
        assert seen.panoptic_stages[-1].left == len(things)
        assert seen.stuff.left == len(stuff)
        least = settings.get("panoptic_score_threshold", 0.5)
        every = predictor.predict(picture(60, 84), score_threshold=0.0)
        assert seen.panoptic_stages[0].left == int((every.scores >= least).sum())
    everything = predictor.predict(picture(60, 84), stuff_area_threshold=0)
    dropped = predictor.predict(picture(60, 84), stuff_area_threshold=10**6)
    areas = [s.area for s in everything.segments_info or () if not s.isthing]
    assert explanation(dropped).stuff_found == len(areas)
    assert explanation(dropped).largest_dropped_stuff == max(areas)
    assert f"the largest dropped has {max(areas)}" in dropped.explain()
    assert explanation(everything).largest_dropped_stuff == 0


def test_selections_and_copies_keep_it(predictor: Predictor) -> None:
    result = predictor.predict(picture(60, 84))
    for other in (result[0], result[:0], result.filter(min_score=0.8), result.cpu()):
        assert other.explanation == result.explanation
    (batched,) = predictor.predict_batch([picture(60, 84)])
    assert batched.explanation == result.explanation


def test_a_result_made_by_hand_says_so() -> None:
    result = make(np.zeros((0, 4, 5), bool))
    assert result.explanation is None
    assert "not made by a predictor" in result.explain()


def test_a_model_that_gives_no_numbers_is_told_apart() -> None:
    model = lively_model()
    with torch.no_grad():
        model.solo_head.category_out.bias.fill_(float("nan"))
    text = Predictor(model).predict(picture(60, 84)).explain()
    assert "every category probability is 0" in text
    assert "NaN" in text


def seen(*left: int, best: float = 0.5) -> Explanation:
    stages = tuple(Stage(name, 0.25, count) for name, count in zip(STEPS, left, strict=True))
    return Explanation((("cat", best),), best, stages)


def test_the_verdict_names_the_largest_loss_too() -> None:
    emptied = seen(50, 50, 50, 50, 8, 8, 8, 0)
    assert emptied.verdict().startswith("score_threshold=0.25 removed the last 8")
    assert "(before that, update_threshold=0.25 removed the most: 42 of 50)" in emptied.verdict()
    some = seen(50, 50, 40, 40, 8, 8, 8, 2)
    assert some.verdict() == "update_threshold=0.25 removed the most (32 of 40 candidates)"
    assert seen(3, 3, 3, 3, 3, 3, 3, 3).verdict() == "no threshold removed a candidate"
    none = seen(0, 0, 0, 0, 0, 0, 0, 0, best=0.125)
    assert "inference.score_threshold=0.25; the highest is 0.125 (cat)" in none.verdict(
        config_names=True
    )


def test_explanations_add_up() -> None:
    total = combine([seen(5, 5, 4, 4, 3, 3, 3, 0, best=0.2), seen(*[0] * 8, best=0.7)])
    assert [stage.left for stage in total.stages] == [5, 5, 4, 4, 3, 3, 3, 0]
    assert total.top == (("cat", 0.7), ("cat", 0.2))
    assert total.best_score == 0.7


# Where it is said by itself


def test_evaluation_warns_where_nothing_was_found(tmp_path: Path) -> None:
    from tiny_model import tiny_config

    from unisolo import build_model
    from unisolo.build import build_dataset
    from unisolo.data.shapes import generate_shapes
    from unisolo.engine.distributed import World
    from unisolo.engine.evaluate import evaluate

    generate_shapes(tmp_path, num_train=1, num_val=2, image_size=(64, 64), seed=2)
    config = tiny_config(f"data.root={tmp_path}")
    dataset = build_dataset(config, split="val")
    torch.manual_seed(0)
    model = build_model(config, dataset.categories).eval()
    task = TASKS["panoptic"](dataset.categories)

    def run(bias: float) -> dict[str, float]:
        torch.nn.init.constant_(model.solo_head.category_out.bias, bias)
        return evaluate(model, dataset, task=task, world=World(0, 1, torch.device("cpu")))

    with pytest.warns(UserWarning, match=r"in any of the 2 images: no category .* is above "
                      r"inference\.score_threshold=0\.1; the highest is 0\.0"):  # fmt: skip
        run(-4.6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(1.0)


def test_predicting_files_says_once_why_images_are_empty(tmp_path: Path) -> None:
    from PIL import Image

    from unisolo.predict_files import predict_files

    for name in ("a.png", "b.png"):
        Image.fromarray(picture(60, 84)).save(tmp_path / name)
    seen_results: list[Any] = []
    quiet = Predictor(tiny_model().eval())
    report = predict_files(
        quiet, tmp_path, tmp_path / "out", on_result=lambda *pair: seen_results.append(pair)
    )
    assert (report.instances, report.without) == (0, 2)
    assert "no category probability is above candidate_threshold=0.1" in report.reason
    assert [path.name for path, _ in seen_results] == ["a.png", "b.png"]
    lively = predict_files(Predictor(lively_model()), tmp_path, tmp_path / "out2")
    assert (lively.without, lively.reason) == (0, "")
    low = predict_files(
        quiet, tmp_path, tmp_path / "out3", score_threshold=0.0, candidate_threshold=0.0, limit=1
    )
    assert "candidate_threshold" not in low.reason
    assert json.loads((tmp_path / "out3" / "predictions.json").read_text())["images"]
