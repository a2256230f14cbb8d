"""Parameter names of other SOLOv2 codes, and ours: one table, read in both directions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from torch import Tensor

__all__ = ["FORMATS", "Format", "Renamed", "counted", "modern_offsets", "rename"]

LISTED = 3
"""Names that a message lists of many."""

MAX_CONVS = 16
"""Most convolutions in a tower of the head that AdelaiDet's numbered names are known for."""

Value = TypeVar("Value")
Rule = tuple[str, str]


@dataclass(frozen=True)
class Format:
    """How one code names its parameters.

    Rules are pairs of templates, the foreign name and ours; `{i}` and `{j}` stand for the same
    number and `{rest}` for the same text in both. The first rule that fits counts.

    Attributes:
        name: Key in `FORMATS`.
        title: Name for people.
        markers: Names that only this code has.
        rules: See above.
    """

    name: str
    title: str
    markers: tuple[str, ...]
    rules: tuple[Rule, ...]

    def ours(self, foreign: str) -> str | None:
        """Return our name for a foreign one; None where there is none."""
        return _renamed(foreign, self.rules)

    def foreign(self, ours: str) -> str | None:
        """Return the foreign name for ours; None where there is none."""
        return _renamed(ours, [(right, left) for left, right in self.rules])

    def is_of(self, names: Iterable[str]) -> bool:
        """Whether any of the names is one of the markers."""
        return not set(self.markers).isdisjoint(names)


@dataclass(frozen=True)
class Renamed:
    """Foreign weights under our names.

    Attributes:
        form: The format they came in.
        weights: Tensors by our names.
        unknown: Foreign names that have none of ours.
    """

    form: Format
    weights: dict[str, Tensor]
    unknown: tuple[str, ...]

    def listed(self, ours: Sequence[str], *, near: bool = False) -> str:
        """Say how many tensors and which, by their foreign names.

        Args:
            ours: Our names.
            near: Name beside each what the file has that is most alike.
        """
        parts = []
        for name in ours[:LISTED]:
            foreign = self.form.foreign(name) or name
            # What fits no rule is the likeliest to be meant, and is looked at first.
            alike = near and (
                difflib.get_close_matches(foreign, self.unknown, n=2, cutoff=0.8)
                or difflib.get_close_matches(foreign, self._names(), n=2, cutoff=0.8)
            )
            parts.append(
                f"{foreign} (nearest in the file: {', '.join(alike)})" if alike else foreign
            )
        return counted(len(ours), parts)

    def _names(self) -> list[str]:
        return [self.form.foreign(name) or name for name in self.weights]


def rename(state: Mapping[str, Tensor], form: Format) -> Renamed:
    """Give foreign weights our names."""
    names = {name: form.ours(name) for name in state}
    return Renamed(
        form,
        {ours: state[name] for name, ours in names.items() if ours is not None},
        tuple(name for name, ours in names.items() if ours is None),
    )


def counted(count: int, names: Sequence[str]) -> str:
    """Say how many tensors there are, and name the first."""
    more = f" and {count - LISTED} more" if count > LISTED else ""
    return f"{count} tensor{'s' if count != 1 else ''}: {', '.join(names[:LISTED])}{more}"


def modern_offsets(state: Mapping[str, Value]) -> dict[str, Value]:
    """Give offset convolutions their later place inside the convolution that they move.

    `<conv>_offset.weight` becomes `<conv>.conv_offset.weight`; who the owner is, is seen from its
    own weight.
    """
    return {_modern(name, state): value for name, value in state.items()}


def _modern(name: str, state: Mapping[str, Value]) -> str:
    match = re.fullmatch(r"(.*conv\d*)_offset\.(weight|bias)", name)
    if match is None or name.rsplit(".conv_offset.", 1)[0] + ".weight" in state:
        return name
    modern = f"{match[1]}.conv_offset.{match[2]}"
    return name if modern in state else modern  # of two spellings neither may vanish


def _renamed(name: str, rules: Iterable[Rule]) -> str | None:
    for pattern, template in rules:
        match = _compiled(pattern).fullmatch(name)
        if match:
            return template.format(**match.groupdict())
    return None


@cache
def _compiled(template: str) -> re.Pattern[str]:
    expression = re.escape(template)
    for place, what in (("i", r"\d+"), ("j", r"\d+"), ("rest", ".+")):
        expression = expression.replace(rf"\{{{place}\}}", f"(?P<{place}>{what})")
    return re.compile(expression)


def _blocks(foreign: str, ours: str, conv: str = "conv", norm: str = "gn") -> tuple[Rule, Rule]:
    """Rules of a block of convolution and norm."""
    return (
        (f"{foreign}.{conv}.{{rest}}", f"{ours}.conv.{{rest}}"),
        (f"{foreign}.{norm}.{{rest}}", f"{ours}.norm.{{rest}}"),
    )


_MM_TRUNK: tuple[Rule, ...] = (
    ("backbone.{rest}", "backbone.net.{rest}"),
    ("neck.lateral_convs.{i}.conv.{rest}", "neck.laterals.{i}.{rest}"),
    ("neck.fpn_convs.{i}.conv.{rest}", "neck.outputs.{i}.{rest}"),
)

_SOLO = Format(
    name="solo",
    title="SOLO (WXinlong/SOLO, mmdetection 1.x names)",
    markers=(
        "bbox_head.solo_cate.weight",
        "bbox_head.solo_kernel.weight",
        "mask_feat_head.conv_pred.0.conv.weight",
    ),
    rules=(
        *_MM_TRUNK,
        *_blocks("bbox_head.cate_convs.{i}", "solo_head.category_convs.{i}"),
        *_blocks("bbox_head.kernel_convs.{i}", "solo_head.kernel_convs.{i}"),
        ("bbox_head.solo_cate.{rest}", "solo_head.category_out.{rest}"),
        ("bbox_head.solo_kernel.{rest}", "solo_head.kernel_out.{rest}"),
        *_blocks("mask_feat_head.convs_all_levels.{i}.conv{j}", "mask_head.levels.{i}.{j}"),
        *_blocks("mask_feat_head.conv_pred.0", "mask_head.out"),
    ),
)

_MMDETECTION = Format(
    name="mmdetection",
    title="mmdetection 2.x or 3.x",
    markers=(
        "mask_head.conv_cls.weight",
        "mask_head.conv_kernel.weight",
        "mask_head.mask_feature_head.conv_pred.conv.weight",
    ),
    rules=(
        *_MM_TRUNK,
        *_blocks("mask_head.cls_convs.{i}", "solo_head.category_convs.{i}"),
        *_blocks("mask_head.kernel_convs.{i}", "solo_head.kernel_convs.{i}"),
        ("mask_head.conv_cls.{rest}", "solo_head.category_out.{rest}"),
        ("mask_head.conv_kernel.{rest}", "solo_head.kernel_out.{rest}"),
        *_blocks(
            "mask_head.mask_feature_head.convs_all_levels.{i}.conv{j}", "mask_head.levels.{i}.{j}"
        ),
        *_blocks("mask_head.mask_feature_head.conv_pred", "mask_head.out"),
    ),
)


def _detectron2_trunk() -> list[Rule]:
    bottom, net = "backbone.bottom_up", "backbone.net"
    rules = [
        (f"{bottom}.stem.conv1.norm.{{rest}}", f"{net}.bn1.{{rest}}"),
        (f"{bottom}.stem.conv1.{{rest}}", f"{net}.conv1.{{rest}}"),
    ]
    for stage in range(1, 5):  # "res2" is the first stage
        theirs, ours = f"{bottom}.res{stage + 1}.{{i}}", f"{net}.layer{stage}.{{i}}"
        rules += [
            (f"{theirs}.shortcut.norm.{{rest}}", f"{ours}.downsample.1.{{rest}}"),
            (f"{theirs}.shortcut.{{rest}}", f"{ours}.downsample.0.{{rest}}"),
            (f"{theirs}.conv{{j}}.norm.{{rest}}", f"{ours}.bn{{j}}.{{rest}}"),
            (f"{theirs}.conv{{j}}.{{rest}}", f"{ours}.conv{{j}}.{{rest}}"),
        ]
    for level in range(4):
        rules += [
            (f"backbone.fpn_lateral{level + 2}.{{rest}}", f"neck.laterals.{level}.{{rest}}"),
            (f"backbone.fpn_output{level + 2}.{{rest}}", f"neck.outputs.{level}.{{rest}}"),
        ]
    return rules


def _adelaidet_towers() -> list[Rule]:
    """Towers are one sequence of convolution, norm and ReLU, numbered through."""
    rules: list[Rule] = []
    for theirs, ours in (("cate", "category"), ("kernel", "kernel")):
        for conv in range(MAX_CONVS):
            tower, block = f"ins_head.{theirs}_tower", f"solo_head.{ours}_convs.{conv}"
            rules += [
                (f"{tower}.{3 * conv}.{{rest}}", f"{block}.conv.{{rest}}"),
                (f"{tower}.{3 * conv + 1}.{{rest}}", f"{block}.norm.{{rest}}"),
            ]
    return rules


_ADELAIDET = Format(
    name="adelaidet",
    title="AdelaiDet (detectron2 names)",
    markers=("ins_head.cate_pred.weight", "ins_head.kernel_pred.weight"),
    rules=(
        *_detectron2_trunk(),
        *_adelaidet_towers(),
        ("ins_head.cate_pred.{rest}", "solo_head.category_out.{rest}"),
        ("ins_head.kernel_pred.{rest}", "solo_head.kernel_out.{rest}"),
        *_blocks("mask_head.convs_all_levels.{i}.conv{j}", "mask_head.levels.{i}.{j}", "0", "1"),
        *_blocks("mask_head.conv_pred", "mask_head.out", "0", "1"),
    ),
)

FORMATS = {form.name: form for form in (_SOLO, _MMDETECTION, _ADELAIDET)}
"""Every format that is read, by name."""
