"""One self-contained page of what a training or an evaluation left.

write_report(folder): predictions and ground truth -> figures -> charts, pictures -> report.html
"""

from __future__ import annotations

from unisolo.report.record import TrainingFacts, make_record, noted_warnings, write_record
from unisolo.report.write import leave_report, write_report

__all__ = [
    "TrainingFacts",
    "leave_report",
    "make_record",
    "noted_warnings",
    "write_record",
    "write_report",
]
