"""What a run is judged by: bounds beside figures, and exit codes of wrong answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from unisolo.benchmark.evaluate import EvaluateReport, EvaluateRow, evaluate_goals
from unisolo.benchmark.evaluate import failed_checks as failed_metrics
from unisolo.benchmark.goals import Goal, goals_table
from unisolo.benchmark.memory import MIB, Crowd, MemoryReport, MemoryRow, memory_goals
from unisolo.benchmark.model.report import FLOOR, WHOLE, ModelReport, ModelRow, model_goals
from unisolo.benchmark.postprocess.checks import Agreement
from unisolo.benchmark.postprocess.floor import Ceilings
from unisolo.benchmark.postprocess.goals import failed_checks, postprocess_goals
from unisolo.benchmark.postprocess.report import PostprocessReport, PostprocessRow, StageRow
from unisolo.benchmark.timing import Timing
from unisolo.benchmark.train.report import PEER, TrainReport, TrainRow, train_goals
from unisolo.cli.measuring.app import show

TIMING = Timing(0.1, 0.1, 0.1, 0.1, 3)
MACHINE: dict[str, Any] = {
    "cpu": "C", "family": "", "cores": 2, "flags": [], "gpu": None, "system": "S",
    "versions": {"python": "3"},
}  # fmt: skip


def test_bounds_include_their_end() -> None:
    assert Goal("a", 2.8, 2.8).met and not Goal("a", 2.81, 2.8).met
    assert Goal("a", 3.0, 3.0, at_least=True).met and not Goal("a", 2.9, 3.0, at_least=True).met
    assert not Goal("a", None, 3.0).met
    assert not Goal("a", math.nan, 3.0).met and not Goal("a", math.nan, 3.0, at_least=True).met
    text = goals_table([Goal("speed", 31.24, 30, True, " x"), Goal("time", None, 20, unit=" us")])
    assert "| speed | 31.2 x | >= 30 x | yes |" in text
    assert "| time | unknown | <= 20 us | NO |" in text
    assert "answers none" in goals_table([])


def row(scene: str, mode: Any, **values: Any) -> PostprocessRow:
    agreement = Agreement(100, True, True, 1e-6, 4, 100 * 800 * 1333)
    usual: dict[str, Any] = {
        "candidates": 500, "start": "candidates", "way": "ours, Triton", "timing": TIMING,
        "peak_mib": 45.0, "speedup": 31.0, "cpu_speedup": None, "of_floor": 2.7,
        "agreement": agreement,
    }  # fmt: skip
    return PostprocessRow(scene=scene, mode=mode, **{**usual, **values})


def report(*rows: PostprocessRow, device: str = "cuda", **values: Any) -> PostprocessReport:
    size = (800, 1333) if device == "cuda" else (608, 800)
    made = PostprocessReport(
        MACHINE, device, 1, "bfloat16", size, (200, 336), 256, Ceilings(1e12, 1e14, "bfloat16"),
        {}, rows, (), {"coco, 500": 0}, (),
    )  # fmt: skip
    return replace(made, **values)


def test_the_gpu_s_goals_are_read_from_their_rows() -> None:
    found = report(
        row("coco", "eager", speedup=6.5, of_floor=9.0),
        row("coco", "graph"),
        row("noise", "graph", speedup=14.0),
        row("coco", "graph", candidates=300, speedup=1.0),
        row("coco", "graph", start="logits", speedup=1.0),
        row("coco", "eager", way="ours, torch", speedup=1.0),
        stages=(
            StageRow("dense", 500, "intersections", "graph", replace(TIMING, median=0.021), 0.001),
            StageRow("dense", 500, "intersections", "eager", TIMING, 0.001),
        ),
    )
    goals = {goal.what: goal for goal in postprocess_goals(found)}
    assert goals["coco, 500: graph over reference"].bound == 30
    assert goals["coco, 500: graph, multiple of the floor"].bound == 2.8
    assert goals["coco, 500: eager over reference, eager"].value == 6.5
    assert goals["coco, 500: share of pixels that differ"].met
    assert not goals["noise, 500: graph over reference"].met
    late = goals["dense, 500: intersections, graph"]
    assert late.value == pytest.approx(21) and not late.met
    assert goals["intersections that are not exact"].met
    assert len(goals) == 8
    assert not postprocess_goals(replace(found, image_size=(640, 640)))
    (missing,) = postprocess_goals(report(row("coco", "eager", way="ours, torch")))
    assert "ours, Triton: not run" in missing.what and not missing.met


def test_the_cpu_s_goal_is_in_processor_time() -> None:
    values: dict[str, Any] = {"way": "ours, CPU", "speedup": 1.0, "cpu_speedup": 4.5}
    rows = [row(scene, "eager", candidates=100, **values) for scene in ("coco", "noise")]
    goals = [goal for goal in postprocess_goals(report(*rows, device="cpu")) if goal.unit]
    assert [(goal.value, goal.bound, goal.met) for goal in goals] == [(4.5, 3.0, True)]


def test_wrong_answers_are_failures_and_rounded_ones_of_others_are_not() -> None:
    other = Agreement(100, False, False, None, None, 5)
    swapped = Agreement(100, True, False, 1e-7, 0, 5)
    right = report(
        row("coco", "eager", agreement=swapped),
        row("coco", "eager", way="reference, TF32", agreement=other),
    )
    assert not failed_checks(right)
    wrong = replace(
        right,
        rows=(*right.rows, row("dense", "eager", agreement=other)),
        wrong_intersections={"crowd, 500": 2},
    )
    first, second = failed_checks(wrong)
    assert first.startswith("crowd, 500 candidates: 2 intersections")
    assert second.startswith("dense, 500 candidates, from candidates: ours, Triton keeps other")
    assert not next(g for g in postprocess_goals(wrong) if "not exact" in g.what).met


@pytest.mark.parametrize("json_file", ["-", "file", None])
def test_figures_are_written_before_a_failure_ends_the_command(
    json_file: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    chosen = str(path) if json_file == "file" else json_file
    figures = {"machine": MACHINE, "value": math.nan}
    with pytest.raises(typer.Exit) as ended:
        show(figures, "a table", chosen, goals=[Goal("speed", 2.0, 3.0, True)], failed=["it is"])
    assert ended.value.exit_code == 1
    out, err = capsys.readouterr()
    assert "it is" in err
    if json_file != "-":
        assert "a table" in out and "| speed | 2 | >= 3 | NO |" in out
    if json_file is not None:
        found = json.loads(
            out if json_file == "-" else path.read_text(), parse_constant=pytest.fail
        )
        assert found["value"] is None
        assert found["goals"][0]["met"] is False and found["goals"][0]["bound"] == 3.0


def test_a_missed_goal_alone_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    show({"machine": MACHINE}, "a table", None, goals=[Goal("speed", 2.0, 3.0, True)])
    show({"machine": MACHINE}, "a table", None)
    assert capsys.readouterr().out.count("goal") == 1


def test_models_are_judged_by_one_row() -> None:
    def made(part: str, mode: Any, batch: int = 1) -> ModelRow:
        return ModelRow("coco_instance_r50_3x", batch, part, mode, "bfloat16", TIMING, 2.9, 16.0)

    rows = (made(FLOOR, "graph"), made(WHOLE, "graph", 8), made(WHOLE, "graph"))
    found = ModelReport(MACHINE, "cuda", "bfloat16", (800, 1333), {}, rows)
    assert [(goal.value, goal.met) for goal in model_goals(found)] == [(2.9, False), (16.0, True)]
    for other in ({"device": "cpu"}, {"dtype": "float32"}, {"size": (640, 640)}):
        assert not model_goals(replace(found, **other))


def test_training_is_judged_on_a_gpu() -> None:
    own = TrainRow("r50", "resnet50", "unisolo", 800, 16, 40, 80.0, 60.0, 266.0, 0.12, 30.0, 1.6)
    rows = (own, replace(own, model=PEER, ratio=None))
    found = TrainReport(MACHINE, "cuda", "bfloat16", "generated", 14, False, rows)
    assert [(goal.value, goal.met) for goal in train_goals(found)] == [(1.6, True), (0.12, False)]
    assert not train_goals(replace(found, device="cpu"))


def test_memory_is_judged_in_the_worst_case() -> None:
    rows = (
        MemoryRow("auto", Crowd(), 0, 1537 * MIB),
        MemoryRow("torch", Crowd(), 0, 9 * MIB),
        MemoryRow("auto", replace(Crowd(), image=2048), 0, 9 * MIB),
    )
    (goal,) = memory_goals(MemoryReport(MACHINE, "cuda", rows))
    assert goal.value == 1537 and not goal.met


def test_metrics_that_only_one_side_has_are_a_difference() -> None:
    rows = [EvaluateRow(part, 12.0, 1.0, 12.0, 1.0, 0.0) for part in ("bbox", "segm", "panoptic")]
    rows.append(EvaluateRow("all", 36.0, 3.0, 36.0, 3.0, 0.0))
    found = EvaluateReport(MACHINE, 5000, 50, tuple(rows), {})
    assert all(goal.met for goal in evaluate_goals(found)) and not failed_metrics(found)
    rows[1] = replace(rows[1], difference=math.inf)
    (sentence,) = failed_metrics(replace(found, rows=tuple(rows)))
    assert sentence.startswith("segm")
    assert not evaluate_goals(replace(found, images=500))
