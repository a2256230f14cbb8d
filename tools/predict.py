"""Predict an image or a folder: `python tools/predict.py PATH --checkpoint C --out DIR`."""

import typer

from unisolo.cli import predict

if __name__ == "__main__":
    typer.run(predict)
