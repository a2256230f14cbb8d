"""What an exported file says about itself: enough to use it like the checkpoint it came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from unisolo.categories import Categories
from unisolo.config import Config, config_to_dict, load_config
from unisolo.reading import parse_json

__all__ = ["KEY", "GraphFacts", "Size"]

KEY = "unisolo"
"""Name of the entry in a file's metadata."""

FORMAT_VERSION = 1

Size: TypeAlias = Literal["stride4", "input"] | tuple[int, int]
"""Size of a graph's masks and maps: a quarter of the input, the input's, or (H, W)."""


@dataclass(frozen=True)
class GraphFacts:
    """Facts about an exported graph.

    Attributes:
        config: The checkpoint's, with the task and the thresholds that were exported.
        categories: Its categories.
        size: Of masks and maps.
        outputs: Names of the outputs, in order.
        image_dtype: "uint8" or "float32", of the input `images`.
        precision: "fp32", "fp16" or "int8", of the network; the post-process is always fp32.
        batch: Images per run; None = any number.
        image_size: (H, W) of the input; None = any multiples of 32.
    """

    config: Config
    categories: Categories
    size: Size
    outputs: tuple[str, ...]
    image_dtype: str = "uint8"
    precision: str = "fp32"
    batch: int | None = None
    image_size: tuple[int, int] | None = None

    @property
    def task(self) -> str:
        """Name of the task that was exported."""
        return self.config.task

    def with_precision(self, precision: str) -> GraphFacts:
        """Return a copy for a graph of another precision."""
        return replace(self, precision=precision)

    def to_json(self) -> str:
        """Return the facts as one string of JSON."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return json.dumps(
            {
                "format_version": FORMAT_VERSION,
                "config": config_to_dict(self.config),
                "categories": self.categories.to_coco(),
                **plain,
            },
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> GraphFacts:
        """Read what `to_json` wrote.

        Raises:
            ValueError: If it is damaged or of a newer format.
        """
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError("the facts are no mapping")
        version = values.get("format_version")
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise ValueError(
                f"format version {version!r} is newer than this package reads ({FORMAT_VERSION}); "
                "upgrade unisolo"
            )
        try:
            plain: dict[str, Any] = {name: _tupled(values[name]) for name in _PLAIN}
            return cls(
                config=load_config(values=values["config"]),
                categories=Categories.from_coco(values["categories"]),
                **plain,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the facts are damaged ({error!r})") from None


_PLAIN = ("size", "outputs", "image_dtype", "precision", "batch", "image_size")


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
