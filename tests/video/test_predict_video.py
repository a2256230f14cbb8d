"""A video in, an annotated video and a line of JSON a frame out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from tiny_model import lively_model
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from small_videos import images, write, write_raw

from unisolo import Predictor
from unisolo.checkpoint import save_model
from unisolo.cli import app
from unisolo.video import Tracker, VideoReport, is_video, predict_video
from unisolo.video.files import VideoReader

CHROMIUM = Path("/usr/bin/chromium")
UNISOLO = Path(sys.executable).with_name("unisolo")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(lively_model())


def lines(report: VideoReport) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.lines.read_text().splitlines()]


def shown(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as reader:
        found = [frame.image for frame in reader]
        assert reader.trouble == ""
    return found


def test_every_frame_has_a_line_and_a_picture(predictor: Predictor, tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", images(6), 20)
    calls: list[tuple[int, int]] = []
    report = predict_video(
        predictor, source, tmp_path / "out", on_frame=lambda *done: calls.append(done)
    )
    assert calls == [(n, 6) for n in range(1, 7)]
    assert (report.frames, report.trouble, report.codec) == (6, "", "libx264")
    found = lines(report)
    assert [line["frame"] for line in found] == list(range(6))
    assert [line["time"] for line in found] == pytest.approx([n / 20 for n in range(6)])
    tracker = Tracker()
    with VideoReader(source) as reader:
        for frame, line in zip(reader, found, strict=True):
            result = predictor.predict(frame.image)
            expected = result.to_coco(line["frame"])
            for entry, track in zip(expected, tracker.update(result).tolist(), strict=True):
                entry["track_id"] = track
            assert line["instances"] == json.loads(json.dumps(expected))
    assert report.instances == sum(len(line["instances"]) for line in found) > 6
    assert report.tracks == len({e["track_id"] for line in found for e in line["instances"]})
    about = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert (about["height"], about["width"], about["frames"]) == (48, 64, 6)
    assert about["frames_per_second"] == 20
    assert about["categories"] == predictor.categories.to_coco()
    pictures = shown(report.video)
    assert len(pictures) == 6
    plain = shown(source)
    assert all(np.abs(a - b.astype(int)).max() > 30 for a, b in zip(pictures, plain, strict=True))
    with av.open(str(report.video)) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height) == (20, 64, 48)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "clip.json",
        "clip.jsonl",
        "clip.mp4",
    ]


def test_limit_scale_thresholds_and_panoptic_maps(predictor: Predictor, tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", images(6))
    report = predict_video(
        predictor,
        source,
        tmp_path / "out",
        limit=2,
        scale=3,
        score_threshold=1.0,
        save_panoptic=True,
    )
    assert (report.frames, report.instances, report.tracks) == (2, 0, 0)
    assert [image.shape for image in shown(report.video)] == [(144, 192, 3)] * 2
    for number, line in enumerate(lines(report)):
        assert line["instances"] == []
        with Image.open(tmp_path / "out" / "clip_panoptic" / f"{number:06d}.png") as png:
            ids = set(np.unique(np.asarray(png) @ np.array([1, 256, 65536])).tolist())
        assert {segment["id"] for segment in line["segments_info"]} == ids - {0}


@pytest.mark.parametrize("task", ["instance", "detection"])
def test_other_tasks_and_odd_sizes(task: str, tmp_path: Path) -> None:
    source = tmp_path / "clip.avi"
    write_raw(source, images(3))
    report = predict_video(Predictor(lively_model(), task=task), source, tmp_path, scale=3)
    assert report.video == tmp_path / "clip.mp4"
    assert [image.shape for image in shown(report.video)] == [(144, 192, 3)] * 3
    assert all(("segmentation" in e) == (task == "instance") for e in lines(report)[0]["instances"])


def test_the_source_is_never_replaced(predictor: Predictor, tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", images(3))
    before = source.read_bytes()
    with pytest.raises(ValueError, match="the annotated video would replace it"):
        predict_video(predictor, source, tmp_path)
    assert source.read_bytes() == before


def test_an_error_on_the_way_keeps_the_frames_before_it(
    predictor: Predictor, tmp_path: Path
) -> None:
    source = write(tmp_path / "clip.mp4", images(6))

    def stop(number: int, _: object) -> None:
        if number == 3:
            raise OSError("enough")

    with pytest.raises(OSError, match="enough"):
        predict_video(predictor, source, tmp_path / "out", on_result=stop)
    assert len(shown(tmp_path / "out" / "clip.mp4")) == 4
    assert len((tmp_path / "out" / "clip.jsonl").read_text().splitlines()) == 4


def test_videos_are_known_by_their_endings() -> None:
    assert is_video(Path("a/b.MP4"))
    assert is_video(Path("b.webm"))
    assert not is_video(Path("mp4"))
    assert not is_video(Path("a.gif"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(lively_model(), path)
    return path


def noisy_video(folder: Path) -> tuple[Path, Path]:
    """A video of 40 frames, and its first half."""
    rng = np.random.default_rng(0)
    whole, cut = folder / "whole.mp4", folder / "cut.mp4"
    write_raw(whole, [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(40)])
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return whole, cut


def test_the_command_takes_videos_and_says_if_one_breaks_off(
    checkpoint: Path, tmp_path: Path
) -> None:
    whole, cut = noisy_video(tmp_path)
    options = ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["predict", str(whole), *options, "--limit", "3"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("3 frames, ")
    assert len(shown(tmp_path / "out" / "whole.mp4")) == 3
    done = CliRunner().invoke(app, ["predict", str(cut), *options])
    assert done.exit_code == 1
    assert f"{cut}: is cut off" in done.stderr or f"{cut}: cannot be read" in done.stderr
    assert 10 < len(shown(tmp_path / "out" / "cut.mp4")) < 30
    for name, words in (("none.mp4", "no such video"), ("empty.mp4", "not a video")):
        if name == "empty.mp4":
            (tmp_path / name).touch()
        done = CliRunner().invoke(app, ["predict", str(tmp_path / name), *options])
        assert done.exit_code == 2
        assert words in done.stderr
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == sorted(
        [".json", ".jsonl", ".mp4"] * 2
    )


@pytest.mark.slow
def test_ctrl_c_leaves_a_playable_video(checkpoint: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", images(20_000))
    command = [UNISOLO, "predict", source, "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    run = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    hidden = tmp_path / "out" / ".clip.jsonl.part"
    for _ in range(600):
        if hidden.exists() and hidden.stat().st_size > 20_000:
            break
        time.sleep(0.2)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "stopped" in errors
    frames = len(shown(tmp_path / "out" / "clip.mp4"))
    assert 0 < frames < 20_000
    assert len((tmp_path / "out" / "clip.jsonl").read_text().splitlines()) == frames
    assert not hidden.exists()


MEMORY = """
import sys
from pathlib import Path
from tiny_model import lively_model
from unisolo import Predictor
from unisolo.video import predict_video

def resident():
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmRSS"))

seen = {}
def note(done, total):
    if done in (50, 300):
        seen[done] = resident()

source, out = map(Path, sys.argv[1:])
predict_video(Predictor(lively_model()), source, out, on_frame=note)
print(seen[50], seen[300])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    source = write(tmp_path / "clip.mp4", images(300, 240, 320))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(source), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[1]),
        },
    )
    at_50, at_300 = map(int, done.stdout.split())
    print(f"resident memory: {at_50 / 1024:.0f} MiB at frame 50, {at_300 / 1024:.0f} at 300")
    assert at_300 - at_50 < 24 * 1024  # 250 frames of pixels alone would be 55 MiB


@pytest.mark.slow
def test_a_browser_plays_the_video(predictor: Predictor, tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    source = write(tmp_path / "clip.mp4", images(25))
    report = predict_video(predictor, source, tmp_path / "out", scale=4)
    page_file = tmp_path / "page.html"
    page_file.write_text(f'<video muted src="{report.video.as_uri()}"></video>')
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM),
            args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"],
        )
        page = browser.new_page()
        page.goto(page_file.as_uri())
        facts = page.evaluate(
            """async () => {
                const video = document.querySelector("video");
                const end = new Promise(done => video.addEventListener("ended", done));
                await video.play();
                await end;
                return [video.videoWidth, video.videoHeight, video.duration, video.currentTime];
            }"""
        )
        browser.close()
    assert facts[:2] == [256, 192]
    assert facts[2] == pytest.approx(1.0, abs=0.05)
    assert facts[3] == pytest.approx(1.0, abs=0.05)
