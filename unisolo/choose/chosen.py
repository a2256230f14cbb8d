"""Settings in the making, each with its reason; what was given by hand wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from unisolo.config import Config, config_to_dict, load_config
from unisolo.doctor.findings import printable

__all__ = ["Choice", "Chosen", "Draft"]


@dataclass(frozen=True)
class Choice:
    """One line of what was chosen.

    Attributes:
        what: What it is about.
        value: What was chosen, for people.
        why: The reason; "given" where it was no choice.
    """

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class Chosen:
    """A complete configuration, and how it came about.

    Attributes:
        config: What to train with.
        choices: A line per choice.
        keys: The settings chosen or given, as dotted keys.
    """

    config: Config
    choices: tuple[Choice, ...]
    keys: tuple[str, ...]

    def to_yaml(self) -> str:
        """Return a file that `load_config` reads back to the same configuration.

        It holds what was chosen or given and whatever differs from the defaults; the reasons are
        comments at its head.
        """
        lines = ["# Chosen by `unisolo train` from the data and the machine:"]
        lines += [
            f"#   {printable(f'{choice.what}: {choice.value} ({choice.why})')}"
            for choice in self.choices
        ]
        lines.append("# The same run again: unisolo train --config THIS_FILE --out ANOTHER_FOLDER")
        wanted = _part(config_to_dict(self.config), config_to_dict(Config()), frozenset(self.keys))
        return "\n".join(lines) + "\n" + yaml.safe_dump(wanted, sort_keys=False)


class Draft:
    """Collects choices; the configuration can be read at any time.

    Args:
        given: A nested mapping of what was given; None values were not.
        overrides: `key.sub=value` settings, which win over `given`.
    """

    def __init__(self, given: Mapping[str, Any], overrides: Iterable[str]) -> None:
        self._overrides = tuple(overrides)
        self._given = {key: value for key, value in _flat(given) if value is not None}
        self._chosen: dict[str, Any] = {}
        self._rows: list[tuple[str, tuple[str, ...], Callable[[Config], str], str]] = []
        named = {override.partition("=")[0] for override in self._overrides}
        self._fixed = frozenset(self._given) | named

    @property
    def config(self) -> Config:
        """The settings as they are now.

        Raises:
            ConfigError: If something given is no setting.
        """
        return load_config(None, self._overrides, values=_nested({**self._chosen, **self._given}))

    def is_given(self, key: str) -> bool:
        """Whether a setting was given, by itself or within its section."""
        parts = key.split(".")
        return any(".".join(parts[: n + 1]) in self._fixed for n in range(len(parts)))

    def put(self, values: Mapping[str, Any]) -> None:
        """Set dotted keys, below what was given."""
        self._chosen.update(values)

    def note(
        self,
        what: str,
        keys: tuple[str, ...],
        why: str,
        show: Callable[[Config], str] | None = None,
    ) -> None:
        """Add a line about settings.

        Args:
            what: What it is about.
            keys: The settings; a line about none of them is a fact.
            why: The reason for the choice.
            show: Tells the value from the final configuration; None = the values themselves.
        """
        self._rows.append((what, keys, show or (lambda config: _values(config, keys)), why))

    def finish(self) -> Chosen:
        """Return the result."""
        config = self.config
        choices = []
        for what, keys, show, why in self._rows:
            given = [key for key in keys if self.is_given(key)]
            if given:
                why = "given" if len(given) == len(keys) else f"{why}; given: {', '.join(given)}"
            choices.append(Choice(what, show(config), why))
        named = {key for key, _ in _flat(config_to_dict(config))}
        fixed = {key for key in named if self.is_given(key)}
        keys = tuple(sorted(fixed | (named & set(self._chosen))))
        return Chosen(config, tuple(choices), keys)


def _values(config: Config, keys: Iterable[str]) -> str:
    found = [reduce(getattr, key.split("."), config) for key in keys]
    return ", ".join(_shown(value) for value in found)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = str(value) if isinstance(value, Path) else value
    return tree


def _part(
    tree: Mapping[str, Any], defaults: Mapping[str, Any], keys: frozenset[str], prefix: str = ""
) -> dict[str, Any]:
    """What of a tree differs from the defaults or is named."""
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        name, default = f"{prefix}{key}", defaults.get(key)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and default:
            section = _part(value, default, keys, f"{name}.")
            if section:
                kept[key] = section
        elif value != default or name in keys:
            kept[key] = value
    return kept
