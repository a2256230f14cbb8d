"""What the fuzz tests share: changes to bytes and JSON trees, and the property itself.

A case is a short list of changes that hypothesis draws. Failures are not shrunk: that takes
minutes, and a list of at most five changes can be read.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from unisolo.checkpoint import CheckpointError
from unisolo.config import ConfigError
from unisolo.data.coco_files import DatasetError
from unisolo.data.images import ImageError

OURS = (ConfigError, DatasetError, ImageError, CheckpointError)
SMOKE = 30
"""Cases of each property in the default run."""

COUNTS: Counter[tuple[str, str]] = Counter()

_PHASES = (Phase.explicit, Phase.reuse, Phase.generate)

T = TypeVar("T")
Change: TypeAlias = tuple[str, int, int]


def reads(name: str, call: Callable[[], T], *parts: str) -> T | None:
    """The property: an answer, or an error of ours whose message has `parts` and is short.

    OSError belongs to the file system and is fine too. Anything else fails the test.
    """
    try:
        value = call()
    except OURS as error:
        message = str(error)
        for part in parts:
            assert part in message, message
        assert len(message) < 10_000, f"{len(message)} characters: {message[:300]}"
        COUNTS[name, "refused"] += 1
        return None
    except OSError:
        COUNTS[name, "refused"] += 1
        return None
    COUNTS[name, "read"] += 1
    return value


def both(
    strategy: st.SearchStrategy[Any], *, many: int, smoke: int = SMOKE
) -> Callable[[Callable[[Any, Any], None]], Any]:
    """Make a class of two tests of `check(folder, case)`: a small one, and a slow one of `many`."""

    def decorate(check: Callable[[Any, Any], None]) -> Any:
        class Both:
            @settings(max_examples=smoke, phases=_PHASES)
            @given(case=strategy)
            def test_smoke(self, folder: Any, case: Any) -> None:
                check(folder, case)

            @pytest.mark.slow
            @settings(max_examples=many, phases=_PHASES)
            @given(case=strategy)
            def test_many(self, folder: Any, case: Any) -> None:
                check(folder, case)

        return Both

    return decorate


# Bytes

BYTE_KINDS = ("flip", "set", "cut", "drop", "repeat", "move", "word", "text")
_WORDS = (
    b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80",
    b"\x80\0\0\0", b"\0\1\0\0", b"\0\0\1\0", b"\xff\xfe", b"\xed\xa0\x80", b"-1", b"1e999",
    b"NaN", b'"', b"\\u0000", b"{[", b": ", b"&a *a", b"\n", b"!!int ''",
)  # fmt: skip


def byte_changes(max_size: int = 5) -> st.SearchStrategy[list[Change]]:
    """Changes to bytes; half of the places lie among the first 128, where headers are."""
    places = st.one_of(st.integers(0, 127), st.integers(0, 2**24))
    change = st.tuples(st.sampled_from(BYTE_KINDS), places, st.integers(0, 2**16))
    return st.lists(change, min_size=1, max_size=max_size)


def changed_bytes(content: bytes, changes: Sequence[Change]) -> bytes:
    data = bytearray(content)
    for kind, place, value in changes:
        at = place % (len(data) + 1)
        size = 1 + value % 64
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << value % 8
        elif kind == "set" and at < len(data):
            data[at] = value % 256
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + size]
        elif kind == "repeat":
            data[at:at] = data[at : at + size] * (1 + value % 3)
        elif kind == "move":
            block = data[at : at + size]
            del data[at : at + size]
            to = value % (len(data) + 1)
            data[to:to] = block
        elif kind == "word":
            word = _WORDS[value % len(_WORDS)]
            data[at : at + len(word)] = word
        else:
            data[at:at] = _WORDS[value % len(_WORDS)]
    return bytes(data)


# Trees of JSON

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**63, -(2**63) - 1, 10**300, 10**400, 0.5, -0.0,
    1e300, float("nan"), float("inf"), -float("inf"), "", "0", "1", "x", "../x", "/etc/x", "a\0b",
    "\ud800", "é" * 300, "1e5", [], {}, [[]], [{}], [1], [1, 2, 3, 4], [0, 0, -1, -1],
    [float("nan")] * 4, [1e9] * 4, [10**400] * 4, [[1, 2, 3, 4, 5, 6]], [[1, 2], [3]], ["a", "b"],
    {"size": [24, 36], "counts": "x"}, {"size": [24, 36], "counts": [864]}, {"id": 1}, {"a": {}},
    {"size": [2**40, 2**40], "counts": [1]}, {"size": None, "counts": None}, [None] * 3, "PNG",
    {"counts": "0" * 50, "size": [24, 36]}, {"counts": [-5, 869], "size": [24, 36]},
)  # fmt: skip
TREE_KINDS = (
    "replace", "delete", "repeat", "swap", "rename", "wrap", "deepen", "clear", "shift", "shift",
)  # fmt: skip


def tree_changes(max_size: int = 4) -> st.SearchStrategy[list[Change]]:
    """Changes to a tree: what, at which node (counted in order), and a value to do it with."""
    change = st.tuples(st.sampled_from(TREE_KINDS), st.integers(0, 2**16), st.integers(0, 2**16))
    return st.lists(change, min_size=1, max_size=max_size)


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every node below the root."""
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])
    return found


def changed_tree(tree: Any, changes: Sequence[Change]) -> Any:
    tree = copy.deepcopy(tree)
    for kind, number, value in changes:
        places = _places(tree)
        if not places:
            break
        node, key = places[number % len(places)]
        nasty = copy.deepcopy(NASTY[value % len(NASTY)])
        if kind == "replace":
            node[key] = nasty
        elif kind == "delete":
            del node[key]
        elif kind == "repeat" and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif kind == "swap":
            other, other_key = places[value % len(places)]
            taken = copy.deepcopy(other[other_key]) if other_key in _keys(other) else nasty
            node[key] = taken
        elif kind == "rename" and isinstance(node, dict):
            node[f"{key}x"] = node.pop(key)
        elif kind == "wrap":
            node[key] = [node[key]]
        elif kind == "deepen":
            for _ in range(1 + value % 150):  # what is deeper is in test_hostile_files
                node[key] = [node[key]]
        elif kind == "shift":
            node[key] = _shifted(node[key], value)
        elif kind == "clear":
            node[key] = type(node[key])() if node[key] is not None else 0
    return tree


def _shifted(value: Any, by: int) -> Any:
    """A value of the same kind, not far away: what passes for valid longest."""
    if isinstance(value, str) and value:
        at = by % len(value)
        return value[:at] + chr(32 + by % 96) + value[at + by % 2 :]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return value + (by % 7 - 3) * 10 ** (by % 3)


def _keys(node: Any) -> Any:
    return node if isinstance(node, dict) else range(len(node))
