"""Data sets of other formats as COCO-layout folders.

The readers are own code: supervision's make a full mask of every object, know one polygon an object
and drop LabelMe's masks and circles; hotcoco's YOLO reader knows boxes only; datumaro reads all
formats but brings a framework of its own (and its own copies of OpenCV and pandas).
"""

from __future__ import annotations

from unisolo.convert_data.command import FORMATS, Summary, convert_data

__all__ = ["FORMATS", "Summary", "convert_data"]
