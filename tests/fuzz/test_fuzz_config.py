"""Configuration files and overrides with arbitrary changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from fuzzing import NASTY, both, byte_changes, changed_bytes, changed_tree, reads, tree_changes
from hypothesis import strategies as st

from unisolo.config import Config, config_to_dict, load_config

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
DEFAULTS = config_to_dict(Config())


def keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in tree.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{name}.")
    return found


def again(config: Config) -> None:
    """A configuration that was read is one that can be written and read."""
    assert load_config(values=json.loads(json.dumps(config_to_dict(config)))) == config


@both(st.tuples(st.sampled_from(CONFIGS), byte_changes()), many=3000)
def check_text(folder: Path, case: Any) -> None:
    source, changes = case
    path = folder / source.name
    path.write_bytes(changed_bytes(source.read_bytes(), changes))
    # The file may name another one, which then is the one at fault.
    config = reads("configuration, text", lambda: load_config(path), str(folder))
    if config is not None:
        again(config)


TestTexts = check_text


@both(tree_changes(), many=3000)
def check_tree(folder: Path, changes: Any) -> None:
    path = folder / "tree.yaml"
    tree = changed_tree(DEFAULTS, changes)
    path.write_text(json.dumps(tree))  # JSON is YAML, but for a few numbers
    config = reads("configuration, tree", lambda: load_config(path), str(path))
    if config is not None:
        again(config)


TestTrees = check_tree


@both(
    st.tuples(
        st.sampled_from([*keys(DEFAULTS), "", "train", "a.b", "train.lr.x", "."]),
        st.one_of(
            st.sampled_from(NASTY).map(lambda value: json.dumps(value)),
            st.sampled_from(NASTY).map(lambda value: yaml.safe_dump(value, allow_unicode=False)),
            st.text(max_size=20),
        ),
    ),
    many=3000,
)
def check_override(folder: Path, case: Any) -> None:
    key, value = case
    config = reads("overrides", lambda: load_config(None, [f"{key}={value}"]))
    if config is not None:
        again(config)


TestOverrides = check_override
