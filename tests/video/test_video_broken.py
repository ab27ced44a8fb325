"""Broken files fail with the true reason; with --allow-partial their readable part is read and its extent stated."""

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition

from tests.video.rendered import Kind, read_counter, render
from unloc.errors import VideoError
from unloc.video.facts import scan
from unloc.video.reading import open_video

X264 = {"preset": "veryfast", "g": "25", "bf": "2", "crf": "18"}
FRONT = Kind(".mp4", options=X264, container_options={"movflags": "+faststart"}, num_frames=200, is_noisy=True)
END = Kind(".mp4", options=X264, num_frames=200, is_noisy=True)
FRAGMENTED = Kind(
    ".mp4", options=X264, container_options={"movflags": "frag_keyframe+empty_moov"}, num_frames=200, is_noisy=True
)
MATROSKA = Kind(".mkv", options=X264, num_frames=200, is_noisy=True)
AVI = Kind(".avi", codec="mpeg4", options={"g": "25"}, num_frames=200, is_noisy=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    kinds = {"front": FRONT, "end": END, "fragmented": FRAGMENTED, "matroska": MATROSKA, "avi": AVI}
    return {name: render(folder / (name + kind.suffix), kind).read_bytes() for name, kind in kinds.items()}


def cut(data: bytes, share: float, path: Path) -> Path:
    path.write_bytes(data[: int(len(data) * share)])
    return path


def holed(data: bytes, start: float, share: float, path: Path) -> Path:
    first, length = int(len(data) * start), int(len(data) * share)
    path.write_bytes(data[:first] + bytes(length) + data[first + length :])
    return path


def read_all(path: Path, decoder: str = "auto", *, allow_partial: bool = False):
    """(times, counters, reader) at five frames per second."""
    reader = open_video(path, decoder, allow_partial=allow_partial)
    facts = reader.facts
    wanted = np.arange(facts.first_seconds, facts.end_seconds, 0.2)
    frames = {p: f for f in reader.frames_at(wanted) for p in f.positions}
    times = np.asarray([frames[p].time_seconds for p in range(len(wanted))])
    return times, [read_counter(frames[p].image) for p in range(len(wanted))], reader


@pytest.mark.parametrize("name", ["front", "end", "fragmented", "matroska", "avi"])
def test_whole_files_are_covered_to_their_end(whole, name, tmp_path):
    path = tmp_path / "whole.bin"
    path.write_bytes(whole[name])
    times, counters, reader = read_all(path)
    assert counters == np.round(times * 25).astype(int).tolist()
    assert reader.covered_seconds() == pytest.approx(8.0, abs=0.05)


@pytest.mark.parametrize("name", ["front", "fragmented", "matroska", "avi"])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_a_file_that_was_cut_off_is_an_error_that_says_what_is_readable(whole, name, share, tmp_path):
    path = cut(whole[name], share, tmp_path / "cut.bin")
    with pytest.raises(VideoError, match=r"\d+ of \d+ bytes.*--allow-partial") as caught:
        read_all(path)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("name", ["front", "fragmented", "matroska", "avi"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_allow_partial_reads_the_rest_and_states_the_covered_seconds(whole, name, share, tmp_path):
    path = cut(whole[name], share, tmp_path / "cut.bin")
    times, counters, reader = read_all(path, allow_partial=True)
    covered = reader.covered_seconds()
    assert 8.0 * share * 0.5 < covered < 8.0
    assert times[-1] <= covered + 0.04
    assert counters[:-2] == np.round(times[:-2] * 25).astype(int).tolist()


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("allow_partial", [False, True])
def test_without_its_index_a_cut_mp4_cannot_be_read_at_all(whole, share, allow_partial, tmp_path):
    path = cut(whole["end"], share, tmp_path / "cut.mp4")
    with pytest.raises(VideoError, match="its index") as caught:
        open_video(path, allow_partial=allow_partial)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("name", ["front", "end", "matroska", "avi"])
def test_a_hole_in_the_middle_is_an_error_unless_partial_is_allowed(whole, name, tmp_path):
    path = holed(whole[name], 0.3, 0.3, tmp_path / "holed.bin")
    with pytest.raises(VideoError, match="--allow-partial") as caught:
        read_all(path)
    assert caught.value.reason == "decode_error"
    times, counters, reader = read_all(path, allow_partial=True)
    assert 2.2 < reader.covered_seconds() < 7.0
    sound = (times < 1.5) | (times > 7.0)
    assert name != "avi" or times[-1] < 3.0, "after a hole an AVI file's packets no longer say when they are shown"
    assert (np.asarray(counters) == np.round(times * 25))[sound].all()


def test_a_hole_between_fragments_hides_the_rest_and_is_noticed(whole, tmp_path):
    path = holed(whole["fragmented"], 0.4, 0.2, tmp_path / "holed.mp4")
    with pytest.raises(VideoError, match="cut off") as caught:
        read_all(path)
    assert caught.value.reason == "truncated"
    *_, reader = read_all(path, allow_partial=True)
    assert reader.covered_seconds() < 5.0


@pytest.mark.parametrize("name", ["front", "matroska"])
def test_decord_is_never_given_a_holed_file(whole, name, tmp_path):
    path = holed(whole[name], 0.3, 0.3, tmp_path / "holed.bin")
    for allow_partial in (False, True):
        with pytest.raises(VideoError) as caught:
            open_video(path, "decord", allow_partial=allow_partial)
        assert caught.value.reason in ("unsound", "decode_error", "truncated")


def test_zeros_after_the_end_are_ignored(whole, tmp_path):
    path = tmp_path / "padded.mp4"
    path.write_bytes(whole["front"] + bytes(100_000))
    assert len(read_all(path)[0]) == 40


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty_file"), (b"not a video at all" * 100, "unreadable"), (bytes(5000), "unreadable")],
)
def test_a_file_that_is_no_video_fails_with_its_reason(content, reason, tmp_path):
    path = tmp_path / "junk.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        scan(path)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile other.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:8\n#EXTINF:8,\nother.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'></MPD>\n",
        "a note about the video\n" * 40,
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt", ".sdp", ".mpd"])
def test_a_text_is_no_video_and_opens_no_other_file(whole, content, suffix, tmp_path):
    (tmp_path / "other.mp4").write_bytes(whole["front"])
    path = tmp_path / f"list{suffix}"
    path.write_text(content)
    with pytest.raises(VideoError, match="is a text") as caught:
        scan(path)
    assert caught.value.reason == "unreadable"


def test_a_name_that_looks_like_a_pattern_opens_that_file_only(whole, tmp_path):
    (tmp_path / "frame%03d.mp4").write_bytes(whole["front"])
    assert len(scan(tmp_path / "frame%03d.mp4").packets) == 200
    with av.open(str(tmp_path / "x%d.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "rgb24"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
    (tmp_path / "x%d.png").write_bytes((tmp_path / "x1.png").read_bytes())
    with pytest.raises(VideoError) as caught:
        scan(tmp_path / "x%d.png")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("lacking", [100, 400])
def test_a_file_cut_off_inside_an_index_at_its_end_is_truncated(whole, lacking, tmp_path):
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole["end"][:-lacking])
    with pytest.raises(VideoError, match="inside its index") as caught:
        scan(path)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    ("suffix", "codec", "disposition", "reason", "words"),
    [
        ("h264", "libx264", 0, "unreadable", "no time stamps"),
        ("mp4", "mjpeg", Disposition.attached_pic, "no_video_stream", "only a picture"),
    ],
)
def test_a_raw_stream_and_a_cover_are_named(suffix, codec, disposition, reason, words, tmp_path):
    path = tmp_path / f"odd.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.disposition = disposition
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=words) as caught:
        scan(path)
    assert caught.value.reason == reason


def test_a_missing_file_fails_with_its_reason(tmp_path):
    with pytest.raises(VideoError, match="does not exist") as caught:
        scan(tmp_path / "nowhere.mp4")
    assert caught.value.reason == "not_found"
