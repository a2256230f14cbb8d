"""Video: frames in, an annotated video and a line of JSON a frame out; track ids."""

from __future__ import annotations

from unisolo.video.predict import VideoReport, is_video, predict_video
from unisolo.video.track import Tracker

__all__ = ["Tracker", "VideoReport", "is_video", "predict_video"]
