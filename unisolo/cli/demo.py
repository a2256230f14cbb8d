"""The command that shows a checkpoint in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unisolo.cli.common import USE, DebugOption, DeviceOption, TaskOption, app, friendly
from unisolo.cli.common import examples as examples_of_use
from unisolo.cli.telling import remark

__all__ = ["demo"]


@app.command(
    rich_help_panel=USE,
    epilog=examples_of_use(
        "unisolo demo",
        "unisolo demo --checkpoint runs/my_data/model.safetensors --examples photos/",
        "unisolo demo --host 0.0.0.0 --port 8000",
    ),
)
@friendly
def demo(
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="A model.safetensors, an exported graph, or a model's name. Default: the newest "
            "run in runs/."
        ),
    ] = None,
    task: TaskOption = None,
    device: DeviceOption = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 = let others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, metavar="N", help="Default: the first free from 7860."),
    ] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Folder whose first 6 pictures are offered on the page.")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser", metavar="", help="Open the page in this machine's browser.")
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Show what a checkpoint sees in your pictures, on a page in the browser.

    One forward pass per picture: tasks, thresholds and categories change without another. Nothing
    leaves this machine.
    """
    from unisolo.demo import find_checkpoint, serve
    from unisolo.predict_files import find_images

    offered = [] if examples is None else find_images(examples)[:6]
    serve(
        find_checkpoint() if checkpoint is None else checkpoint,
        task=task,
        device=device,
        host=host,
        port=port,
        examples=offered,
        open_browser=browser,
        say=typer.echo,
        warn=remark,
    )
