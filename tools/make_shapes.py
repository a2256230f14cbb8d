"""Write the embedded data set: `python tools/make_shapes.py OUT --train 600 --val 100`."""

import typer

from unisolo.cli import shapes

if __name__ == "__main__":
    typer.run(shapes)
