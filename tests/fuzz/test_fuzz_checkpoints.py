"""Model files with arbitrary changes: to their bytes, header, metadata and weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import both, byte_changes, changed_bytes, changed_tree, reads, tree_changes
from hypothesis import strategies as st
from tiny_model import tiny_model

from unisolo import UniSolo, save_model
from unisolo.checkpoint import load_checkpoint


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_model(tiny_model("model.fpn_channels=8", "model.head_channels=8"), path)
    path.with_suffix(".good").write_bytes(path.read_bytes())
    return path


def load(name: str, path: Path) -> None:
    model = reads(name, lambda: load_checkpoint(path), str(path))
    if model is not None:
        assert isinstance(model, UniSolo)
        assert model.categories is not None
        assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())


@both(byte_changes(), many=1500)
def check_bytes(folder: Path, changes: Any) -> None:
    path, good = folder, folder.with_suffix(".good").read_bytes()
    path.write_bytes(changed_bytes(good, changes))
    load("checkpoint, bytes", path)


TestBytes = check_bytes


@both(tree_changes(), many=1500)
def check_header(folder: Path, changes: Any) -> None:
    path, good = folder, folder.with_suffix(".good").read_bytes()
    header, data = split(good)
    path.write_bytes(join(changed_tree(header, changes), data))
    load("checkpoint, header", path)


TestHeaders = check_header


@both(st.tuples(st.sampled_from(["config", "categories"]), tree_changes()), many=1500)
def check_metadata(folder: Path, case: Any) -> None:
    name, changes = case
    path, good = folder, folder.with_suffix(".good").read_bytes()
    header, data = split(good)
    values = changed_tree(json.loads(header["__metadata__"][name]), changes)
    header["__metadata__"][name] = json.dumps(values)
    path.write_bytes(join(header, data))
    load("checkpoint, metadata", path)


TestMetadata = check_metadata
