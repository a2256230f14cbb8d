"""Ground truth beside prediction: `python tools/compare.py --checkpoint C --data D --out P.jpg`."""

import typer

from unisolo.cli import compare

if __name__ == "__main__":
    typer.run(compare)
