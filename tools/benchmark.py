"""Measure this package on this machine: `python tools/benchmark.py latency --json figures.json`."""

from unisolo.cli import benchmark as app

if __name__ == "__main__":
    app()
