"""From a path or a name to a model."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import torch

from unisolo.checkpoint import CheckpointError, check_task, load_checkpoint
from unisolo.config import load_config
from unisolo.devices import resolve_device
from unisolo.download import download, exclusive, mirrored, say
from unisolo.graphs import Graph, is_graph, open_graph
from unisolo.models import UniSolo
from unisolo.zoo.table import MODELS, ModelEntry

__all__ = ["cache_home", "cached_path", "load_model", "model_path", "open_model"]

FOREIGN = (".pth", ".pt", ".pkl")
"""Endings of other codes' files."""


def load_model(
    source: str | os.PathLike[str],
    *,
    task: str | None = None,
    device: str | torch.device = "cpu",
    quiet: bool = False,
    table: Iterable[ModelEntry] = MODELS,
) -> UniSolo:
    """Load a model from a checkpoint, or by the name of published weights, in evaluation mode.

    Args:
        source: Path of a checkpoint, or a name from `list_models`, whose weights are fetched and
            converted on first use. A file of that name is meant first.
        task: Check that the model can answer this task.
        device: Where the weights go.
        quiet: Print nothing about a download.
        table: The published weights.

    Returns:
        The model, with `config` and `categories` attached.

    Raises:
        CheckpointError: If there is neither such a file nor such a name, the file cannot be used
            (see `load_checkpoint`), the weights cannot be converted, or the model cannot answer
            the task.
        DownloadError: If the weights cannot be fetched; the message says how to do it by hand.
    """
    table = tuple(table)
    entry = _entry(source, table)
    if entry is None:
        return _load_file(Path(source), task, device)
    check_task(load_config(values={"task": entry.task}), task)  # before hundreds of MB are fetched
    path = _converted(entry, quiet)
    try:
        return load_checkpoint(path, device=device)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete {path} to have it made again") from error


def _load_file(path: Path, task: str | None, device: str | torch.device) -> UniSolo:
    if is_graph(path) and path.is_file():
        raise CheckpointError(
            f"{path}: the ending of an exported graph, which holds no model to train or export; "
            "open it with Predictor or unisolo.graphs.open_graph"
        )
    try:
        return load_checkpoint(path, task=task, device=device)
    except CheckpointError as error:
        if path.suffix.lower() not in FOREIGN or not path.is_file():
            raise
        raise CheckpointError(
            f"{error}; if it is of another SOLOv2 code, convert it with `unisolo convert` first"
        ) from error


def open_model(
    source: str | os.PathLike[str],
    *,
    task: str | None = None,
    device: str | torch.device = "auto",
) -> UniSolo | Graph:
    """Load a model, or open an exported graph that can stand in for one.

    Args:
        source: As for `load_model`, or an exported file (.onnx, .xml, .pt2) of size "stride4".
        task: Check that it can answer this task.
        device: "auto", or a device of torch (of the graph's runtime, see `open_graph`).

    Raises:
        CheckpointError: As `load_model`, or if the graph cannot be used like a model.
        DownloadError: As `load_model`.
        ValueError: If the device is not there.
        ImportError: If the graph's runtime is not installed.
    """
    if not is_graph(source):
        return load_model(source, task=task, device=resolve_device(device))
    graph = open_graph(source, device=str(device))
    graph.check_unfinished()
    check_task(graph.config, task)
    return graph


def model_path(name: str, *, quiet: bool = False, table: Iterable[ModelEntry] = MODELS) -> Path:
    """Fetch and convert published weights, unless that is done already.

    Args:
        name: A name from `list_models`.
        quiet: Print nothing about a download.
        table: The published weights.

    Returns:
        Path of the checkpoint in the cache.

    Raises:
        CheckpointError: If there is no such name, or the weights cannot be converted.
        DownloadError: As `load_model`.
    """
    by_name = {entry.name: entry for entry in table}
    if name not in by_name:
        raise CheckpointError(f"no model is named {name!r}; {_nearest(name, by_name)}")
    return _converted(by_name[name], quiet)


def cached_path(entry: ModelEntry) -> Path:
    """Where the converted weights of an entry are, or will be."""
    return _folder(entry) / "model.safetensors"


def cache_home() -> Path:
    """Where downloads are kept: `UNISOLO_HOME`, or a folder in the user's cache."""
    home = os.environ.get("UNISOLO_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unisolo"


def _folder(entry: ModelEntry) -> Path:
    """One folder per model."""
    return cache_home() / "models" / entry.name


def _entry(source: str | os.PathLike[str], table: tuple[ModelEntry, ...]) -> ModelEntry | None:
    """The entry that is meant; None for a path."""
    name = os.fspath(source)
    # A text that no file name can hold is not a name either; the reader of files refuses it.
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or os.path.isfile(name):
        return None
    by_name = {entry.name: entry for entry in table}
    if name in by_name:
        return by_name[name]
    if os.path.lexists(name):
        return None
    raise CheckpointError(
        f"{name}: no such checkpoint file, and no model of that name; {_nearest(name, by_name)}"
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(found)}? " if found else ""
    return f"{hint}unisolo.list_models() gives all names"


def _converted(entry: ModelEntry, quiet: bool) -> Path:
    """Path of the checkpoint, made if it is not in the cache."""
    converted = cached_path(entry)
    if converted.is_file():
        return converted
    original = converted.with_name(entry.file_name)
    if not original.is_file() and not quiet:
        say(f"{entry.name}: weights of {entry.source}, licence: {entry.licence}")
        say(f"{entry.name}: from {mirrored(entry.url)} to {original}")
    download(entry.url, original, sha256=entry.sha256, quiet=quiet)
    with exclusive(converted, quiet=quiet):
        if not converted.is_file():  # another process may have been faster
            _convert(entry, original, converted, quiet)
    return converted


def _convert(entry: ModelEntry, original: Path, converted: Path, quiet: bool) -> None:
    from unisolo.convert import ConversionError, convert_checkpoint

    try:
        report = convert_checkpoint(original, converted, task=entry.task)
    except ConversionError as error:
        # Without a published hash this is where a wrong file is noticed.
        advice = "" if entry.sha256 else f"; delete {original} to fetch it again"
        raise CheckpointError(f"{error}{advice}") from error
    if not quiet:
        for sentence in (f"converted to {converted}", *report.warnings):
            say(f"{entry.name}: {sentence}")
