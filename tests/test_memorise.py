"""The proof that nothing in the chain is wrong: a model can learn eight real images by heart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from golden_tools import SHARED

from unisolo import load_config
from unisolo.engine.train import train

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "memorise.yaml"
WEIGHTS = SHARED / "weights" / "tf_efficientnet_lite0_imagenet.safetensors"


@pytest.mark.slow
def test_eight_coco_images_are_memorised(
    shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    root = shared_data("coco-mini")
    if not WEIGHTS.is_file():
        pytest.skip(f"backbone weights not on this machine: {WEIGHTS}")
    config = load_config(
        RECIPE,
        [f"data.root={root}", f"train.out={tmp_path}", f"model.backbone_weights={WEIGHTS}"],
    )
    metrics = train(config).metrics
    assert metrics["panoptic/PQ"] >= 90
    assert metrics["segm/AP"] >= 80
