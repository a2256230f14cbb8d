"""Foreign files: containers, objects of other packages, and files that want to run something."""

from __future__ import annotations

import collections
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unisolo.convert import ConversionError
from unisolo.convert.reading import read_foreign

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.num_batches_tracked": torch.tensor(7)}
RAN: list[str] = []


def check(state: dict[str, Tensor]) -> None:
    assert state.keys() == WEIGHTS.keys()
    for name, values in state.items():
        assert torch.equal(values, WEIGHTS[name])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("tree", "ignored"),
    [
        (WEIGHTS, ()),
        (collections.OrderedDict(WEIGHTS), ()),
        ({"model": WEIGHTS}, ()),
        ({"model": WEIGHTS, "iteration": 5}, ("beside the weights: iteration",)),
        (
            {"meta": {"epoch": 1}, "state_dict": WEIGHTS, "optimizer": {}},
            ("beside the weights: meta, optimizer",),
        ),
        (
            {"model": WEIGHTS, **{f"{n}" * 50: n for n in range(10, 24)}},
            ("beside the weights: " + ", ".join(f"{n}" * 20 for n in range(10, 22)) + ", ...",),
        ),
        ({"state_dict": {f"module.{name}": value for name, value in WEIGHTS.items()}}, ()),
        (
            {"state_dict": {**WEIGHTS, "ema_a_weight": torch.ones(2)}},
            ("copies of a moving average (ema_*): 1",),
        ),
    ],
)
def test_containers(tmp_path: Path, tree: Any, ignored: tuple[str, ...], zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=zipped)
    file = read_foreign(path)
    check(file.state)
    assert file.ignored == ignored
    assert file.class_names is None


def test_safetensors(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    check(read_foreign(tmp_path / "weights.safetensors").state)


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"CLASSES": ("cat", "dog")}, ("cat", "dog")),  # 1.x, 2.x
        ({"CLASSES": "cat"}, ("cat",)),
        ({"dataset_meta": {"classes": ["cat", "dog"], "palette": []}}, ("cat", "dog")),  # 3.x
        ({"dataset_meta": {"CLASSES": ("cat",)}, "CLASSES": ("dog",)}, ("cat",)),
        ({"CLASSES": None}, None),
        ({}, None),
        (None, None),
        ("text", None),
    ],
)
def test_class_names(tmp_path: Path, meta: Any, expected: Any) -> None:
    torch.save({"meta": meta, "state_dict": WEIGHTS}, tmp_path / "weights.pth")
    assert read_foreign(tmp_path / "weights.pth").class_names == expected


@pytest.fixture
def other_packages() -> Any:
    """Classes of packages that exist while a file is written, and not when it is read."""
    module = types.ModuleType("elsewhere_engine")

    class HistoryBuffer:
        def __init__(self) -> None:
            self.values = np.arange(3)
            self.scalar = np.float64(0.5)

        def __setstate__(self, state: Any) -> None:
            RAN.append("HistoryBuffer.__setstate__")

    class ConfigDict(dict):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.note = "an attribute"

    class Names(list):
        pass

    def make() -> HistoryBuffer:
        RAN.append("make")
        return HistoryBuffer()

    class Made:
        def __reduce__(self) -> Any:
            return make, ()

    for item in (HistoryBuffer, ConfigDict, Names, make, Made):
        item.__module__ = "elsewhere_engine"
        item.__qualname__ = item.__name__
        setattr(module, item.__name__, item)
    sys.modules["elsewhere_engine"] = module
    RAN.clear()
    yield module
    sys.modules.pop("elsewhere_engine", None)


@pytest.mark.parametrize("installed", [False, True])
def test_objects_of_other_packages_become_placeholders(
    tmp_path: Path, other_packages: Any, installed: bool
) -> None:
    tree = {
        "meta": {
            "dataset_meta": {"classes": ("cat", "dog"), "palette": np.zeros((2, 3))},
            "cfg": other_packages.ConfigDict(model=other_packages.ConfigDict(type="SOLOv2")),
        },
        "state_dict": WEIGHTS,
        "message_hub": {
            "log_scalars": {"loss": other_packages.HistoryBuffer()},
            "time": np.float32(1.5),
            "list": other_packages.Names([1, 2]),
            "made": other_packages.Made(),
            "counts": collections.defaultdict(int, a=1),
            "path": Path("x"),
        },
    }
    torch.save(tree, tmp_path / "weights.pth")
    RAN.clear()
    before = set(
        torch.serialization.get_safe_globals()
    )  # torch lists a set: the order says nothing
    if not installed:
        del sys.modules["elsewhere_engine"]
    file = read_foreign(tmp_path / "weights.pth")
    check(file.state)
    assert file.class_names == ("cat", "dog")
    assert RAN == []
    # Nothing stays allowed for others.
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_placeholder_is_no_weight(tmp_path: Path, other_packages: Any) -> None:
    torch.save({"state_dict": {"a": other_packages.HistoryBuffer()}}, tmp_path / "weights.pth")
    with pytest.raises(ConversionError, match=r"no named weights.*'a' is no plain tensor"):
        read_foreign(tmp_path / "weights.pth")


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def write_marker(path: str) -> None:
    Path(path).touch()


def attacks(marker: Path) -> dict[str, Runs]:
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": Runs(os.system, f"touch {marker}"),
        "eval": Runs(eval, code),
        "exec": Runs(exec, code),
        "open": Runs(open, str(marker), "w"),
        "getattr": Runs(getattr, Runs(__import__, "os"), "system"),
        "subprocess": Runs(subprocess.check_call, ["touch", str(marker)]),
        "function here": Runs(write_marker, str(marker)),
        "nested": Runs(map, Runs(eval, f"lambda _: {code}"), [1]),
        "pickle in pickle": Runs(pickle.loads, pickle.dumps(Runs(eval, code))),
        "torch.load": Runs(torch.load, str(marker)),
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "pkl"])
@pytest.mark.parametrize("place", ["meta", "state_dict", "itself", "key"])
@pytest.mark.parametrize("attack", list(attacks(Path("x"))))
def test_nothing_in_a_file_is_executed(tmp_path: Path, attack: str, place: str, form: str) -> None:
    marker = tmp_path / "marker"
    evil = attacks(marker)[attack]
    tree: Any = {
        "meta": {"meta": {"CLASSES": evil}, "state_dict": WEIGHTS},
        "state_dict": {"state_dict": {**WEIGHTS, "b": evil}},
        "itself": evil,
        "key": {"state_dict": WEIGHTS, evil: 1},
    }[place]
    path = tmp_path / ("weights.pkl" if form == "pkl" else "weights.pth")
    if form in ("zip", "legacy"):
        torch.save(tree, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(tree, protocol=2 if form == "pickle" else 4))
    before = set(
        torch.serialization.get_safe_globals()
    )  # torch lists a set: the order says nothing
    try:
        file = read_foreign(path)
    except ConversionError as error:
        assert str(path) in str(error)
        assert "add_safe_globals" not in str(error)
    else:
        assert form == "zip" and place in ("meta", "key")
        check(file.state)
    assert not marker.exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """Without protection most of them do write the file."""
    succeeded = set()
    for name in attacks(Path("x")):
        marker = tmp_path / name.replace(" ", "_")
        torch.save({"a": attacks(marker)[name]}, tmp_path / "weights.pth")
        try:
            list_or_value = torch.load(tmp_path / "weights.pth", weights_only=False)["a"]
            if isinstance(list_or_value, map):
                list(list_or_value)
        except Exception:  # whatever a hostile call raises
            pass
        if marker.exists():
            succeeded.add(name)
    assert succeeded >= {"os.system", "eval", "exec", "open", "subprocess", "function here"}
    assert succeeded >= {"nested", "pickle in pickle"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("weights.pth", b"", ["cannot be read without running code"]),
        ("weights.pth", b"PK\x03\x04 not a zip", ["cannot be read without running code"]),
        ("weights.pth", b"\x80\x02}q\x00.", ["cannot be read without running code"]),
        ("weights.safetensors", b"{}", ["not a safetensors file", "copy it again"]),
        ("weights.pkl", pickle.dumps({"model": {"a": np.zeros(2)}}), ["pickle.load", "['model']"]),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversionError) as error:
        read_foreign(tmp_path / name)
    for word in [str(tmp_path / name), *words]:
        assert word in str(error.value)


def test_truncated_at_any_place(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    for length in range(0, len(content), 97):
        (tmp_path / "weights.pth").write_bytes(content[:length])
        with pytest.raises(ConversionError, match=r"weights\.pth"):
            read_foreign(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ([1, 2], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({}, "it is empty"),
        ({"state_dict": {}}, "it is empty"),
        ({"epoch": 3}, "'epoch' is no plain tensor"),
        ({"a": torch.eye(2).to_sparse()}, "'a' is no plain tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' is no plain tensor"),
        ({"a": torch.empty(2, device="meta")}, "'a' is no plain tensor"),
    ],
)
def test_what_holds_no_weights(tmp_path: Path, tree: Any, words: str) -> None:
    torch.save(tree, tmp_path / "weights.pth")
    with pytest.raises(ConversionError, match=words):
        read_foreign(tmp_path / "weights.pth")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no such weights file"):
        read_foreign(tmp_path / "absent.pth")
    with pytest.raises(ConversionError, match="a folder, not a weights file"):
        read_foreign(tmp_path)
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(ConversionError, match="not a regular file"):
        read_foreign(tmp_path / "pipe.pth")
