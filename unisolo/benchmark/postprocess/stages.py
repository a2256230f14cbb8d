"""The stages of this package's post-process as calls of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from unisolo.benchmark.postprocess.checks import count_wrong
from unisolo.benchmark.postprocess.scenes import Scene
from unisolo.benchmark.postprocess.ways import PLACES, PRE_NMS, Answer, Problem, select, upsample
from unisolo.ops.select import Candidates

if TYPE_CHECKING:  # triton is optional
    from unisolo.ops.kernels.nms import Kept
    from unisolo.ops.kernels.packed import PackedMasks

__all__ = ["KernelStages", "cpu_wrong_intersections", "operation_calls"]

UPDATE_THRESHOLD = 0.05


def operation_calls(problem: Problem) -> dict[str, Callable[[], object]]:
    """Return the two public operations as calls, from given candidates."""
    found = select(problem, "candidates").mask_probs[0]
    return {
        "select_instances": lambda: select(problem, "candidates"),
        "upsample_masks": lambda: upsample(problem.scene, found),
    }


def cpu_wrong_intersections(masks: Tensor, labels: Tensor) -> int:
    """Count the pairs for which the CPU's twin counts other pixels than 64-bit counting does.

    Args:
        masks: [N, h, w] bool on the CPU.
        labels: [N] int64.

    Returns:
        Wrong pairs.
    """
    from unisolo.ops.cpu.packed import intersections, pack_words

    flat = masks.flatten(1)
    return count_wrong(intersections(pack_words(flat), flat.sum(1), labels), flat, labels)


class KernelStages:
    """The Triton kernels one after the other, from given candidates; nothing waits for the device.

    Args:
        scene: On a device that Triton serves.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        found = scene.candidates
        self.candidates = Candidates(
            *(
                field.unsqueeze(0).contiguous()
                for field in (found.scores, found.labels, found.cells)
            )
        )

    def masks(self) -> tuple[PackedMasks, Tensor]:
        """Packed masks, and [1, N] scores: probability times maskness."""
        from unisolo.ops.kernels.dynamic_masks import dynamic_masks

        outputs = self.scene.outputs
        return dynamic_masks(
            outputs.kernels,
            outputs.mask_features,
            self.candidates,
            self.scene.grid,
            mask_threshold=0.5,
            least_areas=self.scene.grid.strides,
        )

    def intersections(self, packed: PackedMasks, scores: Tensor) -> Tensor:
        """[1, N, N] int32, by the way that the package takes on this device."""
        from unisolo.ops.kernels.intersections import packed_intersections

        return packed_intersections(packed, self.candidates.labels, scores)

    def intersections_by_pair(self, packed: PackedMasks, scores: Tensor) -> Tensor:
        """[1, N, N] int32, by the way that needs no CUDA C."""
        from unisolo.ops.kernels.intersections import pair_intersections

        return pair_intersections(packed, self.candidates.labels, scores)

    def best(self, intersections: Tensor, scores: Tensor) -> Kept:
        """Decay, and the best K."""
        from unisolo.ops.kernels.nms import decay_scores, keep_best

        labels, cells = self.candidates.labels, self.candidates.cells
        decayed = decay_scores(intersections, labels, scores)
        return keep_best(
            scores,
            labels,
            cells,
            decayed,
            update_threshold=UPDATE_THRESHOLD,
            max_instances=PLACES,
        )

    def soft_masks(self, kept: Kept) -> Tensor:
        """[1, K, h, w] probabilities of the kept."""
        from unisolo.ops.kernels.soft_masks import soft_masks

        outputs = self.scene.outputs
        return soft_masks(outputs.kernels, outputs.mask_features, kept.cells, kept.valid)

    def entering(self, scores: Tensor) -> Tensor:
        """Scores after the cut before Matrix NMS."""
        from unisolo.ops.kernels.nms import keep_top

        return keep_top(scores, PRE_NMS)

    def answer(self) -> Answer:
        """All stages."""
        packed, scores = self.masks()
        scores = self.entering(scores)
        kept = self.best(self.intersections(packed, scores), scores)
        masks = upsample(self.scene, self.soft_masks(kept)[0]).packed
        return Answer(kept.scores[0], kept.labels[0], kept.cells[0], kept.valid[0], masks)

    def calls(self) -> dict[str, Callable[[], object]]:
        """Every stage as a call on what the stages before it have left.

        The names are those of `unisolo.benchmark.postprocess.floor.floors`; the last two are parts
        and ways that are of interest by themselves.
        """
        packed, scores = self.masks()
        scores = self.entering(scores)
        counted = self.intersections(packed, scores)
        kept = self.best(counted, scores)
        soft = self.soft_masks(kept)[0]
        return {
            "dynamic masks": self.masks,
            "intersections": lambda: self.intersections(packed, scores),
            "decay and rank": lambda: self.best(counted, scores),
            "soft masks": lambda: self.soft_masks(kept),
            "upsample": lambda: upsample(self.scene, soft),
            "Matrix NMS from packed masks": lambda: self.best(
                self.intersections(packed, scores), scores
            ),
            "intersections pair by pair": lambda: self.intersections_by_pair(packed, scores),
        }

    def wrong_intersections(self) -> int:
        """Count the pairs, of both ways, that 64-bit counting of the same bits contradicts."""
        from unisolo.ops.kernels.packed import unpack_masks

        packed, scores = self.masks()
        scores = self.entering(scores)
        height, width = self.scene.outputs.mask_features.shape[-2:]
        masks = unpack_masks(packed, (height, width), interleaved=True)[0].flatten(1)
        part = (scores[0] > 0).nonzero().squeeze(1)
        labels = self.candidates.labels[0, part]
        return sum(
            count_wrong(counted[0][part][:, part], masks[part], labels)
            for counted in (
                self.intersections(packed, scores),
                self.intersections_by_pair(packed, scores),
            )
        )
