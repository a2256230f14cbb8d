"""Export a checkpoint: `python tools/export.py CHECKPOINT --out model.onnx`."""

import typer

from unisolo.cli import export

if __name__ == "__main__":
    typer.run(export)
