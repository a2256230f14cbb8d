"""Check a data set: `python tools/doctor.py DATA --html report.html --fix MENDED`."""

import typer

from unisolo.cli import doctor

if __name__ == "__main__":
    typer.run(doctor)
