from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tiny_model import tiny_config, tiny_model

from unisolo import UniSolo
from unisolo.build import build_dataset
from unisolo.data.loader import collate
from unisolo.data.shapes import generate_shapes
from unisolo.export import export_checkpoint
from unisolo.export.accuracy import AccuracyChange, compare_accuracy
from unisolo.export.command import image_samples
from unisolo.export.quantize import KEPT, QuantizeReport, quantize_onnx
from unisolo.graphs import GraphError, open_graph
from unisolo.graphs.facts import KEY
from unisolo.zoo import load_model

FEW = ["inference.max_instances=4"]  # the merge of a graph grows with it, and the time to trace
QUICKSTART = Path(__file__).resolve().parents[2] / "runs" / "quickstart"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "shapes"
    return generate_shapes(folder, num_train=4, num_val=3, image_size=(64, 90), seed=1)


@pytest.fixture(scope="module")
def network(scenes: Path) -> UniSolo:
    """An untrained model with instances, of the scenes' categories."""
    config = tiny_config("task=panoptic", f"data.root={scenes}")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = tiny_model(categories=build_dataset(config, split="val").categories).eval()
        for parameter in model.solo_head.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, 0, 0.1)
        torch.nn.init.constant_(model.solo_head.category_out.bias, -1.0)
    return model


@pytest.fixture(scope="module")
def exported(network: UniSolo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    # A fixed size is traced in a fraction of the time; free sizes have a test of their own.
    export_checkpoint(
        network, path, task="panoptic", image_size=(64, 96), overrides=FEW, images=None
    )
    return path


@pytest.fixture(scope="module")
def report(exported: Path, scenes: Path) -> QuantizeReport:
    return quantize_onnx(exported, exported.with_suffix(".int8.onnx"), train_images(scenes))


def train_images(scenes: Path) -> list[Path]:
    return sorted((scenes / "train2017").iterdir())


def with_facts(source: Path, target: Path, **changes: str) -> Path:
    """A copy whose facts say something else, or nothing."""
    model = onnx.load(str(source))
    text = {prop.key: prop.value for prop in model.metadata_props}[KEY]
    for old, new in changes.items():
        text = text.replace(f'"precision": "{old}"', f'"precision": "{new}"')
    onnx.helper.set_model_props(model, {KEY: text} if changes else {})
    onnx.save(model, str(target))
    return target


def outputs(path: Path, scenes: Path, images: Path) -> list[dict[str, torch.Tensor]]:
    graph = open_graph(path, device="cpu")
    found = []
    for sample in image_samples(sorted(images.iterdir()), graph.config):
        batch = collate([sample])
        found.append(graph.run(batch.images, batch.image_sizes))
    return found


def test_the_file_says_int8_and_keeps_its_facts(exported: Path, report: QuantizeReport) -> None:
    before, after = (open_graph(path, device="cpu").facts for path in (exported, report.path))
    assert after == before.with_precision("int8") == report.facts
    assert before.precision == "fp32"
    assert report.images == 4
    assert report.size == report.path.stat().st_size
    assert report.size_before == exported.stat().st_size
    assert [path.name for path in exported.parent.iterdir() if path.name.startswith(".")] == []


def test_only_convolutions_are_in_int8(exported: Path, report: QuantizeReport) -> None:
    before, model = onnx.load(str(exported)).graph, onnx.load(str(report.path)).graph
    makers: dict[str, Any] = {name: node for node in model.node for name in node.output}
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.initializer}
    quantized: list[Any] = []
    kept: list[Any] = []
    for node in model.node:
        if node.op_type == "Conv":
            weight = makers.get(node.input[1])
            (kept if weight is None else quantized).append(node)
            if weight is not None:
                assert weight.op_type == "DequantizeLinear"
                values, scales = arrays[weight.input[0]], arrays[weight.input[1]]
                assert values.dtype == np.int8
                assert scales.shape == values.shape[:1], "one scale per output channel"
                assert makers[node.input[0]].op_type == "DequantizeLinear"
    assert (len(quantized), len(kept)) == (report.quantized, report.kept)
    assert len(quantized) > len(kept)
    first = next(node for node in model.node if node.op_type == "Conv")
    assert all(node is first or any(part in node.input[1] for part in KEPT) for node in kept)
    assert first in kept
    # Every pair of an activation stands at an input or output of the network's convolutions.
    ends = {name for node in before.node if node.op_type == "Conv" for name in node.input[:1]}
    ends |= {name for node in before.node if node.op_type == "Conv" for name in node.output}
    ends |= {
        name
        for node in before.node
        if node.op_type in ("Relu", "Clip") and node.input[0] in ends
        for name in node.output
    }
    stems = {
        name.split("_Quantize")[0] for name in makers if name.endswith("QuantizeLinear_Output")
    }
    assert {stem.split("_Dequantize")[0] for stem in stems} <= ends
    # The rest is what it was: no other node came or went but activations that ranges replace.
    changed = ("QuantizeLinear", "DequantizeLinear", "Relu")
    counts = [
        sorted(node.op_type for node in graph.node if node.op_type not in changed)
        for graph in (before, model)
    ]
    assert counts[0] == counts[1]
    assert {"MatMul", "TopK", "Resize"} <= set(counts[1])


def test_results_are_near_and_of_the_same_form(
    exported: Path, report: QuantizeReport, scenes: Path
) -> None:
    images = scenes / "val2017"
    pairs = zip(
        outputs(exported, scenes, images), outputs(report.path, scenes, images), strict=True
    )
    for before, after in pairs:
        assert {name: (value.shape, value.dtype) for name, value in before.items()} == {
            name: (value.shape, value.dtype) for name, value in after.items()
        }
        assert int(before["count"].sum()) > 0
        assert 0.05 < float(before["top_probs"].mean()) < 0.99
        assert not torch.equal(before["stuff_logits"], after["stuff_logits"])
        torch.testing.assert_close(before["top_probs"], after["top_probs"], atol=0.05, rtol=0)
        both = torch.stack([before["stuff_logits"].flatten(), after["stuff_logits"].flatten()])
        assert float(torch.corrcoef(both)[0, 1]) > 0.99


@pytest.mark.slow
def test_free_sizes_and_final_masks(network: UniSolo, scenes: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "free.onnx", tmp_path / "deep" / "int8.onnx"
    export_checkpoint(
        network, source, task="instance", size="input", batch=2, overrides=FEW, images=None
    )
    tall = np.full((90, 60, 3), 80, np.uint8)
    made = quantize_onnx(
        source, out, [tall, *train_images(scenes)], max_images=3, method="percentile"
    )
    assert made.images == 3
    graph = open_graph(out, device="cpu")
    for height, width in ((64, 96), (96, 64), (128, 160)):
        images = torch.full((1, 3, height, width), 80, dtype=torch.uint8)
        found = graph.run(images, torch.tensor([[height, width]]))
        assert found["masks"].shape == (1, 4, height, width)


def test_what_cannot_be_quantised(exported: Path, report: QuantizeReport, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    picture = [np.zeros((64, 64, 3), np.uint8)]
    with pytest.raises(ValueError, match="no calibration images"):
        quantize_onnx(exported, out, [])
    with pytest.raises(GraphError, match="int8 already; give the fp32 file"):
        quantize_onnx(report.path, out, picture)
    half = with_facts(exported, tmp_path / "half.onnx", fp32="fp16")
    with pytest.raises(GraphError, match=r"is fp16.*--precision fp32"):
        quantize_onnx(half, out, picture)
    with pytest.raises(GraphError, match="not exported by unisolo"):
        quantize_onnx(with_facts(exported, tmp_path / "other.onnx"), out, picture)
    with pytest.raises(GraphError, match=r"missing\.onnx"):
        quantize_onnx(tmp_path / "missing.onnx", out, picture)
    with pytest.raises(ValueError, match=r"model\.xml: only \.onnx files"):
        quantize_onnx(tmp_path / "model.xml", out, picture)
    with pytest.raises(GraphError, match=r"made for inputs of 64 x 96.*96 x 64"):
        quantize_onnx(exported, out, [np.zeros((90, 60, 3), np.uint8)])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        quantize_onnx(exported, out, picture, max_images=0)
    with pytest.raises(ValueError, match="minmax, percentile, entropy, got 'best'"):
        quantize_onnx(exported, out, picture, method="best")
    assert not out.exists()
    before = exported.read_bytes()
    with pytest.raises(ValueError, match="is the source itself"):
        quantize_onnx(exported, exported.parent / ".." / exported.parent.name / exported.name, [])
    assert exported.read_bytes() == before


def test_accuracy_of_both_files(exported: Path, report: QuantizeReport, scenes: Path) -> None:
    seen: list[tuple[int, int]] = []
    change = compare_accuracy(
        exported,
        report.path,
        scenes,
        device="cpu",
        overrides=["data.workers=0"],
        on_image=lambda done, total: seen.append((done, total)),
    )
    assert change.before.keys() == change.after.keys() >= {"panoptic/PQ", "segm/AP", "bbox/AP"}
    assert seen.count((3, 3)) == 2
    with pytest.raises(ValueError, match="train2099"):
        compare_accuracy(exported, report.path, scenes, split="train2099", device="cpu")


def test_losses_and_rows() -> None:
    nan = float("nan")
    before = {"panoptic/PQ": 50.0, "segm/AP": nan, "bbox/AP": 10.0, "bbox/APs": 1.0}
    change = AccuracyChange(before, {**before, "panoptic/PQ": 49.25, "bbox/AP": 11.0})
    assert change.losses == {"panoptic/PQ": 0.75, "bbox/AP": -1.0}
    assert ("PQ", 50.0, 49.25, -0.75) in change.rows()
    assert [row[0] for row in change.rows()] == ["PQ", "segm AP", "bbox AP"]


@pytest.mark.slow
def test_a_trained_model_loses_less_than_one_point(tmp_path: Path) -> None:
    checkpoint, data = QUICKSTART / "model.safetensors", QUICKSTART / "data"
    if not checkpoint.is_file() or not data.is_dir():
        pytest.skip(f"no trained model in {QUICKSTART}; `make quickstart` makes one")
    source = tmp_path / "model.onnx"
    export_checkpoint(load_model(checkpoint), source, images=None)
    made = quantize_onnx(source, tmp_path / "int8.onnx", train_images(data))
    losses = compare_accuracy(source, made.path, data, device="cpu").losses
    assert losses.keys() == {"panoptic/PQ", "segm/AP", "bbox/AP"}
    assert max(losses.values()) < 1.0, losses
