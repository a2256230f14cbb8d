"""The settings: frozen, strict models, one class a section.

The string under a field says what it does; `make docs` reads it there. Config objects
stop at the builders (`unisolo.build`, `unisolo.engine`): modules take plain keyword arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "SHOWN_SCORE",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "InferenceConfig",
    "ModelConfig",
    "TrainConfig",
]

Range = tuple[float, float]
ColorValue = Annotated[float, Field(ge=0, le=255)]
DeviationValue = Annotated[float, Field(gt=0, le=255)]
Color = tuple[ColorValue, ColorValue, ColorValue]
Deviation = tuple[DeviationValue, DeviationValue, DeviationValue]
GridSize = Annotated[int, Field(ge=1, le=1024)]

SHOWN_SCORE = 0.3
"""Least score of the instances that are shown where nobody says otherwise."""

MAX_SIDE = 2**14
"""Largest side an image may be resized to; a checkpoint from elsewhere cannot ask for more."""


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class ModelConfig(_Section):
    """The network. Defaults are SOLOv2's full R50 model."""

    backbone: str = "resnet50"
    """Any timm model that serves `features_only=True`."""
    pretrained: bool = True
    """Start from timm's ImageNet weights (downloaded by timm, or from its cache)."""
    backbone_weights: Path | None = None
    """A local weights file for the backbone; used instead of a download."""
    frozen_stages: int = Field(default=0, ge=0)
    """How many parts of the backbone keep their weights: 1 = the stem, 2 = stem and stage 1, ..."""
    frozen_bn: bool = False
    """Keep the backbone's batch-norm statistics fixed (batches of a few large images)."""
    backbone_deform: Literal["none", "v1", "v2"] = "none"
    """Deformable 3 x 3 convolutions in the last three stages of a ResNet or ResNeXt."""
    stride_in_1x1: bool = False
    """Bottlenecks shrink in their first 1 x 1 convolution, as the Caffe (MSRA) ResNets do."""
    mean: Color | None = None
    """RGB mean of the inputs, 0..255; null = what timm states for the backbone."""
    std: Deviation | None = None
    """RGB standard deviation of the inputs, 0..255; null = what timm states for the backbone."""
    fpn_channels: int = Field(default=256, ge=1)
    """Channels of every pyramid level."""
    fpn_norm: Literal["none", "group", "batch"] = "none"
    """Norm after each FPN convolution; the reference has none, small backbones need one."""
    head_channels: int = Field(default=512, ge=1)
    """Width of both towers of the head."""
    head_convs: int = Field(default=4, ge=1)
    """Convolutions in each tower."""
    head_deform: Literal["none", "last-v1", "last-v2", "all-v1", "all-v2"] = "none"
    """Deformable convolutions in both towers of the head: the last of each, or all."""
    head_norm: Literal["group", "batch"] = "group"
    """Norm in the head's towers and the mask-feature branch; the reference has "group". "batch"
    costs nothing at inference (`unisolo.optimize` folds it) and wants large batches in training."""
    kernel_channels: int = Field(default=256, ge=1)
    """E: channels of the mask feature and of each dynamic kernel."""
    mask_channels: int = Field(default=128, ge=1)
    """Width of the mask-feature branch before its last convolution."""
    mask_deform: Literal["none", "v1", "v2"] = "none"
    """Deformable convolutions in the whole mask-feature branch."""
    mask_branch: Literal["dynamic", "static"] = "dynamic"
    """Where the kernels that draw the masks come from: "dynamic" = predicted in every cell;
    "static" = weights of every cell, the same for all images: SOLOv1's S x S mask channels."""
    mask_features: Literal["unified", "separate"] = "unified"
    """What kernels draw on: "unified" = one map at stride 4 of all levels; "separate" = a map of
    each level at twice its resolution, after `head_convs` convolutions of `mask_channels` channels.
    SOLOv1 is `mask_branch=static` with `mask_features=separate`."""
    coordinates: bool = True
    """Give pixel positions (CoordConv) to the kernel branch and the mask-feature branch."""
    stuff_channels: int = Field(default=128, ge=1)
    """Width of the stuff branch (panoptic only)."""
    grid_sizes: Literal["scaled"] | tuple[GridSize, ...] = "scaled"
    """S per level; "scaled" = 40, 36, 24, 16, 12, in proportion above 800 px, and below it at most
    one cell per feature of the level."""
    scale_ranges: Literal["scaled", "auto"] | tuple[Range, ...] = "scaled"
    """sqrt(box area) in pixels per level; "scaled" = the paper's at 800 px, in proportion at other
    sizes; "auto" = fitted to the training set's objects."""


class AugmentConfig(_Section):
    """Training-time transforms."""

    sizes: tuple[int, ...] = ()
    """Short sides to draw from; empty = `data.image_size` only."""
    scale_jitter: Range = (1.0, 1.0)
    """An extra random zoom; (0.1, 2.0) is large-scale jitter and wants a `crop`."""
    crop: tuple[int, int] | None = None
    """Cut a random window of at most (H, W) after resizing."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a vertical flip."""
    color: float = Field(default=0.0, ge=0, le=1)
    """Strength of brightness, contrast, saturation and hue changes."""
    copy_paste: float = Field(default=0.0, ge=0, le=1)
    """Share of the images that a random part of another training image's objects is pasted into,
    after both went through the transforms (arXiv 2012.07177)."""
    min_object_area: int = Field(default=1, ge=1)
    """Objects with fewer visible pixels after the transform are dropped from the targets."""

    @model_validator(mode="after")
    def _check(self) -> AugmentConfig:
        low, high = self.scale_jitter
        if not 0 < low <= high:
            raise ValueError(f"scale_jitter must be 0 < low <= high, got {self.scale_jitter}")
        return self

    def transform_arguments(self) -> dict[str, Any]:
        """Keywords for `unisolo.data.transforms.TrainTransform`."""
        return self.model_dump(exclude={"copy_paste"})


class DataConfig(_Section):
    """Where the images and annotations are (COCO layout) and how they are read."""

    root: Path | None = None
    """Folder with `<split>/` images and `annotations/`."""
    dataset: str = "auto"
    """A key of `unisolo.data.DATASETS`; "auto" = coco_panoptic where the task needs stuff,
    coco_instance otherwise."""
    train_split: str = "train2017"
    """Name of the split to learn from."""
    val_split: str = "val2017"
    """Name of the split to judge by."""
    max_images: int | None = Field(default=None, ge=1)
    """Use only the first images of each split (by id); for trials."""
    image_size: int = Field(default=800, ge=32, le=MAX_SIDE)
    """Short side after resizing, in evaluation and (unless `augment.sizes`) in training."""
    max_size: int = Field(default=1333, ge=32, le=MAX_SIDE)
    """The long side never exceeds this."""
    resize: Literal["torch", "opencv"] = "torch"
    """How images are resized: "torch" = bilinear with antialias; "opencv" = OpenCV's bilinear
    without, the pixels that weights of mmdetection and the authors' SOLO were trained on."""
    augment: AugmentConfig = AugmentConfig()
    workers: int = Field(default=2, ge=0)
    """Loader processes per training process."""
    cache: Literal["none", "ram"] = "none"
    """"ram" = decode the training images and their annotations once and keep them in memory, which
    all loader processes of a training process share."""
    cache_gib: float = Field(default=16.0, gt=0)
    """Most memory that `cache` may take per training process, GiB; a training set that needs more
    is read from disk as without it, and the run says so."""


class TrainConfig(_Section):
    """The training loop."""

    out: Path = Path("runs/train")
    """Folder of the results."""
    epochs: float | None = Field(default=12, gt=0)
    """Length in passes over the data; `steps` wins when both are given."""
    steps: int | None = Field(default=None, ge=1)
    """Length in optimiser steps."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Minutes of training steps, evaluations and saving not counted, after which the run ends if
    `epochs` or `steps` has not ended it before. Schedule and warm-up then follow whichever share is
    further on, of the steps or of the minutes."""
    batch_size: int = Field(default=16, ge=1)
    """Images per optimiser step, over all processes and accumulated parts."""
    accumulate: int = Field(default=1, ge=1)
    """Split each batch into this many forward passes."""
    optimizer: str = "momentum"
    """Any timm optimiser name, e.g. adamw, momentum (plain SGD), sgd (with Nesterov's step)."""
    lr: float = Field(default=0.01, gt=0)
    """Learning rate at a batch of `lr_batch_size`; scaled linearly to `batch_size`."""
    lr_batch_size: int = Field(default=16, ge=1)
    """The batch that `lr` is meant for."""
    backbone_lr_scale: float = Field(default=1.0, ge=0)
    """Factor on the learning rate of the backbone."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """For optimisers that have one."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay, without norms and biases unless `decay_norms`."""
    decay_norms: bool = False
    """Weight decay also for norms and biases, as the reference has it."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    """How the learning rate falls."""
    milestones: tuple[float, ...] = (0.75, 0.917)
    """Fractions of the run after which multistep divides the learning rate by 10."""
    warmup_steps: int = Field(default=500, ge=0)
    """Steps over which the learning rate rises to its value."""
    warmup_share: float | None = Field(default=None, ge=0, le=0.5)
    """Instead of `warmup_steps`: the share of the run; what to give with `max_minutes`."""
    warmup_ratio: float = Field(default=0.01, ge=0, le=1)
    """Share of the learning rate that the first step has."""
    clip_norm: float = Field(default=35.0, ge=0)
    """L2 norm the gradient is clipped to; 0 = not clipped."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """"auto" = bf16 on a GPU that has it, fp16 on an older GPU, fp32 on CPU."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the averaged weights that are evaluated and saved; 0 = none."""
    loss_weights: dict[str, float] = {}
    """Overrides of the task's weights, e.g. {loss_stuff: 0.5}."""
    one_object_per_cell: bool = True
    """Train each kernel on one mask; false = the reference's two masks on a shared cell."""
    shared_cells: Literal["drop", "move"] = "drop"
    """With `one_object_per_cell`, for objects that lose all their cells to others: "drop" = no
    cell is trained on them; "move" = the nearest free cell beside their own is."""
    max_positives: int = Field(default=2000, ge=1)
    """Most (cell, object) pairs per image whose masks are trained; more are thinned out evenly."""
    sync_bn: bool = False
    """Batch norms over all processes (CUDA only); they then see the global batch."""
    deterministic: bool = False
    """Only algorithms that give the same bits every time; slower on a GPU."""
    on_nonfinite: Literal["raise", "skip"] = "raise"
    """A NaN or infinite loss or gradient: stop, or leave the step out. Either way the batch is
    written to a file for `--replay`."""
    max_nonfinite: int = Field(default=10, ge=1)
    """With "skip": a run that leaves out more steps than this stops."""
    eval_every: int = Field(default=0, ge=0)
    """Evaluate every n steps; 0 = at the end only."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Save the training state every n steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Training states kept; with 2 or more a damaged one is no loss."""
    log_every: int = Field(default=20, ge=1)
    """Write a line of the log every n steps."""
    seed: int = 0
    """Seed of weights, order of images and augmentation."""
    channels_last: bool = True
    """Keep images and weights in channels-last memory order, which is faster."""
    compile: bool = False
    """Compile the network with torch.compile. The first steps take minutes; every new size of the
    padded batch may take some again, so it wants a `data.augment.crop`."""
    device: str = "auto"
    """Any torch device; "auto" = CUDA, else MPS, else CPU."""
    tensorboard: bool = True
    """Write TensorBoard files beside the log."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        rising = list(self.milestones) == sorted(set(self.milestones))
        if self.shared_cells == "move" and not self.one_object_per_cell:
            raise ValueError(
                "shared_cells=move needs one_object_per_cell=true: otherwise nobody loses a cell"
            )
        if not rising or any(not 0 < fraction < 1 for fraction in self.milestones):
            raise ValueError(
                "milestones are fractions of the run, rising, between 0 and 1, e.g. [0.75, 0.92]; "
                f"got {self.milestones}"
            )
        return self

    def loss_options(self) -> dict[str, Any]:
        """Keywords that `solo_losses`, `loss_counts` and `with_cell_targets` share."""
        return self.model_dump(include={"one_object_per_cell", "shared_cells", "max_positives"})


class InferenceConfig(_Section):
    """Post-processing; every value can be given per call as well."""

    score_threshold: float = Field(default=0.1, ge=0, le=1)
    """Category probability above which a (cell, category) is a candidate."""
    mask_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability above which a pixel belongs to a mask."""
    max_candidates: int = Field(default=500, ge=1)
    """Candidates cut to this many before any mask is made: the memory bound."""
    pre_nms: int = Field(default=500, ge=1)
    """Masks that enter Matrix NMS."""
    nms_kernel: Literal["gaussian", "linear"] = "gaussian"
    """How overlap lowers scores."""
    nms_sigma: float = Field(default=2.0, gt=0)
    """Strength of the gaussian kernel."""
    update_threshold: float = Field(default=0.05, ge=0, le=1)
    """Instances below this score after decay are dropped."""
    max_instances: int = Field(default=100, ge=1)
    """Instances kept per image."""
    min_area: Literal["stride"] | Annotated[int, Field(ge=0, lt=2**31)] = "stride"
    """Area, in pixels at stride 4, that a mask must exceed: "stride" = the reference's, 8 on the
    finest levels to 32 on the coarsest; a number for all levels; 0 = any mask with a pixel, for
    objects of a few pixels."""
    panoptic_score_threshold: float = Field(default=0.5, ge=0, le=1)
    """Instances below this score do not enter the panoptic map."""
    panoptic_overlap_threshold: float = Field(default=0.5, ge=0, le=1)
    """An instance hidden by better ones over more than this share of its area is dropped."""
    stuff_area_threshold: int = Field(default=4096, ge=0)
    """Stuff regions with fewer pixels become void."""
    memory_budget: int = Field(default=256, ge=1)
    """MiB that the post-process may work in, besides what it must hold: the candidates as bits and
    the masks of the instances. Less is slower; no result changes."""

    @property
    def chunk_pixels(self) -> int:
        """Values of the largest temporary float tensor: about four of them are held at a time."""
        return self.memory_budget * 2**20 // 16

    def select_arguments(self) -> dict[str, Any]:
        """Keywords for `unisolo.ops.select.select_instances`."""
        names = {
            "score_threshold",
            "mask_threshold",
            "max_candidates",
            "pre_nms",
            "nms_kernel",
            "nms_sigma",
            "update_threshold",
            "max_instances",
            "min_area",
        }
        return self.model_dump(include=names)

    def postprocess_arguments(self) -> dict[str, Any]:
        """Keywords for `TaskAdapter.postprocess`, all but `score_threshold` and the frames."""
        names = {
            "mask_threshold",
            "panoptic_score_threshold",
            "panoptic_overlap_threshold",
            "stuff_area_threshold",
        }
        return {
            **self.model_dump(include=names),
            "selection": self.select_arguments(),
            "chunk_pixels": self.chunk_pixels,
        }


class Config(_Section):
    """Everything about one run; embedded in its checkpoints."""

    task: str = "panoptic"
    """A key of `unisolo.tasks.TASKS`."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
