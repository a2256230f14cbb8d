"""Train a model: `python tools/train.py --task panoptic --config FILE --data DIR`.

Many GPUs: `torchrun --nproc-per-node N tools/train.py ...`.
"""

import typer

from unisolo.cli import train

if __name__ == "__main__":
    typer.run(train)
