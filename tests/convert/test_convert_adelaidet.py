"""AdelaiDet's colour order, normalisation and strides, against a network written out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import foreign
import pytest
import torch

from unisolo.checkpoint import load_checkpoint
from unisolo.convert import ConversionError, convert_checkpoint, convert_weights

sys.path.insert(0, str(Path(__file__).parent))
import detectron2_twin as twin


def test_whole_model_equals_the_one_written_out(tmp_path: Path) -> None:
    state = foreign.drawn(twin.shapes())
    source = foreign.write(state, "adelaidet", tmp_path / "SOLOv2_R50_3x.pth")
    report = convert_checkpoint(source, tmp_path / "model.safetensors")
    assert report.format == "adelaidet"
    assert report.variant.startswith("resnet50, 4 x 512 towers, 256 kernel channels, no DCN")
    model = load_checkpoint(tmp_path / "model.safetensors")
    assert model.std.flatten().tolist() == [1, 1, 1]

    images = torch.randint(0, 256, (1, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    rgb = images.to(torch.uint8)
    with torch.no_grad():
        expected_features = twin.backbone(state, rgb.flip(1).float())
        levels = twin.pyramid(state, expected_features)
        logits, kernels = twin.head(state, levels)
        masks = twin.mask_features(state, levels)
        features = model.backbone(model.normalize(rgb))
        outputs = model(rgb)

    for found, expected in zip(features, expected_features, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * scale)
    for found, expected in (
        (outputs.category_logits, logits),
        (outputs.kernels, kernels),
        (outputs.mask_features, masks),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
        assert expected.std() > 0.05
    # The comparison would see a wrong colour order and wrong strides.
    with torch.no_grad():
        wrong = model.backbone(model.normalize(rgb.flip(1)))
        assert (wrong[0] - expected_features[0]).abs().max() > 0.1
        block = model.backbone.net.layer2[0]
        block.conv1.stride, block.conv2.stride = (1, 1), (2, 2)
        moved = model.backbone(model.normalize(rgb))
        torch.testing.assert_close(moved[0], features[0])
        assert (moved[1] - expected_features[1]).abs().max() > 0.1


def test_names_written_out_are_the_real_ones() -> None:
    assert twin.shapes() == foreign.key_list("keys_adet_solov2_r50_3x")


def test_normalisation_in_the_file() -> None:
    state = foreign.drawn(twin.shapes())
    constants = {
        "pixel_mean": torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1),
        "pixel_std": torch.ones(3, 1, 1),
    }
    found = convert_weights({**state, **constants})
    expected = convert_weights(state)
    assert found.config == expected.config
    with pytest.raises(ConversionError, match=r"pixel_std is \[57\.0.*blue, green, red"):
        convert_weights({**state, **constants, "pixel_std": torch.tensor([57.0, 57.0, 58.0])})
