"""Whether an evaluation found anything at all, and if not, why."""

from __future__ import annotations

from collections.abc import Sequence

from unisolo.engine.distributed import World
from unisolo.explain import Explanation, combine
from unisolo.results import Result

__all__ = ["DetectionTally"]


class DetectionTally:
    """Counts images and instances, and keeps one summed explanation of all."""

    def __init__(self) -> None:
        self.images = 0
        self.instances = 0
        self._seen: Explanation | None = None

    def update(self, results: Sequence[Result]) -> None:
        """Add the results of some images."""
        self.images += len(results)
        self.instances += sum(len(result) for result in results)
        seen = [self._seen, *(result.explanation for result in results)]
        known = [explanation for explanation in seen if explanation is not None]
        self._seen = combine(known) if known else None

    def warning(self, world: World) -> str | None:
        """Return a sentence where no image of any process got an instance, else None.

        Every process of `world` must call this.
        """
        parts = world.gather((self.images, self.instances, self._seen))
        images, instances = (sum(column) for column in list(zip(*parts, strict=True))[:2])
        seen = [explanation for *_, explanation in parts if explanation is not None]
        if instances or not seen:
            return None
        reason = combine(seen).verdict(config_names=True)
        return f"no instance was found in any of the {images} images: {reason}"
