"""Settings from YAML with one level of `base:`, and overrides, as one checked configuration.

A mistyped key is an error that names the nearest valid one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unisolo.config.sections import Config
from unisolo.reading import file_problem, parse_yaml, short

__all__ = ["ConfigError", "config_to_dict", "load_config"]

MAX_BYTES = 2**20
"""Largest configuration file that is read: people write a few kB."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and the fix."""


def load_config(
    path: str | Path | None = None,
    overrides: Iterable[str] = (),
    *,
    values: Mapping[str, Any] | None = None,
) -> Config:
    """Read a configuration.

    Args:
        path: YAML file without aliases (`*name`); may name one other file under `base:` (relative
            to itself), which may not have a base of its own. None = the defaults.
        overrides: `key.sub=value` strings, values parsed as YAML, applied last.
        values: A nested mapping applied over the file, below `overrides`.

    Returns:
        The frozen configuration.

    Raises:
        ConfigError: If a file is missing or not YAML, or a key or value is not valid; the message
            names the file, the key and the nearest valid key.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        tree = _read_yaml(path)
        base = tree.pop("base", None)
        if base is not None:
            base_path = path.parent / str(base)
            base_tree = _read_yaml(base_path)
            if "base" in base_tree:
                raise ConfigError(f"{base_path}: a base file may not have a 'base' of its own")
            tree = _merged(base_tree, tree)
    if values:
        tree = _merged(tree, values)
    for override in overrides:
        tree = _merged(tree, _parse_override(override))
    return _validated(tree, where=str(path) if path else "configuration")


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return plain values (str, int, list, ...) that `load_config(values=...)` reads back."""
    return config.model_dump(mode="json")


def _parse_yaml(text: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"not valid YAML: {error}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    problem = file_problem(path, "configuration file")
    if problem is not None:
        raise ConfigError(f"{path}: {problem}")
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, so it is no configuration")
    try:
        tree = _parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(tree).__name__}")
    return tree


def _parse_override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {short(text)} must look like key.sub=value")
    try:
        value = _parse_yaml(raw)
    except ConfigError as error:
        raise ConfigError(f"override {short(text)}: the value is {error}") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `top` laid over it; mappings merge, everything else replaces."""
    result = dict(base)
    for key, value in top.items():
        old = result.get(key)
        merge = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = _merged(old, value) if merge else value  # type: ignore[arg-type]
    return result


def _validated(tree: Mapping[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(dict.fromkeys(lines))) from None


def _explain(detail: Any) -> str:
    path = [str(part) for part in detail["loc"]]
    name = ".".join(path)
    if detail["type"] == "extra_forbidden":
        section: Any = Config
        for part in path[:-1]:
            field = section.model_fields.get(part)
            if field is None:
                break
            section = field.annotation
        valid = list(getattr(section, "model_fields", {}))
        close = difflib.get_close_matches(path[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"valid keys: {', '.join(valid)}"
        return f"unknown key '{name}'; {hint}"
    return f"{name}: {detail['msg']} (got {short(detail['input'])})"
