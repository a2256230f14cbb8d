"""Is the data sound, and do the grids fit it? Everything wrong is found, not the first thing."""

from __future__ import annotations

from unisolo.doctor.codes import CODES, Severity
from unisolo.doctor.examine import Report, brief, examine
from unisolo.doctor.repair import Repaired, repair

__all__ = ["CODES", "Repaired", "Report", "Severity", "brief", "examine", "repair"]
