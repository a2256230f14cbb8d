"""`benchmark model`: the network, with and without its post-process, and models of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import DebugOption, DeviceOption, examples, friendly, parse_size
from unisolo.cli.measuring.app import CONFIGS, JsonFileOption, benchmark, show

__all__ = ["model"]

ON_GPU = ("coco_instance_r50_3x.yaml", "coco_instance_light448_r50.yaml")
ON_CPU = ("coco_instance_light448_r18.yaml",)
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@benchmark.command(
    epilog=examples(
        "unisolo benchmark model",
        "unisolo benchmark model --batch 1 --batch 8 --json figures.json",
        "unisolo benchmark model --device cpu --size 256x320 --repeat 5 --no-peers --no-compile",
    ),
)
@friendly
def model(
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--models",
            help="Configuration file; again for more. Default: R50 and light R50 on a GPU, light "
            "R18 on a CPU.",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Images as HxW; default: 800x1333 on a GPU, 448x448 on a CPU."),
    ] = None,
    batch: Annotated[
        list[int] | None,
        typer.Option(
            "--batch", help="Images in a call; again for more. Default: 1 and 8 on a GPU, else 1."
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; default: bf16 on a GPU, fp32 on a CPU.")
    ] = None,
    repeat: Annotated[int, typer.Option(metavar="N", help="Timed runs of each.")] = 20,
    no_compile: Annotated[
        bool,
        typer.Option(
            "--no-compile",
            metavar="",
            help="Compile nothing (minutes less); there is no floor then.",
        ),
    ] = False,
    no_peers: Annotated[
        bool,
        typer.Option(
            "--no-peers",
            metavar="",
            help="Leave out torchvision's Mask R-CNN, and Mask2Former if transformers is there.",
        ),
    ] = False,
    device: DeviceOption = "auto",
    json_file: JsonFileOption = None,
    debug: DebugOption = False,
) -> None:
    """Time the network, alone and with its post-process, against its backbone and other models.

    Weights are random and all places of instances are filled. On a GPU calls are also replayed from
    CUDA graphs, network and post-process in one.
    """
    import torch

    from unisolo.benchmark.model.measure import measure_models
    from unisolo.benchmark.model.report import model_goals, model_table
    from unisolo.devices import resolve_device

    if device == "auto" and not torch.cuda.is_available():
        device = "cpu"  # MPS has no timer of its own
    chosen = resolve_device(device)
    on_gpu = chosen.type == "cuda"
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"--precision is {', '.join(PRECISIONS)}, got {precision}")
    name = PRECISIONS[precision or ("bf16" if on_gpu else "fp32")]
    report = measure_models(
        models or _own_models(ON_GPU if on_gpu else ON_CPU),
        size=parse_size(size or ("800x1333" if on_gpu else "448x448"), "--size"),
        batches=batch or ([1, 8] if on_gpu else [1]),
        dtype=getattr(torch, name),
        device=chosen,
        repeat=repeat,
        compile=not no_compile,
        peers=not no_peers,
        tell=lambda text: typer.echo(text, err=True),
    )
    show(report.to_json(), model_table(report), json_file, goals=model_goals(report))


def _own_models(names: tuple[str, ...]) -> list[Path]:
    if not CONFIGS.is_dir():
        raise ValueError(
            "this installation came without the folder configs/: give --models FILE, again for more"
        )
    return [CONFIGS / name for name in names]
