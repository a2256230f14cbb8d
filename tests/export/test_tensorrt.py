"""Exported ONNX graphs hold only operators that TensorRT's parser takes, by its published table.

TensorRT itself does not run here: what these tests promise is what the table promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper, shape_inference
from onnx.helper import make_node, make_tensor_value_info
from tensorrt_operators import DATA_INPUTS, OPSETS, TYPES, restriction
from tiny_model import lively_model

from unisolo.export import export_checkpoint
from unisolo.graphs import Size


@dataclass(frozen=True)
class Kind:
    """A graph as users of TensorRT export it: fixed size and one image, unless `free`."""

    task: str
    size: Size
    precision: str = "fp32"
    mask_deform: str = "none"
    free: bool = False

    def __str__(self) -> str:
        deform = "deform" if self.mask_deform != "none" else "plain"
        sizes = "free" if self.free else "fixed"
        return f"{self.task}-{self.size}-{self.precision}-{deform}-{sizes}"


GRAPHS = [
    Kind("panoptic", "input"),
    Kind("panoptic", "stride4"),
    Kind("instance", "input"),
    Kind("instance", "stride4"),
    Kind("detection", "input"),
    Kind("detection", "stride4"),
    Kind("panoptic", "input", precision="fp16"),
    Kind("instance", "input", mask_deform="v2"),
    Kind("instance", "input", free=True),
]


class Graph:
    """An ONNX file with the types, shapes and constants of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        model = shape_inference.infer_shapes(model)
        graph = model.graph
        self.opsets = {entry.domain: entry.version for entry in model.opset_import}
        self.nodes = list(graph.node)
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self._constants = {entry.name: entry for entry in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant":
                (value,) = [entry.t for entry in node.attribute if entry.name == "value"]
                self._constants[node.output[0]] = value
        self._types = {name: entry.data_type for name, entry in self._constants.items()}
        self._shapes: dict[str, list[int | None]] = {
            name: list(entry.dims) for name, entry in self._constants.items()
        }
        for value in [*graph.value_info, *graph.input, *graph.output]:
            self._types[value.name] = value.type.tensor_type.elem_type
            self._shapes[value.name] = [
                size.dim_value if size.HasField("dim_value") else None
                for size in value.type.tensor_type.shape.dim
            ]

    def type(self, name: str) -> int:
        return self._types[name]

    def shape(self, name: str) -> list[int | None]:
        return self._shapes[name]

    def constant(self, name: str) -> list[int] | None:
        entry = self._constants.get(name)
        return None if entry is None else numpy_helper.to_array(entry).reshape(-1).tolist()


def complaints(graph: Graph) -> list[str]:
    """What TensorRT's table does not allow, a sentence for each node."""
    found = []
    for node in graph.nodes:
        name = f"{node.op_type} {node.name}"
        if node.domain not in ("", "ai.onnx") or node.op_type not in TYPES:
            found.append(f"{name}: not taken")
            continue
        last = DATA_INPUTS.get(node.op_type, len(node.input))
        data = [entry for entry in node.input[:last] if entry] or list(node.output[:1])
        if node.op_type == "Cast":
            data = [*node.input, *node.output]
        inside = [entry for entry in data if entry not in graph.inputs | graph.outputs]
        for kind in {graph.type(entry) for entry in data} - TYPES[node.op_type]:
            found.append(f"{name}: not on {TensorProto.DataType.Name(kind)}")
        if any(graph.type(entry) == TensorProto.UINT8 for entry in inside):
            found.append(f"{name}: uint8 inside the network")
        why = restriction(node, graph.constant, graph.shape)
        if why is not None:
            found.append(f"{name}: {why}")
    return found


def exported(kind: Kind, path: Path) -> Graph:
    """The graph, with few instances: the panoptic merge has the same nodes for each."""
    export_checkpoint(
        lively_model("inference.max_instances=3", f"model.mask_deform={kind.mask_deform}"),
        path,
        task=kind.task,
        size=kind.size,
        precision=kind.precision,
        # Of a uint8 tensor the parser does not take the shape.
        image_dtype="float32" if kind.free else "uint8",
        batch=None if kind.free else 1,
        image_size=None if kind.free else (64, 96),
        images=None,
    )
    return Graph(onnx.load(path))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if n else ()) for n, kind in enumerate(GRAPHS)],
    ids=str,
)
def test_operators_types_and_restrictions(kind: Kind, tmp_path: Path) -> None:
    graph = exported(kind, tmp_path / "model.onnx")
    assert graph.opsets[""] in OPSETS
    assert complaints(graph) == []


INPUTS = {"pixels": TensorProto.UINT8, "numbers": TensorProto.INT64, "k": TensorProto.INT64}
INPUTS |= {"values": TensorProto.FLOAT, "flags": TensorProto.BOOL}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        (make_node("Add", ["values", "values"], ["out"]), None),
        (make_node("BitShift", ["pixels", "pixels"], ["out"], direction="LEFT"), "not taken"),
        (make_node("CumSum", ["numbers", "two"], ["out"]), "not on INT64"),
        (make_node("CumSum", ["values", "two"], ["out"]), None),
        (make_node("CumSum", ["values", "k"], ["out"]), "axis is no constant"),
        (make_node("ReduceSum", ["values", "k"], ["out"]), "axes is no constant"),
        (make_node("Unsqueeze", ["values", "k"], ["out"]), "axes is no constant"),
        (make_node("Equal", ["flags", "flags"], ["out"]), "not on BOOL"),
        (make_node("Add", ["pixels", "pixels"], ["out"]), "not on UINT8"),
        (make_node("Cast", ["pixels"], ["out"], to=TensorProto.FLOAT), None),
        (make_node("TopK", ["values", "k"], ["out", "places"]), "k is not below 3840"),
        (make_node("TopK", ["values", "many"], ["out", "places"]), "k is not below 3840"),
        (make_node("TopK", ["values", "two"], ["out", "places"]), None),
        (make_node("TopK", ["values", "two"], ["out", "places"], sorted=0), "it is not sorted"),
        (
            make_node("Resize", ["values", "", "", "sizes"], ["out"], mode="cubic"),
            "mode is b'cubic'",
        ),
        (make_node("Resize", ["values", "", "", "sizes"], ["out"], mode="linear"), None),
        (
            make_node("Resize", ["values", "", "", "sizes"], ["out"], mode="linear", antialias=1),
            "antialias is 1",
        ),
        (make_node("MaxPool", ["values"], ["out"], kernel_shape=[2, 2]), None),
        (
            make_node("MaxPool", ["values"], ["out", "places"], kernel_shape=[2, 2]),
            "it gives indices",
        ),
        (
            make_node("MaxPool", ["values"], ["out"], kernel_shape=[2, 2], dilations=[2, 2]),
            "dilations are not all 1",
        ),
        (make_node("EyeLike", ["values"], ["out"]), "its input has a free size"),
    ],
)
def test_the_check_sees_what_the_table_forbids(node: onnx.NodeProto, expected: str | None) -> None:
    free = [make_tensor_value_info(name, kind, ["n", 1, 8, 8]) for name, kind in INPUTS.items()]
    constants = {"two": [2], "many": [3840], "sizes": [1, 1, 4, 4]}
    graph = onnx.helper.make_graph(
        [node],
        "graph",
        free,
        [onnx.helper.make_empty_tensor_value_info(name) for name in node.output],
        [numpy_helper.from_array(np.array(values), name) for name, values in constants.items()],
    )
    found = complaints(Graph(onnx.helper.make_model(graph)))
    assert found == ([] if expected is None else [f"{node.op_type} : {expected}"])


def test_uint8_is_for_inputs_and_outputs_of_the_network() -> None:
    graph = onnx.helper.make_graph(
        [
            make_node("Cast", ["values"], ["middle"], to=TensorProto.UINT8),
            make_node("Cast", ["middle"], ["out"], to=TensorProto.FLOAT),
        ],
        "graph",
        [make_tensor_value_info("values", TensorProto.FLOAT, [3])],
        [make_tensor_value_info("out", TensorProto.FLOAT, [3])],
    )
    found = complaints(Graph(onnx.helper.make_model(graph)))
    assert found == ["Cast : uint8 inside the network"] * 2
