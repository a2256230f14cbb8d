from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import CATEGORIES, tiny_config, tiny_model

from unisolo import Categories, Category, build_model, load_config
from unisolo.build import build_dataset, build_grid, fit_scale_ranges, with_grid
from unisolo.config import ConfigError

CONFIGS = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
COCO_LIKE = Categories(
    [Category(n, f"thing {n}") for n in range(80)]
    + [Category(100 + n, f"stuff {n}", isthing=False) for n in range(53)]
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_builds(path: Path) -> None:
    config = load_config(path, ["model.pretrained=false"])
    if config.model.scale_ranges == "auto":
        config = with_grid(config, build_grid(config, torch.linspace(8, 200, 50)))
    model = build_model(config, COCO_LIKE)
    assert ("stuff_logits" in model.heads) == (config.task == "panoptic")
    assert model.solo_head.category_out.out_channels == 80
    assert model.grid.sizes == tuple(model.solo_head.grid_sizes)


def test_grid_is_the_papers_at_800_pixels() -> None:
    grid = build_grid(load_config())
    assert grid.sizes == (40, 36, 24, 16, 12)
    assert grid.scale_ranges == ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
    assert grid.num_cells == 3872
    assert grid.offsets == (0, 1600, 2896, 3472, 3728)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (1600, (80, 72, 48, 32, 24)),  # in proportion above 800
        (512, (40, 36, 24, 16, 12)),  # the paper's light models keep the numbers
        (400, (40, 36, 24, 12, 12)),  # not finer than 12 features of stride 32
        (160, (20, 20, 10, 5, 5)),
        (32, (4, 4, 2, 1, 1)),
    ],
)
def test_scaled_grids(size: int, sizes: tuple[int, ...]) -> None:
    grid = build_grid(load_config(None, [f"data.image_size={size}"]))
    assert grid.sizes == sizes
    assert grid.scale_ranges[1] == pytest.approx((48 * size / 800, 192 * size / 800))
    assert grid.scale_ranges[0][0] <= 1
    assert grid.scale_ranges[-1][1] >= 2048


@given(
    st.lists(st.floats(0.5, 3000, allow_nan=False), min_size=1, max_size=60),
    st.sampled_from([(8,), (8, 16), (8, 8, 16, 32, 32)]),
)
def test_fitted_ranges_leave_no_object_out(sides: list[float], strides: tuple[int, ...]) -> None:
    ranges = fit_scale_ranges(torch.tensor(sides, dtype=torch.float64), strides)
    assert len(ranges) == len(strides)
    for side in sides:
        assert any(low <= side <= high for low, high in ranges)
    lows, highs = zip(*ranges, strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs)


def test_fitted_ranges_share_large_objects_evenly() -> None:
    sides = torch.linspace(100, 2000, 1000)
    ranges = fit_scale_ranges(sides, (8, 8, 16, 32, 32))
    counts = [int(((sides >= low) & (sides <= high)).sum()) for low, high in ranges]
    assert min(counts) > 200


def test_small_objects_stay_on_fine_levels() -> None:
    ranges = fit_scale_ranges(torch.linspace(5, 60, 1000), (8, 8, 16, 32, 32))
    # A level of stride s takes nothing below 4 s / sqrt(2) pixels.
    assert ranges[2][0] == pytest.approx(64 / 2**0.5)
    assert ranges[3][0] >= 128 / 2**0.5
    assert ranges[0][1] >= 32


def test_fitting_needs_objects() -> None:
    with pytest.raises(ValueError, match="needs objects"):
        fit_scale_ranges(torch.empty(0), (8, 16))
    with pytest.raises(ValueError, match="resolved from the training set"):
        build_grid(load_config(None, ["model.scale_ranges=auto"]))


def test_wrong_number_of_levels_is_an_error() -> None:
    with pytest.raises(ValueError, match="one size, stride and scale range per level"):
        build_grid(load_config(None, ["model.grid_sizes=[4, 2]"]))


def test_a_model_needs_things() -> None:
    with pytest.raises(ValueError, match="at least one thing category"):
        tiny_model(categories=Categories([Category(1, "sky", isthing=False)]))


def test_no_stuff_at_all_is_normal() -> None:
    model = tiny_model(categories=Categories([Category(1, "ball")]))
    outputs = model.eval()(torch.zeros(1, 3, 64, 64))
    assert outputs.extras["stuff_logits"].shape[1] == 1


def test_a_data_set_must_be_named() -> None:
    with pytest.raises(ConfigError, match="--data"):
        build_dataset(tiny_config(), split="train")


def test_instance_and_detection_add_no_parameters() -> None:
    names = {
        task: set(build_model(tiny_config(task=task), CATEGORIES).state_dict())
        for task in ("panoptic", "instance", "detection")
    }
    assert names["instance"] == names["detection"]
    assert names["panoptic"] - names["instance"] == {
        name for name in names["panoptic"] if name.startswith("heads.stuff_logits.")
    }
