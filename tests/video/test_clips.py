"""Clips have the pictures of their part of the video, copied or encoded, and its sound."""

import av
import numpy as np
import pytest

from unloc.errors import VideoError
from unloc.video.clips import cut_clip


def pictures(path):
    with av.open(str(path)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24").astype(float)) for frame in container.decode(video=0)]


@pytest.fixture(scope="module", params=["mp4", "mkv"])
def video(request, tmp_path_factory):
    """Five seconds at 10 frames a second that get brighter, a key frame each 0.8 s, B-frames between."""
    path = tmp_path_factory.mktemp("cut") / f"v.{request.param}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.options = {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=2"}
        for number in range(50):
            image = np.full((64, 64, 3), 5 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("start", "end", "begin"), [(1.0, 2.5, 0.8), (1.5, 3.0, 1.5), (0.0, 9.0, 0.0)])
def test_a_clip_has_the_pictures_of_its_part(start, end, begin, video, tmp_path):
    """From 1.0 s on copied, from the key frame at 0.8 s; from 1.5 s, 0.7 s behind a key frame, encoded."""
    copied = cut_clip(video, start, end, tmp_path / "clips" / "one.mp4")
    assert copied == (begin != 1.5)
    found = pictures(tmp_path / "clips" / "one.mp4")
    assert found[0][0] == pytest.approx(0.0, abs=0.11)
    last = begin + found[-1][0] - found[0][0]
    assert min(end, 5.0) - 0.11 <= last + 0.1 <= min(end, 5.0) + (0.41 if copied else 0.01)
    for time, picture in found[: round(10 * (min(end, 5.0) - begin))]:
        number = round(10 * (begin + time - found[0][0]))
        assert picture.mean() == pytest.approx(5 * number, abs=3.0)


def test_sound_is_copied_with_the_pictures(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=16000, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        for number in range(40):
            image = np.full((64, 64, 3), 6 * number, dtype=np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            wave = np.zeros((1, 1600), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(audio.encode(frame))
        container.mux(video.encode())
        container.mux(audio.encode())
    assert not cut_clip(path, 1.0, 3.0, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as container:
        heard = [frame.time for frame in container.decode(audio=0)]
    assert len(pictures(tmp_path / "clip.mp4")) == 20 and 1.8 < heard[-1] - heard[0] < 2.2


def test_a_part_behind_the_end_is_an_error_that_leaves_no_file(video, tmp_path):
    with pytest.raises(VideoError):
        cut_clip(video, 50.6, 52.0, tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())
