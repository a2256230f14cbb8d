"""The log of a training as curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unisolo.report.charts import curve_charts, number
from unisolo.report.history import read_history


def log(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_no_log_is_no_history(tmp_path: Path) -> None:
    history = read_history(tmp_path / "log.jsonl")
    assert (history.training, history.evaluations, history.unread) == ({}, {}, 0)
    assert curve_charts(history) == []


def test_steps_and_evaluations_are_told_apart_and_gaps_left(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "loss": 2.0, "loss_mask": 1.0, "lr": 0.1},
        {"step": 2, "loss": None, "loss_mask": 0.5, "lr": 0.1},
        {"step": 2, "segm/AP": 10.0, "panoptic/PQ": None},
        {"step": 3, "loss": 1.0, "loss_mask": 0.4, "lr": 0.0},
        {"step": 3, "segm/AP": 20.0},
        '{"step": 4, "los',
        "[]",
        {"loss": 1},
    ]
    history = read_history(log(tmp_path / "log.jsonl", rows))
    assert history.training["loss"] == [(1, 2.0), (3, 1.0)]
    assert history.evaluations == {"segm/AP": [(2, 10.0), (3, 20.0)]}
    assert history.unread == 3
    charts = {chart.title: chart for chart in curve_charts(history)}
    assert list(charts) == [
        "loss (weighted sum)",
        "parts of the loss, before weighting",
        "learning rate",
        "evaluations, AP (percent)",
    ]
    (line,) = charts["loss (weighted sum)"].lines
    assert line.points == "50,10 350,87"
    assert line.dots[0] == (50, 10, "loss 2 at step 1")


def test_a_long_log_is_averaged(tmp_path: Path) -> None:
    rows = [{"step": n, "loss": float(n % 2)} for n in range(1, 2401)]
    history = read_history(log(tmp_path / "log.jsonl", rows))
    assert history.averaged == 8
    assert len(history.training["loss"]) == 300
    assert {value for _, value in history.training["loss"]} == {0.5}


def test_a_constant_and_one_value_can_be_drawn(tmp_path: Path) -> None:
    rows = [{"step": 5, "loss": 0.0, "lr": 1e-9}, {"step": 5, "loss": 0.0}]
    charts = curve_charts(read_history(log(tmp_path / "log.jsonl", rows)))
    assert [chart.title for chart in charts] == ["loss (weighted sum)"]


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (0.25, "0.25"), (2e-5, "2e-05"), (12000, "12k"), (2.5e6, "2.5M")]
)
def test_numbers_are_short(value: float, words: str) -> None:
    assert number(value) == words
