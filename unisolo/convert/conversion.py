"""SOLOv2 checkpoints of other codes, as models and files of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unisolo.build import build_model
from unisolo.categories import Categories
from unisolo.checkpoint import save_model
from unisolo.convert.coco_names import COCO_NAMES
from unisolo.convert.names import FORMATS, Format, Renamed, counted, modern_offsets, rename
from unisolo.convert.reading import ConversionError, read_foreign
from unisolo.convert.variant import Variant, read_variant, variant_config
from unisolo.models import UniSolo
from unisolo.tasks import get_task

__all__ = ["ConversionReport", "convert_checkpoint", "convert_weights"]

COUNTER = "num_batches_tracked"
"""A batch norm's counter, which frozen ones lack and nothing here reads."""

STEM = "backbone.net.conv1.weight"

BGR_CONSTANTS = {"pixel_mean": (103.53, 116.28, 123.675), "pixel_std": (1.0, 1.0, 1.0)}
"""Older detectron2 files also hold the normalisation, blue first."""


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        source: The foreign file.
        path: The file that was written.
        format: Key in the table of formats: "solo", "mmdetection" or "adelaidet".
        variant: The architecture in words.
        tensors: Number of tensors written.
        class_names: Where the names of the categories are from, in words.
        ignored: What else the foreign file holds, in words.
        warnings: What a person should look at.
    """

    source: Path
    path: Path
    format: str
    variant: str
    tensors: int
    class_names: str
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Converted:
    model: UniSolo
    form: Format
    variant: Variant
    class_names: str
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    *,
    categories: Categories | None = None,
    source_format: str = "auto",
    task: str = "instance",
) -> ConversionReport:
    """Convert a SOLOv2 checkpoint of another code into one of this package.

    The architecture is read from the names and shapes of the weights. Nothing in the file is
    executed, and each of its tensors must find its place. How the model was trained and run
    (image size, resizing, colour order, normalisation, thresholds) goes into the new file's
    configuration.

    Args:
        source: A file of SOLO, mmdetection or AdelaiDet: a torch file, or safetensors.
        out: Where to, ending in `.safetensors`. Appears whole or not at all.
        categories: The categories, in the order of the file's classes. None = the names in the
            file; if it has none COCO's where there are 80, else "category 1", "category 2", ...
            and a warning.
        source_format: "solo", "mmdetection" or "adelaidet"; "auto" = told from the names.
        task: "instance" or "detection".

    Returns:
        What was found and done.

    Raises:
        ConversionError: If the file cannot be read, is of no known format, or its tensors do not
            fit the model they name; if `out` has another ending or is the source.
        OSError: If the new file cannot be written.
    """
    source, out = Path(source), Path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise ConversionError(f"{out}: is the source itself; give another --out")
    if out.suffix != ".safetensors":  # by other endings it would be taken for another kind of file
        raise ConversionError(f"{out}: a checkpoint's name must end in .safetensors")
    file = read_foreign(source)
    converted = _convert(
        file.state,
        categories=categories,
        class_names=file.class_names,
        source_format=source_format,
        task=task,
        where=str(source),
    )
    save_model(converted.model, out)
    return ConversionReport(
        source=source,
        path=out,
        format=converted.form.name,
        variant=str(converted.variant),
        tensors=len(converted.model.state_dict()),
        class_names=converted.class_names,
        ignored=(*file.ignored, *converted.ignored),
        warnings=converted.warnings,
    )


def convert_weights(
    state: Mapping[str, Tensor],
    *,
    categories: Categories | None = None,
    source_format: str = "auto",
    task: str = "instance",
) -> UniSolo:
    """Build a model from the weights of another code; see `convert_checkpoint`.

    Args:
        state: Tensors by their foreign names.
        categories: As for `convert_checkpoint`.
        source_format: As for `convert_checkpoint`.
        task: As for `convert_checkpoint`.

    Returns:
        The model in evaluation mode, with `config` and `categories` attached.

    Raises:
        ConversionError: As for `convert_checkpoint`.
    """
    return _convert(
        state,
        categories=categories,
        class_names=None,
        source_format=source_format,
        task=task,
        where="weights",
    ).model


def _convert(
    state: Mapping[str, Tensor],
    *,
    categories: Categories | None,
    class_names: Sequence[str] | None,
    source_format: str,
    task: str,
    where: str,
) -> _Converted:
    heads = [name.removesuffix("_logits") for name in sorted(get_task(task).heads)]
    if heads:
        raise ConversionError(
            f"task {task!r} needs a {' and a '.join(heads)} branch, which SOLOv2's checkpoints do "
            "not have; convert for task 'instance'"
        )
    state = modern_offsets(state)
    form = _format(state, source_format, where)
    ignored = []
    if form.name == "adelaidet":
        ignored = _drop_constants(state, where)
    renamed = rename(state, form)
    variant = read_variant(renamed, where)
    names, origin, warnings = _categories(variant.num_classes, categories, class_names, where)
    config = variant_config(variant, task=task, adelaidet=form.name == "adelaidet")
    if not variant.is_released:
        warnings.append(
            "no released model has this head, so image size and scale ranges are assumed "
            f"({config.data.image_size} x {config.data.max_size}); set data.image_size and "
            "data.max_size if it was trained at others"
        )
    model = build_model(config, names, load_backbone=False, empty_heads=True)
    weights = _fitted(renamed, model.state_dict(), where)
    if form.name == "adelaidet":
        weights[STEM] = weights[STEM].flip(1)  # trained on blue, green, red
    for part in (model.neck, model.solo_head, model.mask_head, model.heads):
        part.to_empty(device="cpu")
    model.load_state_dict(weights)
    return _Converted(
        model.eval(), form, variant, origin, ignored=tuple(ignored), warnings=tuple(warnings)
    )


def _format(state: Mapping[str, Tensor], wanted: str, where: str) -> Format:
    """Tell the format from the names, and check it against the one asked for."""
    if wanted != "auto":
        if wanted not in FORMATS:
            raise ConversionError(
                f"unknown format {wanted!r}; choose from auto, {', '.join(FORMATS)}"
            )
        if FORMATS[wanted].is_of(state):
            return FORMATS[wanted]
    found = [form for form in FORMATS.values() if form.is_of(state)]
    if wanted == "auto" and len(found) == 1:
        return found[0]
    if len(found) > 1:
        raise ConversionError(
            f"{where}: it has names of several formats ({', '.join(f.name for f in found)}), so it "
            "is a mixture of models; give a file of one"
        )
    if found:
        raise ConversionError(f"{where}: not of format {wanted!r} but of {found[0].name!r}")
    if any(name.startswith("solo_head.") for name in state):
        raise ConversionError(
            f"{where}: already a model of this package; load it as it is, there is nothing to "
            "convert"
        )
    if any(name in state for name in ("conv1.weight", "layer1.0.conv1.weight", "fc.weight")):
        raise ConversionError(
            f"{where}: the weights of a classifier or backbone, not of a SOLOv2 model; give it to "
            "training as model.backbone_weights"
        )
    looked = "; ".join(f"{form.title}: {form.markers[0]}" for form in FORMATS.values())
    raise ConversionError(
        f"{where}: of no known format. Looked for {looked}; it has "
        f"{counted(len(state), list(state))}"
    )


def _drop_constants(state: dict[str, Tensor], where: str) -> list[str]:
    """Take the normalisation out of a state; refuse one that the configuration will not have."""
    dropped = []
    for name, values in BGR_CONSTANTS.items():
        tensor = state.pop(name, None)
        if tensor is None:
            continue
        dropped.append(name)
        if tensor.numel() != 3 or not torch.allclose(
            tensor.flatten().float(), torch.tensor(values), atol=0.01
        ):
            raise ConversionError(
                f"{where}: {name} is {tensor.flatten().tolist()}, and only models of detectron2's "
                f"own normalisation {values} (blue, green, red) are read"
            )
    return dropped


def _categories(
    count: int, given: Categories | None, in_file: Sequence[str] | None, where: str
) -> tuple[Categories, str, list[str]]:
    """Return the categories, where they are from, and warnings."""
    if given is not None:
        if given.num_things != count:
            raise ConversionError(
                f"{where}: the model has {count} classes, and {given.num_things} thing categories "
                "were given; give one for each, in the order of their channels"
            )
        return given, "given", []
    warnings = []
    if in_file is not None and len(in_file) != count:
        warnings.append(
            f"the file states {len(in_file)} class names for {count} classes, so they are not used"
        )
        in_file = None
    coco = list(COCO_NAMES.items())
    if in_file is not None:
        # The oldest files write "traffic_light".
        if [name.replace("_", " ") for name in in_file] == list(COCO_NAMES.values()):
            return _named(coco), "the file (COCO's)", warnings
        try:
            return _named(enumerate(in_file, start=1)), "the file", warnings
        except ValueError as error:
            raise ConversionError(
                f"{where}: its class names cannot be used ({error}); give the categories"
            ) from None
    if count == len(coco):
        return _named(coco), "COCO, because there are 80", warnings
    warnings.append(
        f"the file states no names for its {count} classes: they are called 'category 1' to "
        f"'category {count}', with ids 1 to {count}; give the categories to name them"
    )
    numbers = range(1, count + 1)
    return _named((number, f"category {number}") for number in numbers), "numbers", warnings


def _named(entries: Iterable[tuple[int, str]]) -> Categories:
    return Categories.from_coco({"id": number, "name": name} for number, name in entries)


def _fitted(renamed: Renamed, expected: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the weights as the model holds them, or say which do not fit it."""
    given = renamed.weights
    problems = []
    missing = [name for name in expected if name not in given and not name.endswith(COUNTER)]
    if missing:
        problems.append(f"it lacks {renamed.listed(missing, near=True)}")
    extra = [name for name in given if name not in expected]
    if extra:
        problems.append(f"it has, with no place for, {renamed.listed(extra)}")
    if renamed.unknown:
        problems.append(f"it has of other names {counted(len(renamed.unknown), renamed.unknown)}")
    both = [name for name in expected if name in given]
    wrong = [name for name in both if given[name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        problems.append(
            f"the shape does not fit of {renamed.listed(wrong)} (the first is "
            f"{list(given[name].shape)} and must be {list(expected[name].shape)})"
        )
    if problems:
        raise ConversionError(
            f"{where}: not a whole SOLOv2 model of the format {renamed.form.name!r}: "
            + "; ".join(problems)
        )
    damaged = [name for name in both if not bool(torch.isfinite(given[name]).all())]
    if damaged:
        raise ConversionError(
            f"{where}: values that are not finite in {renamed.listed(damaged)}; the file is "
            "damaged, or of a run that diverged"
        )
    fitted = {name: given[name].to(expected[name].dtype) for name in both}
    for name in expected.keys() - fitted.keys():
        fitted[name] = torch.zeros((), dtype=expected[name].dtype)
    return fitted
