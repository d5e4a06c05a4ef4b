"""Frames of a video match the release; files without frames fail with a clear reason."""

import io
import struct
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition

from emu_jax.data.images import DecodeError, encode_png
from emu_jax.data.limits import Limits
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


def test_rotated_videos_are_upright(cases):
    """The display matrix of a phone: a quarter turn clockwise."""
    plain = take_frames(cases / "rotated_video" / "plain.mp4", frames=3)
    turned = take_frames(cases / "rotated_video" / "phone.mp4", frames=3)
    for before, after in zip(plain, turned, strict=True):
        np.testing.assert_array_equal(after, np.rot90(before, -1))


def matrix(a, b, c, d):
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((1, 0, 0, 1), lambda x: x),
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
        ((1, 0, 0, -1), lambda x: x[::-1]),
        ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
    ],
)
def test_all_display_matrices(cases, values, expected):
    """The eight EXIF orientations, as display matrices in the header of the same file."""
    plain = cases / "rotated_video" / "plain.mp4"
    data = plain.read_bytes()
    identity = matrix(1, 0, 0, 1)
    at = data.index(identity, data.index(b"tkhd"))
    changed = data[:at] + matrix(*values) + data[at + len(identity) :]
    (frame,) = take_frames(changed, frames=1)
    (original,) = take_frames(plain, frames=1)
    np.testing.assert_array_equal(frame, expected(original))


def test_the_video_stream_and_not_the_cover_image():
    """Both streams are video streams; the cover image is the first one."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        cover = container.add_stream("png", rate=1)
        cover.width = cover.height = 8
        cover.pix_fmt = "rgb24"
        cover.disposition = Disposition.attached_pic
        stream = container.add_stream("libx264", rate=4, options={"crf": "1"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        packet = av.Packet(encode_png(np.full((8, 8, 3), 255, np.uint8)))
        packet.stream, packet.pts, packet.dts, packet.time_base = cover, 0, 0, Fraction(1, 1)
        container.mux(packet)
        for i in range(9):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = take_frames(buffer.getvalue(), frames=3)
    assert frames[0].shape == (32, 32, 3)
    assert brightness(frames) == uniform_indices(9, 3).tolist()


@pytest.mark.parametrize(
    "script",
    [
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        b"a=rtpmap:96 H264/90000\n",
        b"ffconcat version 1.0\nfile 'PLAIN'\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:PLAIN\n#EXT-X-ENDLIST\n",
        b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
        b"RTSPtextRTSP://127.0.0.1:9/a",
    ],
)
def test_scripts_that_name_files_or_addresses_are_refused(cases, tmp_path, script):
    path = tmp_path / "a.mp4"
    path.write_bytes(script.replace(b"PLAIN", str(cases / "rotated_video" / "plain.mp4").encode()))
    start = time.monotonic()
    with pytest.raises(DecodeError, match="not a video"):
        take_frames(path, frames=4)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"image_pixels": 1000}, "too many pixels"),
        ({"image_side": 16}, "too many pixels"),
        ({"video_frames": 20}, "too many frames"),
        ({"file_bytes": 100}, "too large"),
        ({"record_seconds": 1e-9}, "takes too long"),
    ],
)
def test_limits(tmp_path, limits, reason):
    path = tmp_path / "a.mp4"
    path.write_bytes(video(21))
    with pytest.raises(DecodeError, match=reason):
        take_frames(path, frames=4, limits=Limits(**limits))
    assert len(take_frames(path, frames=4)) == 4
