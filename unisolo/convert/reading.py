"""Foreign weight files: read without running anything they ask for.

Torch files are read with `weights_only=True`. Training checkpoints of other frameworks hold objects
of those frameworks (message logs, NumPy scalars, configurations) beside their weights; every name
that torch would refuse is read as an inert placeholder, never imported and never called.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unisolo.reading import file_problem, short

__all__ = ["ConversionError", "ForeignFile", "read_foreign"]

WRAPPERS = ("state_dict", "model")
"""Names under which frameworks keep the weights inside a checkpoint."""

MOST_LISTED = 12
"""Other entries of a file that a report lists."""


class ConversionError(ValueError):
    """Foreign weights that cannot be converted; the message names the file and the fix."""


@dataclass(frozen=True)
class ForeignFile:
    """What was read from a foreign file.

    Attributes:
        state: Tensors by name, on the CPU; possibly mapped from the file.
        class_names: Names of the classes in channel order, where the file states them.
        ignored: What else the file holds, in words.
    """

    state: dict[str, Tensor]
    class_names: tuple[str, ...] | None
    ignored: tuple[str, ...]


class _Inert(list[Any]):
    """Stands for an object of a class that is not read; a list, as some such classes are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _InertMapping:
    """Stands for a class of mappings: torch fills only plain ones, so that is what is made."""

    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


def read_foreign(path: Path) -> ForeignFile:
    """Read a file of weights: safetensors, or a torch file, zipped or of the old form.

    The weights may be the file's whole content or lie under "state_dict" or "model"; a "module."
    before all names is removed.

    Args:
        path: The file.

    Raises:
        ConversionError: If there is no such file, it cannot be read safely or holds no weights.
    """
    problem = file_problem(path, "weights file")
    if problem is not None:
        raise ConversionError(f"{path}: {problem}")
    tree = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(tree, Mapping):
        raise ConversionError(f"{path}: holds a {type(tree).__name__}, not named weights")
    ignored: list[str] = []
    class_names = _class_names(tree)
    weights = tree
    for wrapper in WRAPPERS:
        if isinstance(tree.get(wrapper), Mapping):
            weights = tree[wrapper]
            others = [str(key)[:40] for key in tree if key != wrapper]
            if others:
                more = ", ..." if len(others) > MOST_LISTED else ""
                ignored.append(f"beside the weights: {', '.join(others[:MOST_LISTED])}{more}")
            break
    named = {str(key): value for key, value in weights.items()}
    averages = [name for name in named if name.startswith("ema_")]
    for name in averages:
        del named[name]
    if averages:
        ignored.append(f"copies of a moving average (ema_*): {len(averages)}")
    if named and all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): value for name, value in named.items()}
    odd = [name for name, value in named.items() if not _is_plain(value)]
    if odd or not named:
        found = f"{short(odd[0])} is no plain tensor" if odd else "it is empty"
        raise ConversionError(
            f"{path}: no named weights, neither by themselves nor under "
            f"{' or '.join(map(repr, WRAPPERS))} ({found})"
        )
    return ForeignFile(named, class_names, tuple(ignored))


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )


def _class_names(tree: Mapping[Any, Any]) -> tuple[str, ...] | None:
    """Class names, where mmdetection keeps them: meta.CLASSES, since 3.x meta.dataset_meta."""
    meta = tree.get("meta")
    if not isinstance(meta, Mapping):
        return None
    inner = meta.get("dataset_meta")
    for holder in (inner, meta):
        if not isinstance(holder, Mapping):
            continue
        for key in ("classes", "CLASSES"):
            names = holder.get(key)
            if isinstance(names, str):  # a data set of one class, in the old style
                return (names,)
            # A placeholder is an empty list.
            if isinstance(names, (list, tuple)) and names:
                return tuple(str(name) for name in names)
    return None


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    # Its own errors, and for kinds of numbers that torch has not those of look-ups.
    except Exception as error:
        raise ConversionError(
            f"{path}: damaged or not a safetensors file ({error}); copy it again"
        ) from None


def _read_torch(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    # Damaged and foreign files raise many types, by format and by version of torch.
    except Exception as error:
        first = error
    try:
        return _read_with_placeholders(path)
    except Exception as error:
        raise ConversionError(
            f"{path}: cannot be read without running code from it ({_line(first)}; "
            f"{_line(error)}). If it is a torch or detectron2 file that you trust, save its "
            "weights alone, where it was made: for a torch file\n"
            "  import torch; c = torch.load(SRC, weights_only=False); "
            'torch.save(c.get("state_dict", c.get("model", c)), OUT)\n'
            "and for a detectron2 .pkl\n"
            "  import pickle, torch; c = pickle.load(open(SRC, 'rb'))['model']; "
            "torch.save({k: torch.as_tensor(v) for k, v in c.items()}, OUT)"
        ) from None


def _read_with_placeholders(path: Path) -> Any:
    """Read a zipped torch file with an inert class under each name that torch does not know."""
    try:
        from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
    except ImportError:
        raise ConversionError("files with objects of other packages need torch 2.6") from None
    # The file's list of names is read from its pickle as data; no name is looked up. Names of
    # modules that run programs (os, sys) are refused by torch even so.
    placeholders: list[Any] = [
        (_InertMapping if name.lower().endswith("dict") else _Inert, name)
        for name in get_unsafe_globals_in_checkpoint(path)
    ]
    with safe_globals(placeholders):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _line(error: Exception) -> str:
    """The first words of an error; torch's own go on to advise what must not be done here."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return text[:200].rstrip(". ")
