"""What the log says about speed, on a clock that stands still unless told."""

from __future__ import annotations

import pytest

from unisolo.engine import meter
from unisolo.engine.meter import Meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return now


def test_times_are_per_step_and_evaluation_is_left_out(clock: list[float]) -> None:
    found = Meter()
    for waited in (0.5, 1.5):
        clock[0] += 4
        found.add(waited=waited)
    clock[0] += 60
    found.leave_out(60)
    assert found.take(16) == {
        "images_per_second": 4.0, "data_share": 0.25, "data_time": 1.0, "step_time": 3.0
    }  # fmt: skip
    clock[0] += 2
    found.add(waited=0.0)
    assert found.take(16)["data_share"] == 0
    assert found.sentence() == (
        "waited for data 20.0% of the time: 666.7 of 3333.3 ms per step; "
        "more data.workers, data.cache=ram or smaller image files would help"
    )


def test_little_waiting_asks_for_nothing(clock: list[float]) -> None:
    found = Meter()
    assert found.sentence() == "no step was left to take"
    clock[0] += 1
    found.add(waited=0.05)
    found.take(1)
    assert found.sentence() == "waited for data 5.0% of the time: 50.0 of 1000.0 ms per step"
