"""The whole way on a generated clip, with a model that the quickstart trained."""

from __future__ import annotations

import json
import os
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from pycocotools import mask as coco_mask

sys.path.insert(0, str(Path(__file__).parent))
from identity import Identity, matched
from moving import clip

from unisolo import Predictor
from unisolo.video import predict_video
from unisolo.video.files import VideoWriter

CHECKPOINT = Path(
    os.environ.get(
        "UNISOLO_QUICKSTART",
        Path(__file__).parents[2] / "runs" / "quickstart" / "model.safetensors",
    )
)


@pytest.mark.slow
def test_identity_scores_of_a_trained_model(tmp_path: Path) -> None:
    """docs/video.md has these numbers, from this test with -s."""
    if not CHECKPOINT.is_file():
        pytest.skip(
            f"no trained model at {CHECKPOINT}: run the quickstart, or name one in "
            "UNISOLO_QUICKSTART"
        )
    source = tmp_path / "clip.mp4"
    writer = VideoWriter(source, Fraction(25), (192, 192))
    truth = []
    for number, frame in enumerate(clip(0, 300)):
        writer.write(frame.image, number / 25)
        truth.append(frame.masks)
    writer.close()
    report = predict_video(Predictor(CHECKPOINT), source, tmp_path / "out")
    identity, objects = Identity(), 0
    lines = report.lines.read_text().splitlines()
    for masks, line in zip(truth, lines, strict=True):
        entries = json.loads(line)["instances"]
        found = [coco_mask.decode(entry["segmentation"]).astype(bool) for entry in entries]
        ids = [entry["track_id"] for entry in entries]
        pairs = matched(masks, found)
        objects += len(pairs)
        identity.add(len(masks), ids, [(truth_id, ids[place]) for truth_id, place in pairs])
    # No ids could do better: every match counted, each object with one track.
    ceiling = 2 * objects / (identity.truths + identity.tracked)
    print(
        f"{report.frames} frames, {identity.truths} true objects, {identity.tracked} instances, "
        f"{objects} matched; {report.tracks} tracks, IDF1 {100 * identity.idf1():.1f} of at most "
        f"{100 * ceiling:.1f}, {identity.switches} switches"
    )
    assert identity.idf1() > 0.7 * ceiling
