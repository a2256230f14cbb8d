"""Evaluate a checkpoint: `python tools/evaluate.py --checkpoint C --data DIR`."""

import typer

from unisolo.cli import evaluate

if __name__ == "__main__":
    typer.run(evaluate)
