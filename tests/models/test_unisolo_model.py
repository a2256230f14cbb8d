from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from unisolo.models import FPN, MaskHead, SoloHead, StuffHead, TimmBackbone, UniSolo
from unisolo.structures import GridSpec, Outputs

GRID = GridSpec(sizes=(6, 5, 4, 3, 2))
BACKBONES = [
    "test_resnet",
    "test_convnext",
    "test_efficientnet",
    "test_vit",
    "resnet50",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "mobilenetv3_small_100",
    "tf_efficientnet_lite0",
    "hrnet_w18_small",
    "regnety_002",
]


def make_model(name: str = "test_resnet", *, stuff: bool = True, **options) -> UniSolo:
    backbone = TimmBackbone(name, **options)
    return UniSolo(
        backbone,
        FPN(backbone.channels, backbone.strides, channels=16),
        SoloHead(16, 3, channels=16, num_convs=1, kernel_channels=8, grid_sizes=GRID.sizes),
        MaskHead(16, mid_channels=16, out_channels=8),
        heads={"stuff_logits": StuffHead(16, channels=8, num_stuff=2)} if stuff else None,
        grid=GRID,
    )


def make_images(batch: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def total(outputs: Outputs) -> Tensor:
    parts = [outputs.category_logits, outputs.kernels, outputs.mask_features]
    return sum(part.float().square().mean() for part in [*parts, *outputs.extras.values()])


def assert_same(first: Outputs, second: Outputs, **tolerance) -> None:
    for one, other in zip(first[:3], second[:3], strict=True):
        torch.testing.assert_close(one, other, **tolerance)
    assert first.extras.keys() == second.extras.keys()
    for name, value in first.extras.items():
        torch.testing.assert_close(value, second.extras[name], **tolerance)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_runs_and_every_parameter_learns_at_a_foreign_size(name: str) -> None:
    model = make_model(name)
    outputs = model(make_images(2, 96, 160))
    assert outputs.category_logits.shape == (2, GRID.num_cells, 3)
    assert outputs.kernels.shape == (2, GRID.num_cells, 8)
    assert outputs.mask_features.shape == (2, 8, 24, 40)
    assert outputs.extras["stuff_logits"].shape == (2, 3, 24, 40)
    total(outputs).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    for part in (model.backbone, model.neck, model.solo_head, model.mask_head, model.heads):
        assert any(parameter.grad.any() for parameter in part.parameters())


def test_frozen_parameters_get_no_gradient_and_the_rest_does() -> None:
    model = make_model(frozen_stages=2)
    total(model(make_images())).backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.net.conv1", "backbone.net.bn1", "backbone.net.layer1"))
        assert (parameter.grad is None) == frozen, name


@pytest.mark.parametrize(
    ("name", "options"), [("test_convnext", {}), ("test_resnet", {"frozen_bn": True})]
)
def test_same_outputs_in_training_and_evaluation(name: str, options: dict) -> None:
    model = make_model(name, **options)
    images, sizes = make_images(), torch.tensor([[64, 96], [40, 50]])
    with torch.no_grad():
        assert_same(model.train()(images, sizes), model.eval()(images, sizes), rtol=0, atol=0)


def test_uint8_and_float_images_are_the_same() -> None:
    model = make_model().eval()
    images = make_images()
    with torch.no_grad():
        assert_same(model(images), model(images.float()), rtol=0, atol=0)


def test_input_is_normalised_with_the_backbones_statistics() -> None:
    model = make_model("resnet18")
    mean, std = torch.tensor(model.backbone.mean), torch.tensor(model.backbone.std)
    images = mean.view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert model.normalize(images).abs().max() < 1e-5
    images = (mean + std).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(model.normalize(images), torch.ones(1, 3, 32, 32))


def test_padding_is_zero_after_normalising_whatever_it_holds() -> None:
    model = make_model("resnet18")
    images = make_images(3)
    sizes = torch.tensor([[64, 96], [33, 7], [1, 1]])
    ready, plain = model.normalize(images, sizes), model.normalize(images)
    for index, (height, width) in enumerate(sizes.tolist()):
        assert torch.equal(ready[index, :, :height, :width], plain[index, :, :height, :width])
        assert not ready[index, :, height:].any()
        assert not ready[index, :, :, width:].any()
    images[1, :, 33:] = 255
    images[1, :, :, 7:] = 9
    assert torch.equal(model.normalize(images, sizes), ready)


def test_other_images_of_a_batch_change_nothing() -> None:
    model = make_model().eval()
    small = make_images(1, 50, 70)
    batch = make_images(2)
    batch[1] = 131  # padding is not black
    batch[1, :, :50, :70] = small[0]
    alone = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
    alone[:, :, :50, :70] = small
    with torch.no_grad():
        together = model(batch, torch.tensor([[64, 96], [50, 70]]))
        single = model(alone, torch.tensor([[50, 70]]))
    parts = Outputs(
        *(part[1:] for part in together[:3]), {k: v[1:] for k, v in together.extras.items()}
    )
    assert_same(parts, single, rtol=1e-4, atol=1e-5)


def test_extras_are_the_tasks_heads_and_see_pyramid_and_trunk() -> None:
    class Probe(nn.Module):
        def forward(self, pyramid: list[Tensor], trunk: Tensor) -> Tensor:
            self.seen = [tuple(level.shape) for level in pyramid], tuple(trunk.shape)
            return trunk.mean()

    model = make_model(stuff=False)
    assert model(make_images()).extras == {}
    model.heads["probe"] = Probe()
    assert set(model(make_images()).extras) == {"probe"}
    assert model.heads["probe"].seen == (
        [(2, 16, 16, 24), (2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3), (2, 16, 1, 2)],
        (2, 16, 16, 24),
    )


def test_constants_stay_out_of_the_weights_but_follow_the_model() -> None:
    model = make_model()
    assert not {"mean", "std"} & set(model.state_dict())
    assert model.double().mean.dtype == torch.float64
    outputs = model(make_images())
    assert outputs.mask_features.dtype == torch.float64


def test_copy_is_independent_and_keeps_frozen_norms() -> None:
    model = make_model(frozen_bn=True)
    twin = copy.deepcopy(model).eval().train()
    assert not twin.backbone.net.bn1.training
    assert model.categories is None and model.config is None
    with torch.no_grad():
        twin.backbone.net.conv1[0].weight.zero_()
    assert model.backbone.net.conv1[0].weight.any()


def test_half_precision_by_autocast_stays_close() -> None:
    model = make_model().eval()
    images = make_images()
    with torch.no_grad():
        full = model(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(images)
    assert half.category_logits.isfinite().all()
    torch.testing.assert_close(half.mask_features.float(), full.mask_features, rtol=0.1, atol=0.2)


def test_smallest_input() -> None:
    outputs = make_model().eval()(make_images(1, 32, 32), torch.tensor([[1, 1]]))
    assert outputs.mask_features.shape == (1, 8, 8, 8)
    assert all(part.isfinite().all() for part in outputs[:3])


@pytest.mark.parametrize(
    ("images", "sizes", "words"),
    [
        (torch.zeros(3, 64, 64), None, r"\[B, 3, H, W\].*\(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), None, r"\(1, 4, 64, 64\)"),
        (torch.zeros(1, 64, 64, 3), None, r"\(1, 64, 64, 3\)"),
        (torch.zeros(1, 3, 64, 65), None, r"multiples of 32.*\(1, 3, 64, 65\)"),
        (torch.zeros(1, 3, 0, 32), None, "multiples of 32"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int32), None, r"torch\.int32"),
        (torch.zeros(2, 3, 32, 32), torch.ones(1, 2, dtype=torch.int64), r"\[2, 2\].*\(1, 2\)"),
        (torch.zeros(1, 3, 32, 32), torch.ones(2, dtype=torch.int64), r"\(2,\)"),
        (torch.zeros(1, 3, 32, 32), torch.ones(1, 2), r"integers.*torch\.float32"),
    ],
)
def test_wrong_inputs_are_refused_with_what_was_received(images, sizes, words) -> None:
    with pytest.raises(ValueError, match=words):
        make_model()(images, sizes)


def test_parts_that_do_not_fit_are_refused() -> None:
    backbone = TimmBackbone("test_resnet")
    neck = FPN(backbone.channels, backbone.strides, channels=16)
    solo = SoloHead(16, 3, channels=16, num_convs=1, kernel_channels=8, grid_sizes=GRID.sizes)
    with pytest.raises(ValueError, match="grid sizes"):
        UniSolo(backbone, neck, solo, MaskHead(16, 16, 8), grid=GridSpec())
    with pytest.raises(ValueError, match="8 channels and mask features 4"):
        UniSolo(backbone, neck, solo, MaskHead(16, 16, 4), grid=GRID)
