"""Real exports, run by their real runtimes, through the functions and commands people use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import lively_model, tiny_model
from typer.testing import CliRunner

from unisolo import Predictor, UniSolo, load_model, save_model
from unisolo.cli import app
from unisolo.export import convert_graph, export_checkpoint
from unisolo.export.difference import Difference, compare
from unisolo.export.verify import verify
from unisolo.graphs import Graph, GraphError, open_graph
from unisolo.structures import Sample

onnx = pytest.importorskip("onnx", reason="the export extra is not installed")
pytest.importorskip("onnxscript", reason="the export extra is not installed")
pytest.importorskip("onnxruntime", reason="the export extra is not installed")
pytest.importorskip("openvino", reason="the export extra is not installed")

SETTINGS = ("inference.max_instances=8", "inference.panoptic_score_threshold=0.2")
SMALL = {"image_size": (64, 96), "batch": 1}  # a fixed input is traced several times faster
ENDINGS = ["onnx", "pt2", "xml"]
NEAR = 1e-3  # share of pixels: one or two of these small images


@pytest.fixture(scope="module", params=ENDINGS)
def graph(request: pytest.FixtureRequest, free_graphs: dict[str, Path]) -> Graph:
    """A panoptic graph of size "stride4" in each format, with free sizes and batch."""
    return open_graph(free_graphs[request.param], device="cpu")


def test_export_agrees_with_the_model(graph: Graph, model: UniSolo, samples: list[Sample]) -> None:
    difference = verify(model, graph, samples)
    assert difference.instances > 60 and difference.unmatched == 0
    assert difference.score < 1e-5 and difference.mask < NEAR
    assert difference.panoptic is not None and difference.panoptic < NEAR
    assert [path.name for path in graph.path.parent.iterdir() if path.name[0] == "."] == []


def test_other_sizes_and_batches_than_traced(
    graph: Graph,
) -> None:
    for size in [(32, 32), (64, 416), (192, 32)]:
        images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)
        named = graph.run(images, torch.tensor([size] * 3))
        assert named["mask_probs"].shape == (3, 8, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("task", ["panoptic", "instance", "detection"])
def test_predictor_gives_the_checkpoints_results(
    graph: Graph,
    model: UniSolo,
    pictures: list[Path],
    task: str,
) -> None:
    theirs = Predictor(graph.path, task=task)
    ours = Predictor(model, task=task)
    constants = {"max_instances": 8}
    own = {"panoptic_score_threshold": 0.2} if task == "panoptic" else {}
    total = Difference()
    for image in pictures:
        right = theirs.predict(image, score_threshold=0.1, **constants)
        left = ours.predict(image, score_threshold=0.1, **constants, **own)
        total = total.join(compare(left, right))
        assert right.categories == left.categories and right.image_size == left.image_size
        assert (right.packed_masks is None) == (task == "detection")
        assert right.explain() == left.explain()
    assert total.instances > 30 and total.unmatched == 0
    assert total.score < 1e-5 and total.mask < NEAR and (total.panoptic or 0) < NEAR
    together = theirs.predict_batch(pictures, score_threshold=0.1)
    assert [len(result) for result in together] == [
        len(theirs.predict(image, score_threshold=0.1)) for image in pictures
    ]


def test_nothing_found(tmp_path: Path, pictures: list[Path]) -> None:
    blind = tiny_model().eval()
    torch.nn.init.constant_(blind.solo_head.category_out.bias, -30.0)
    report = export_checkpoint(
        blind, tmp_path / "blind.onnx", task="instance", images=pictures[:2], **SMALL
    )
    assert report.difference is not None and report.difference.instances == 0 and report.passed
    assert len(Predictor(report.path).predict(pictures[0])) == 0


@pytest.mark.parametrize(
    ("ending", "task", "size", "dtype"),
    [
        ("onnx", "instance", "input", "float32"),
        pytest.param("xml", "detection", "input", "uint8", marks=pytest.mark.slow),
        pytest.param("pt2", "panoptic", (70, 90), "uint8", marks=pytest.mark.slow),
    ],
)
def test_final_sizes_and_fixed_inputs(
    tmp_path: Path,
    model: UniSolo,
    samples: list[Sample],
    ending: str,
    task: str,
    size: object,
    dtype: str,
) -> None:
    report = export_checkpoint(
        model,
        tmp_path / f"model.{ending}",
        task=task,
        size=size,  # type: ignore[arg-type]
        image_dtype=dtype,
        image_size=(128, 160),
        batch=2,
        overrides=SETTINGS,
        images=None,
    )
    assert report.difference is None and report.passed is None
    graph = open_graph(report.path)
    difference = verify(model, graph, samples)
    assert difference.instances > 60 and difference.unmatched == 0
    assert difference.score < 1e-5 and difference.mask < NEAR
    with pytest.raises(GraphError, match="--size stride4"):
        Predictor(report.path)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "convnext_atto", "resnet18"])
def test_other_backbones_at_free_sizes(
    tmp_path: Path, samples: list[Sample], backbone: str
) -> None:
    """ "Same" padding, channels-last blocks, and what all others are like."""
    model = lively_model(f"model.backbone={backbone}")
    export_checkpoint(
        model, tmp_path / "model.onnx", task="instance", images=None, overrides=SETTINGS
    )
    convert_graph(tmp_path / "model.onnx", tmp_path / "model.xml")
    for ending in ("onnx", "xml"):
        difference = verify(model, open_graph(tmp_path / f"model.{ending}"), samples)
        assert difference.instances > 60 and difference.unmatched == 0, (ending, difference)
        assert difference.score < 1e-4 and difference.mask < NEAR, (ending, difference)


@pytest.mark.slow
def test_half_precision_stays_near(tmp_path: Path, model: UniSolo, pictures: list[Path]) -> None:
    report = export_checkpoint(
        model, tmp_path / "half.onnx", task="instance", precision="fp16", images=pictures
    )
    assert report.passed is None and report.difference is not None
    assert report.difference.unmatched < 0.1 * report.difference.instances
    kinds = {
        initializer.data_type
        for initializer in onnx.load(report.path).graph.initializer
        if len(initializer.dims) == 4
    }
    assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds


def test_onnx_has_named_inputs_outputs_and_free_sizes(free_onnx: Path) -> None:
    model = onnx.load(free_onnx)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["images", "image_sizes"]
    facts = open_graph(free_onnx).facts
    assert tuple(value.name for value in model.graph.output) == facts.outputs
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param != "" for dim in dims] == [True, False, True, True]
    # A data-dependent branch or loop would be one of these.
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"If", "Loop", "Scan", "NonZero", "NonMaxSuppression"}


# Errors


def test_thresholds_of_a_graph_are_constants(graph: Graph, pictures: list[Path]) -> None:
    predictor = Predictor(graph.path)
    with pytest.raises(GraphError, match=r"nms_sigma is a constant of the graph \(2.0\)"):
        predictor.predict(pictures[0], nms_sigma=3.0)
    with pytest.raises(GraphError, match="candidate_threshold is a constant"):
        predictor.predict(pictures[0], candidate_threshold=0.2)
    # Those of the merge are not: it is done at the size of the original image.
    predictor.predict(pictures[0], panoptic_score_threshold=0.9, stuff_area_threshold=1)
    with pytest.raises(GraphError, match="the precision is the graph's"):
        Predictor(graph.path, dtype="bf16")


def test_files_that_are_no_graphs(tmp_path: Path, graph: Graph) -> None:
    suffix = graph.path.suffix
    with pytest.raises(GraphError, match="no such exported graph"):
        Predictor(tmp_path / f"absent{suffix}")
    broken = tmp_path / f"broken{suffix}"
    broken.write_bytes(graph.path.read_bytes()[: 2000 if suffix != ".xml" else 300])
    with pytest.raises(GraphError, match=r"broken.*cannot open it"):
        Predictor(broken)


def test_an_onnx_file_of_others_is_told(tmp_path: Path, free_onnx: Path) -> None:
    foreign = onnx.load(free_onnx)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(GraphError, match="not exported by unisolo"):
        open_graph(tmp_path / "foreign.onnx")
    foreign.metadata_props.add(key="unisolo", value=json.dumps({"format_version": 99}))
    onnx.save(foreign, tmp_path / "newer.onnx")
    with pytest.raises(GraphError, match="format version 99 is newer"):
        open_graph(tmp_path / "newer.onnx")
    with pytest.raises(ValueError, match="device 'abacus' cannot be used for an ONNX file"):
        open_graph(free_onnx, device="abacus")
    with pytest.raises(ValueError, match="device 'cpu:x' cannot be used"):
        open_graph(free_onnx, device="cpu:x")
    (tmp_path / "model.txt").write_bytes(b"")
    with pytest.raises(GraphError, match=r"no exported graph has this ending; they are \.onnx"):
        open_graph(tmp_path / "model.txt")
    for source, out in (("model.pt2", "model.xml"), (free_onnx, "model.pt2"), (free_onnx, "A.XML")):
        with pytest.raises(ValueError, match=r"only .onnx can be turned, and only into .xml"):
            convert_graph(source, tmp_path / out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": "model.bin"}, "no format has this ending; use .onnx, .pt2, .xml"),
        ({"out": "model.onnx", "format": "torch"}, "files of this format end in .pt2"),
        ({"out": "model.XML"}, "files of this format end in .xml"),
        ({"image_size": (32, 32)}, "fixed to 32 x 32, and an image to compare on becomes"),
        ({"out": "model.onnx", "format": "tflite"}, "unknown format 'tflite'"),
        ({"image_size": (100, 128)}, "multiples of 32, got 100 x 128"),
        ({"precision": "int8"}, "unisolo quantize"),
        ({"size": "stride8"}, "size must be stride4, input or HxW"),
        ({"size": (0, 4)}, "must be positive"),
        ({"batch": 0}, "at least 1"),
        ({"image_dtype": "int32"}, "uint8 or float32"),
        ({"overrides": ["train.lr=1"]}, "changes nothing in an export"),
        ({"overrides": ["inference.max_instance=1"]}, "did you mean 'max_instances'"),
        ({"task": "semantic"}, "unknown task"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, model: UniSolo, arguments: dict[str, object], message: str
) -> None:
    out = tmp_path / str(arguments.pop("out", "model.onnx"))
    with pytest.raises(ValueError, match=message):
        export_checkpoint(model, out, **arguments)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# The command


def test_the_command(tmp_path: Path, model: UniSolo, pictures: list[Path]) -> None:
    save_model(model, tmp_path / "model.safetensors")
    out = tmp_path / "model.onnx"
    words = ["export", str(tmp_path / "model.safetensors"), "--out", str(out), "--task", "instance"]
    fixed = ["--fixed", "64x96", "--batch", "1", "--images", str(pictures[0].parent)]
    run = CliRunner().invoke(app, [*words, *fixed, *SETTINGS])
    assert run.exit_code == 0, run.output
    assert "2 images of" in run.output and "without partner" in run.output
    run = CliRunner().invoke(app, ["export", str(out), "--out", str(out.with_suffix(".xml"))])
    assert run.exit_code == 0, run.output
    ours = Predictor(load_model(tmp_path / "model.safetensors"), task="instance")
    expected = ours.predict(pictures[0], max_instances=8).to_coco(1)
    for suffix in (".onnx", ".xml"):
        place = tmp_path / suffix[1:]
        words = ["predict", str(pictures[0]), "--checkpoint", str(out.with_suffix(suffix))]
        run = CliRunner().invoke(app, [*words, "--out", str(place)])
        assert run.exit_code == 0, run.output
        written = json.loads((place / "predictions.json").read_text())["annotations"]
        assert [one["category_id"] for one in written] == [one["category_id"] for one in expected]
        np.testing.assert_allclose(
            [one["score"] for one in written], [one["score"] for one in expected], atol=1e-5
        )
    run = CliRunner().invoke(app, ["export", str(out), "--out", "x.xml", "--task", "instance"])
    assert run.exit_code == 2 and "is exported already" in run.output
    run = CliRunner().invoke(
        app, ["export", str(tmp_path / "model.safetensors"), "--out", "x.onnx", "--fixed", "64by64"]
    )
    assert run.exit_code == 2 and "HxW" in run.output
