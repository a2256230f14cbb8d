"""A process that measures one model with one thread count: a job in, rows out, as JSON."""

from __future__ import annotations

import json
import sys

from unisolo.benchmark.latency import measure_here

if __name__ == "__main__":
    rows = measure_here(json.load(sys.stdin))
    # The last line: libraries may print before it.
    print(json.dumps(rows))
