"""Convert a foreign SOLOv2 checkpoint: `python tools/convert.py SRC --out model.safetensors`."""

import typer

from unisolo.cli import convert

if __name__ == "__main__":
    typer.run(convert)
