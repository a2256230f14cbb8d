"""What a task is: the heads it adds, its losses, its results and its evaluators.

The trainer, the model and the predictor know tasks only by this class, so a fourth task is one file
with one subclass and one line in `unisolo.tasks.TASKS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from unisolo.categories import Categories
from unisolo.losses.core import LossOptions, loss_counts, solo_losses
from unisolo.ops.masks import CHUNK_PIXELS
from unisolo.results import Result
from unisolo.structures import GridSpec, ImageMeta, Instances, Outputs, Target
from unisolo.tasks.explained import explain_instances, host_facts
from unisolo.tasks.full_size import make_full_size, make_result

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unisolo.evaluation.base import Evaluator

__all__ = ["TaskAdapter", "instance_results"]

_INSTANCE_THRESHOLDS = frozenset(
    {
        "candidate_threshold",
        "mask_threshold",
        "max_candidates",
        "max_instances",
        "memory_budget",
        "min_area",
        "nms_kernel",
        "nms_sigma",
        "pre_nms",
        "update_threshold",
    }
)


class TaskAdapter(ABC):
    """Base of the tasks; what is not overridden is instance segmentation.

    Args:
        categories: Categories of the data set or checkpoint.

    Attributes:
        name: Key in `TASKS`, value of `Config.task`.
        requires: What a data set must provide ("things", "stuff") to train this task.
        heads: Keys of what `build_heads` returns. A model answers every task whose heads it has.
        loss_weights: Default weight of each loss that `losses` returns (SOLOv2: mask 3, category
            1).
        headline: The metrics to show in one line; the first decides which weights are best.
        thresholds: Names of the `unisolo.thresholds.Thresholds` that this task reads; a call that
            gives another is refused.
        has_masks: Whether results carry masks.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]] = frozenset({"things"})
    heads: ClassVar[frozenset[str]] = frozenset()
    loss_weights: ClassVar[dict[str, float]] = {"loss_category": 1.0, "loss_mask": 3.0}
    headline: ClassVar[tuple[str, ...]] = ("segm/AP", "bbox/AP")
    thresholds: ClassVar[frozenset[str]] = _INSTANCE_THRESHOLDS
    has_masks: ClassVar[bool] = True

    def __init__(self, categories: Categories) -> None:
        if categories.num_things == 0:
            raise ValueError(
                f"task '{self.name}' needs at least one thing category; all {len(categories)} "
                "categories of this data set are stuff"
            )
        self.categories = categories

    def build_heads(self, *, trunk_channels: int, stuff_channels: int) -> dict[str, nn.Module]:
        """Return the task's own heads by the name their output takes in `Outputs.extras`.

        A head is called as `head(pyramid, trunk)` with P2..P6 and the mask branch's trunk.

        Args:
            trunk_channels: Channels of the mask branch's trunk, which a head may read.
            stuff_channels: Width of a semantic head.
        """
        return {}

    def losses(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        grid: GridSpec,
        *,
        counts: Mapping[str, Tensor] | None = None,
        **options: Unpack[LossOptions],
    ) -> dict[str, Tensor]:
        """Return unweighted scalar losses by name, finite also where a batch holds no object.

        Args:
            outputs: Raw outputs for the batch.
            targets: One per image, maps padded to the batch's size.
            grid: The model's grids.
            counts: From `loss_counts`, summed over all parts of a batch that is split; None = the
                batch is whole.
            **options: For `unisolo.losses.core.solo_losses`.
        """
        return solo_losses(outputs, targets, grid, counts=counts, **options)

    def loss_counts(
        self,
        targets: Sequence[Target],
        grid: GridSpec,
        image_size: tuple[int, int],
        **options: Unpack[LossOptions],
    ) -> dict[str, Tensor]:
        """Return what each loss is divided by, as int64 scalars under the losses' names.

        A task that adds a loss which is a mean adds its count here; see
        `unisolo.losses.core.loss_counts` for why.

        Args:
            targets: One per image, maps padded to `image_size`.
            grid: The model's grids.
            image_size: (H, W) of the padded batch.
            **options: As for `losses`.
        """
        return loss_counts(targets, grid, image_size, **options)

    def postprocess(
        self,
        instances: Instances,
        extras: dict[str, Tensor],
        metas: Sequence[ImageMeta],
        *,
        padded_size: tuple[int, int],
        score_threshold: float = 0.0,
        mask_threshold: float = 0.5,
        panoptic_score_threshold: float = 0.5,
        panoptic_overlap_threshold: float = 0.5,
        stuff_area_threshold: int = 4096,
        selection: Mapping[str, Any] | None = None,
        chunk_pixels: int = CHUNK_PIXELS,
    ) -> list[Result]:
        """Turn selected instances into one result per image, in original pixels.

        Args:
            instances: From `select_instances`.
            extras: Outputs of the task's own heads.
            metas: One per image.
            padded_size: (H, W) of the model's input.
            score_threshold: Instances below are left out.
            mask_threshold: Probability above which a pixel belongs to a mask (strict).
            panoptic_score_threshold: Panoptic task: least score to enter the map.
            panoptic_overlap_threshold: Panoptic task: largest hidden share of an instance.
            stuff_area_threshold: Panoptic task: least area of a stuff region, original pixels.
            selection: What `select_instances` was called with; only `Result.explain` names it.
            chunk_pixels: Pixels in float at a time (`InferenceConfig.memory_budget`); never changes
                a result.
        """
        return instance_results(
            instances,
            metas,
            self.categories,
            padded_size=padded_size,
            score_threshold=score_threshold,
            mask_threshold=mask_threshold,
            with_masks=self.has_masks,
            selection=selection,
            chunk_pixels=chunk_pixels,
        )

    @abstractmethod
    def make_evaluators(self, dataset: Any, *, backend: str = "hotcoco") -> list[Evaluator]:
        """Return the evaluators of this task for a data set.

        Args:
            dataset: One of `unisolo.data.DATASETS`.
            backend: "hotcoco" (fast) or "official" (pycocotools, panopticapi).
        """


def instance_results(
    instances: Instances,
    metas: Sequence[ImageMeta],
    categories: Categories,
    *,
    padded_size: tuple[int, int],
    score_threshold: float,
    mask_threshold: float,
    with_masks: bool = True,
    selection: Mapping[str, Any] | None = None,
    chunk_pixels: int = CHUNK_PIXELS,
) -> list[Result]:
    """Make instances in original pixels: masks in chunks, leaving as packed bits, and their boxes.

    This is where fixed K becomes ragged: after everything has been computed, one small copy per
    batch tells how many places are filled, which masks have pixels, and what the selection saw
    (for `Result.explain`). The results stay on the device; `Result.cpu` brings one in one copy.

    Boxes are taken from the masks at original resolution: at the masks' own stride of 4 each side
    would be off by up to 4 input pixels, which costs box AP on small objects. Instances whose mask
    is empty at original size are left out.
    """
    full_size = make_full_size(
        instances,
        metas,
        padded_size=padded_size,
        score_threshold=score_threshold,
        mask_threshold=mask_threshold,
        chunk_pixels=chunk_pixels,
    )
    results = []
    for index, (meta, facts) in enumerate(
        zip(metas, host_facts(instances, full_size), strict=True)
    ):
        places = facts.places()
        results.append(
            make_result(
                instances,
                full_size,
                index,
                places,
                image_size=meta.orig_size,
                categories=categories,
                with_masks=with_masks,
                explanation=explain_instances(
                    facts,
                    categories,
                    selection or {},
                    mask_threshold=mask_threshold,
                    score_threshold=score_threshold,
                    left=len(places),
                ),
            )
        )
    return results
