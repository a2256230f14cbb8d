"""Which ONNX operators TensorRT's parser takes, on which element types.

Facts from the operator table that the parser's repository publishes (onnx/onnx-tensorrt,
docs/operators.md at commit fa5aa9f61e7781d2ca8f5351d42c1f19525a6124), which speaks of TensorRT
10.15 and opsets 9 to 24. Only operators that exported graphs use, or could come to use, are here.
The restrictions follow from the same table. bf16, fp8 and the 4-bit types, which no graph of ours
has, are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import NodeProto, TensorProto

__all__ = ["DATA_INPUTS", "OPSETS", "TENSORRT", "TYPES", "Constants", "Shapes", "restriction"]

TENSORRT = "10.15"
OPSETS = range(9, 25)

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
INTEGERS = frozenset({TensorProto.INT32, TensorProto.INT64})
BOOL = frozenset({TensorProto.BOOL})
NUMBERS = FLOATS | INTEGERS
ALL = NUMBERS | BOOL

_BOOL = """
    And Or Xor Not
"""
_ALL = """
    Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND
    Identity OneHot Reshape Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze
    Where
"""
_NUMBERS = """
    Abs Add ArgMax ArgMin Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul
    Neg Pad Pow Range ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu ScatterElements ScatterND Sign Sub TopK
"""
_FLOATS = """
    AveragePool BatchNormalization Ceil Clip Conv ConvTranspose Cos CumSum Einsum Erf Exp
    Floor Gemm GlobalAveragePool GridSample GroupNormalization HardSigmoid HardSwish
    InstanceNormalization LayerNormalization LeakyRelu Log MatMul MaxPool PRelu Reciprocal
    Resize Round Sigmoid Sin Softmax Softplus Sqrt Tanh
"""

TYPES: dict[str, frozenset[int]] = {
    **dict.fromkeys(_BOOL.split(), BOOL),
    **dict.fromkeys(_ALL.split(), ALL),
    **dict.fromkeys(_NUMBERS.split(), NUMBERS),
    **dict.fromkeys(_FLOATS.split(), FLOATS),
    # To or from uint8 only where the tensor is an input or output of the network.
    "Cast": ALL | {TensorProto.UINT8},
}
"""Operator -> element types of its data. Absent = not taken (e.g. BitShift, BitwiseAnd)."""

_ONE = """
    CumSum Expand Gather GatherElements GatherND OneHot ReduceL1 ReduceL2 ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Resize Slice Split Squeeze Tile TopK
    Unsqueeze
"""

DATA_INPUTS = {**dict.fromkeys(_ONE.split(), 1), "ConstantOfShape": 0}
"""So many of an operator's inputs are data, whose types count; the others are indices or sizes. All
are data where it is not named."""

Constants = Callable[[str], "list[int] | None"]
"""Name of a tensor -> its values where it is a constant."""

Shapes = Callable[[str], "list[int | None]"]
"""Name of a tensor -> its shape; None where it is free."""


def restriction(node: NodeProto, constants: Constants, shapes: Shapes) -> str | None:
    """Return what the table forbids of a node that it takes, or None."""
    has = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    check = _CHECKS.get(node.op_type)
    return check(node, has, constants, shapes) if check else None


def _constant(place: int, what: str) -> Callable[..., str | None]:
    def check(node: NodeProto, _has: dict, constants: Constants, _shapes: Shapes) -> str | None:
        given = len(node.input) > place and node.input[place]
        return f"{what} is no constant" if given and constants(node.input[place]) is None else None

    return check


def _pool(node: NodeProto, has: dict, _constants: Constants, shapes: Shapes) -> str | None:
    if any(step != 1 for step in has.get("dilations", [])):
        return "dilations are not all 1"
    if len(node.output) > 1 and node.output[1]:
        return "it gives indices"
    return None if len(shapes(node.input[0])) in (4, 5) else "it is neither 2-d nor 3-d"


def _top_k(node: NodeProto, has: dict, constants: Constants, _shapes: Shapes) -> str | None:
    if has.get("sorted", 1) != 1:
        return "it is not sorted"
    count = constants(node.input[1])
    return "k is not below 3840" if count is None or count[0] >= 3840 else None


def _resize(node: NodeProto, has: dict, constants: Constants, _shapes: Shapes) -> str | None:
    modes = {b"half_pixel", b"pytorch_half_pixel", b"tf_half_pixel_for_nn", b"asymmetric"}
    allowed = [
        ("coordinate_transformation_mode", b"half_pixel", modes | {b"align_corners"}),
        ("mode", b"nearest", {b"nearest", b"linear"}),
        (
            "nearest_mode",
            b"round_prefer_floor",
            {b"floor", b"ceil", b"round_prefer_floor", b"round_prefer_ceil"},
        ),
        ("keep_aspect_ratio_policy", b"stretch", {b"stretch"}),
        ("antialias", 0, {0}),
    ]
    for name, default, values in allowed:
        if has.get(name, default) not in values:
            return f"{name} is {has[name]!r}"
    axes = has.get("axes")
    scaled = len(node.input) > 2 and node.input[2] and constants(node.input[2]) is None
    return "axes are given with free scales" if axes is not None and scaled else None


def _static(node: NodeProto, _has: dict, _constants: Constants, shapes: Shapes) -> str | None:
    return "its input has a free size" if None in shapes(node.input[0]) else None


def _four_d(node: NodeProto, _has: dict, _constants: Constants, shapes: Shapes) -> str | None:
    return None if len(shapes(node.input[0])) == 4 else "its input is not 4-d"


_CHECKS: dict[str, Callable[..., str | None]] = {
    "AveragePool": _pool,
    "MaxPool": _pool,
    "CumSum": _constant(1, "axis"),
    "Squeeze": _constant(1, "axes"),
    "Unsqueeze": _constant(1, "axes"),
    **dict.fromkeys(
        ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"], _constant(1, "axes")
    ),
    "OneHot": _constant(1, "depth"),
    "TopK": _top_k,
    "Resize": _resize,
    "EyeLike": _static,
    "GridSample": _four_d,
    "ScatterND": lambda _node, has, _constants, _shapes: (
        "it reduces" if has.get("reduction", b"none") != b"none" else None
    ),
}
