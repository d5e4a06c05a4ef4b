"""Frames of a video match the release; files without frames fail with a clear reason."""

import io

import av
import numpy as np
import pytest

from emu_jax.data.images import DecodeError
from emu_jax.data.video import pick_frames, random_indices, take_frames, uniform_indices


def video(count, size=32):
    """Return an mp4 whose frame i is gray with brightness 10 * i."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "1"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 10 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def brightness(frames):
    return [round(float(frame.mean()) / 10) for frame in frames]


def test_indices_match_the_release(shared_dir):
    expected = np.load(shared_dir / "reference" / "preprocessed_images.npz")
    assert uniform_indices(100, 8).tolist() == expected["video_frame_indices_of_100"].tolist()
    assert uniform_indices(37, 8).tolist() == expected["video_frame_indices_of_37"].tolist()


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 1000])
def test_indices_are_frames_in_time_order(count):
    rng = np.random.default_rng(0)
    for indices in (uniform_indices(count, 8), *(random_indices(count, 8, rng) for _ in range(20))):
        assert len(indices) == 8
        assert (np.diff(indices) >= 0).all()
        assert indices.min() >= 0
        assert indices.max() < count


def test_random_frames_come_from_each_interval_and_differ():
    rng = np.random.default_rng(0)
    drawn = np.stack([random_indices(80, 8, rng) for _ in range(200)])
    assert (drawn // 10 == np.arange(8)).all()
    assert len(np.unique(drawn[:, 0])) == 10


def test_frames_of_a_video():
    frames = take_frames(video(21), frames=4)
    assert brightness(frames) == uniform_indices(21, 4).tolist() == [2, 7, 12, 17]
    assert frames[0].shape == (32, 32, 3)
    small = take_frames(video(21), frames=4, size=8)
    assert small[0].shape == (8, 8, 3)
    assert brightness(take_frames(video(2), frames=4)) == [0, 0, 0, 1] or len(take_frames(video(2), frames=4)) == 4
    rng = np.random.default_rng(1)
    random = brightness(take_frames(video(21), frames=4, rng=rng))
    assert random == random_indices(21, 4, np.random.default_rng(1)).tolist()


def test_sample_video(shared_dir):
    frames = take_frames(shared_dir / "samples" / "video.mp4", frames=8, size=224)
    assert len(frames) == 8
    assert all(frame.shape == (224, 224, 3) for frame in frames)
    assert np.std([frame.mean() for frame in frames]) > 0


def test_pick_frames():
    frames = tuple(range(16))
    assert pick_frames(frames, count=4, rng=None) == tuple(uniform_indices(16, 4))
    assert pick_frames(frames[:3], count=4, rng=None) == (0, 1, 2)


def test_a_truncated_video_yields_its_decodable_frames():
    """A transport stream has no index at its end that could be lost."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for i in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = buffer.getvalue()
    frames = take_frames(data[: len(data) // 2], frames=4)
    assert len(frames) == 4
    assert brightness(frames) == sorted(brightness(frames))


def audio():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a video"),
        (b"no video at all", "not a video"),
        (video(10)[:200], "not a video|no frames"),
        (audio(), "not a video"),
    ],
)
def test_invalid_videos_raise_a_clear_error(data, reason):
    with pytest.raises(DecodeError, match=reason):
        take_frames(data, frames=4)


def test_damaged_videos_never_crash():
    rng = np.random.default_rng(0)
    intact = video(12)
    for i in range(150):
        data = bytearray(intact)
        for position in rng.integers(0, len(data), rng.integers(1, 20)):
            data[position] = rng.integers(0, 256)
        if i % 3 == 0:
            data = data[: rng.integers(0, len(data))]
        try:
            assert len(take_frames(bytes(data), frames=4)) == 4
        except DecodeError:
            continue
