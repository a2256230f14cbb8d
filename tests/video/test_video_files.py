"""Reading and writing videos: times, odd sizes, phones held upright, and damaged files."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from small_videos import images, write, write_raw

from unisolo.video.files import VideoError, VideoReader, VideoWriter


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 2), (1, 1)])
def test_frames_come_back_with_their_size_and_times(size: tuple[int, int], tmp_path: Path) -> None:
    frames = images(7, *size)
    path = write(tmp_path / "a.mp4", frames, 20)
    with VideoReader(path) as reader:
        assert (reader.rate, reader.expected) == (20, 7)
        found = list(reader)
        assert reader.trouble == ""
    assert [round(frame.time, 4) for frame in found] == [round(n / 20, 4) for n in range(7)]
    for frame, image in zip(found, frames, strict=True):
        assert frame.image.shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
        shown = frame.image[: size[0], : size[1]].astype(int)
        assert np.abs(shown - image).mean() < 6
        assert np.abs(frame.image[-1] - frame.image[size[0] - 1].astype(int)).mean() < 12


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.5, 0.51, 2.0]
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), (48, 64))
    for image, time in zip(images(5), times, strict=True):
        writer.write(image, time)
    writer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert [frame.time for frame in reader] == pytest.approx(times, abs=0.001)


def test_a_frame_of_another_size_is_named(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(25), (48, 64))
    with pytest.raises(ValueError, match="in a video of 48 x 64"):
        writer.write(images(1, 50, 64)[0], 0)
    writer.write(images(1)[0], 0)
    writer.close()


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi", "mov", "ts"])
def test_usual_containers_are_read(ending: str, tmp_path: Path) -> None:
    write_raw(tmp_path / f"a.{ending}", images(10))
    with VideoReader(tmp_path / f"a.{ending}") as reader:
        found = list(reader)
        assert reader.trouble == ""
    assert len(found) == 10
    assert [frame.time for frame in found] == pytest.approx([n / 25 for n in range(10)], abs=2e-3)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_a_cut_video_gives_what_is_there_and_says_so(
    ending: str, share: float, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(100)]
    whole = tmp_path / f"whole.{ending}"
    write_raw(whole, noise)
    data = whole.read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(data[: int(len(data) * share)])
    with VideoReader(cut) as reader:
        found = sum(1 for _ in reader)
        assert 10 < found < 100 * share + 2
        if share < 0.9 or ending == "mp4":  # mkv has no count of frames, and 0.4 s is little
            assert "cut off" in reader.trouble or "beyond frame" in reader.trouble


def test_a_video_held_upright_is_read_upright(tmp_path: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32] = 200
    path = write(tmp_path / "a.mp4", [image] * 3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8  # ISO 14496-12: track header, version 0
    assert struct.unpack(">9i", data[matrix : matrix + 36])[0] == 1 << 16
    # A quarter turn clockwise, as a phone held upright writes.
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    with VideoReader(path) as reader:
        (first, *_) = reader
    assert first.image.shape == (64, 48, 3)
    assert first.image[:28].mean() > 190
    assert first.image[36:].mean() < 10


@pytest.mark.parametrize("content", [b"", b"not a video", b"\x00\x00\x00\x18ftypmp42" + bytes(64)])
def test_what_is_no_video_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.mp4: "), VideoReader(path) as reader:
        list(reader)
    with pytest.raises(VideoError, match="no such video"):
        VideoReader(tmp_path / "b.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="holds no video"):
        VideoReader(tmp_path / "a.mp4")
