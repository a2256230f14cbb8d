"""What is tried for objects as dense as features: grids half as fine again, then twice as fine."""

from __future__ import annotations

from tiny_model import tiny_config

from unisolo.data.raw import ObjectBoxes
from unisolo.doctor.coverage import try_settings


class Dots:
    """One image of 640 x 640 with dots of 7 x 7 pixels, this far apart, in a square of 20 x 20."""

    def __init__(self, apart: int) -> None:
        self.apart = apart

    def object_boxes(self) -> ObjectBoxes:
        steps = range(0, 20 * self.apart, self.apart)
        return ObjectBoxes.from_rows([(x, y, 7, 7, 640, 640, 0) for y in steps for x in steps])


def tried(apart: int, *overrides: str) -> list[tuple[tuple[str, ...], int]]:
    settings = ("data.image_size=640", "data.max_size=640", "model.grid_sizes=scaled", *overrides)
    trials = try_settings(Dots(apart), tiny_config(*settings))
    return [(trial.settings, trial.lost) for trial in trials]


def test_80_cells_where_dots_are_a_feature_apart() -> None:
    found = tried(8)
    assert [settings for settings, _ in found] == [
        (),
        ("model.scale_ranges=auto",),
        ("model.grid_sizes=[60,54,36,20,18]",),
        ("model.scale_ranges=auto", "model.grid_sizes=[60,54,36,20,18]"),
        ("model.scale_ranges=auto", "model.grid_sizes=[80,72,40,20,20]"),
    ]
    lost = [lost for _, lost in found]
    # A cell of 16 pixels sees 2 x 2 dots and keeps one of them.
    assert lost[0] == 300 and 0 < lost[3] < 300 and lost[4] == 0


def test_60_where_that_is_enough_and_none_where_losers_move() -> None:
    assert tried(11)[-1] == (("model.grid_sizes=[60,54,36,20,18]",), 0)
    moved = dict(tried(8, "train.shared_cells=move"))
    assert 0 < moved[()] < 300
