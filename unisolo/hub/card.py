"""The model card: a README.md with front matter, written from what a model knows of itself."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from unisolo.categories import Category
from unisolo.checkpoint import model_facts
from unisolo.models import UniSolo
from unisolo.reading import file_problem, parse_json
from unisolo.tasks import answered_tasks, get_task

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

__all__ = ["HubError", "Metrics", "model_card"]

Metrics: TypeAlias = Mapping[str, float] | str | os.PathLike[str]
"""Numbers in percent by name, or the path of a `metrics.json`."""

_NO_NAME = "path/of/this/folder"

_TEMPLATE = """\
---
{{ card_data }}
---

# {{ title }}

A model for {{ aim }}, made with unisolo: a timm backbone, a SOLOv2 core and one Matrix NMS.
From one forward pass it answers: {{ answers }}.

| | |
| --- | --- |
| task it was trained for | {{ task }} |
| backbone | {{ backbone }} |
| parameters | {{ parameters }} M |
| images are resized to | short side {{ short }}, long side at most {{ long }} pixels |
| categories | {{ things|length }} things, {{ stuff|length }} stuff |

## Use

```sh
pip install unisolo
```

```python
{% if module %}import {{ module }}  # registers the task, which is not part of unisolo
{% endif %}from PIL import Image
from unisolo import Predictor

predictor = Predictor.from_pretrained({{ quoted }})
image = Image.open("street.jpg")
result = predictor.predict(image)
print(result)
result.plot(image).save("found.png")
```

## Categories

Things, which are found one by one: {{ things|join(", ") or "none" }}.

Stuff, which is a region: {{ stuff|join(", ") or "none" }}.

## Metrics
{% if metrics %}
In percent, on {{ dataset }}:

| metric | value |
| --- | --- |
{% for name, value in metrics %}| {{ name }} | {{ value }} |
{% endfor %}{% else %}
None were given.
{% endif %}
## Limits

- It knows the categories above and no others; what it was not trained on it takes for one of them
  or passes over.
- Images are made smaller or larger before it sees them (see above): objects that then cover a few
  pixels are missed.
- Scores order the findings of one model. They are not the probability of being right.

## Licence

{{ licence }}
"""


class HubError(ValueError):
    """A model that cannot be fetched or saved; the message names it and the fix."""


def model_card(
    model: UniSolo,
    *,
    license: str | None = None,
    metrics: Metrics | None = None,
    dataset: str | None = None,
    name: str | None = None,
) -> ModelCard:
    """Return a model card with the front matter that the Hub reads.

    Args:
        model: The model.
        license: See `HubModel.save_pretrained`.
        metrics: Likewise.
        dataset: Likewise.
        name: Likewise; None = a placeholder.

    Raises:
        HubError: If there are metrics without `dataset`, or they cannot be read.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    config, categories = model_facts(model)
    numbers = _numbers(metrics)
    if numbers and not dataset:
        raise HubError("metrics say little without their data: give dataset=, e.g. 'COCO val2017'")
    task = get_task(config.task)
    segments = task.has_masks or bool(task.heads)
    kind = "image-segmentation" if segments else "object-detection"
    aim = f"{config.task} segmentation" if segments else "object detection"
    results = [
        EvalResult(
            task_type=kind,
            dataset_type=re.sub(r"\W+", "-", str(dataset)).strip("-").lower(),
            dataset_name=str(dataset),
            metric_type=metric,
            metric_value=round(value, 2),
        )
        for metric, value in numbers.items()
    ]
    title = name or f"unisolo {config.task}"
    data = ModelCardData(
        license=license,
        library_name="unisolo",
        pipeline_tag=kind,
        tags=[aim.replace(" ", "-"), "solov2", "timm"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        title=_plain(title),
        quoted=json.dumps(name or _NO_NAME, ensure_ascii=False),
        task=config.task,
        aim=aim,
        answers=", ".join(answered_tasks(config.task)),
        backbone=_code(config.model.backbone),
        parameters=f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f}",
        short=config.data.image_size,
        long=config.data.max_size,
        things=_names(categories.things),
        stuff=_names(categories.stuff),
        metrics=[(_code(metric), f"{value:.1f}") for metric, value in numbers.items()],
        dataset=_plain(dataset or ""),
        licence=_plain(license or "None was given: ask the owner before you use it."),
        module=None if task.__module__.startswith("unisolo.") else task.__module__,
    )
    return cast("ModelCard", card)


def _numbers(metrics: Metrics | None) -> dict[str, float]:
    """Metrics by name, those without a value left out."""
    if metrics is None:
        return {}
    found: Any = metrics
    if not isinstance(metrics, Mapping):
        problem = file_problem(Path(metrics), "file of metrics")
        if problem is not None:
            raise HubError(f"{os.fspath(metrics)}: {problem}")
        try:
            found = parse_json(Path(metrics).read_bytes())
        except ValueError as error:
            raise HubError(f"{os.fspath(metrics)}: {error}") from None
    if not isinstance(found, Mapping):
        raise HubError("metrics must be numbers by name, as metrics.json holds them")
    wrong = [key for key, value in found.items() if not isinstance(value, (int, float, type(None)))]
    if wrong:
        raise HubError(f"metrics must be numbers by name; {sorted(map(str, wrong))[:5]} are none")
    return {
        str(key): float(value)
        for key, value in found.items()
        if value is not None and math.isfinite(value)
    }


def _names(categories: tuple[Category, ...]) -> list[str]:
    return [_plain(category.name) for category in categories]


def _plain(text: str) -> str:
    """A text in one line in which Markdown and HTML find nothing to do."""
    return re.sub(r"([\\`*_{}\[\]<>|#&])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A name in the type of code, which has no other use for its signs."""
    return "`" + re.sub(r"[`|<>\s]+", " ", text) + "`"
