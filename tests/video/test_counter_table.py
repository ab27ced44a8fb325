"""Codec by container by sampling: every wanted frame is the right one, read off its counter, or the decoder refuses."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from tests.video.rendered import X264, Kind, counter_image, read_counter, read_counters, render
from tests.video.streams import NOT_CODED, field_coded_frames, pack_b_frames, remux, write_field_coded
from unloc.errors import VideoError
from unloc.video.reading import FrameSampling, open_video

NUM_FRAMES = 60
LEGACY = {"g": "12", "qmin": "2", "qmax": "4"}
FIXED_GOP = "b-adapt=0:scenecut=0:b-pyramid="
CODECS = {
    "h264": Kind("", options=X264 | {"g": "12", "bf": "0"}),
    "h264_2_b": Kind("", options=X264 | {"g": "12", "bf": "2", "x264-params": FIXED_GOP + "none"}),
    "h264_3_b": Kind("", options=X264 | {"g": "12", "bf": "3", "x264-params": FIXED_GOP + "none"}),
    "h264_pyramid": Kind("", options=X264 | {"g": "24", "bf": "7", "x264-params": FIXED_GOP + "normal"}),
    "h264_15_b": Kind("", options=X264 | {"g": "40", "bf": "15", "x264-params": FIXED_GOP + "none"}),
    "h264_open_gop": Kind("", options=X264 | {"g": "12", "bf": "3", "x264-params": "open-gop=1:" + FIXED_GOP + "none"}),
    "hevc": Kind("", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none:keyint=15:bframes=3"}),
    "mpeg4": Kind("", "mpeg4", LEGACY | {"bf": "0"}),
    "mpeg4_2_b": Kind("", "mpeg4", LEGACY | {"bf": "2"}),
    "mpeg4_packed": Kind("", "mpeg4", LEGACY | {"bf": "1"}),
    "mpeg4_packed_2_b": Kind("", "mpeg4", LEGACY | {"bf": "2"}),
    "vp9": Kind("", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "20", "crf": "20"}),
    "av1": Kind("", "libsvtav1", {"preset": "12", "g": "20", "crf": "20", "svtav1-params": "log=-1"}),
    "mjpeg": Kind("", "mjpeg", LEGACY, pixel_format="yuvj420p"),
    "mpeg2_2_b": Kind("", "mpeg2video", LEGACY | {"bf": "2"}),
    "wmv2": Kind("", "wmv2", LEGACY),
}
SUFFIXES = (".avi", ".mp4", ".mov", ".mkv", ".webm", ".ts", ".flv", ".mpg", ".wmv", ".3gp")
SAMPLINGS = {
    "every frame": FrameSampling(fps=25.0),
    "2 fps": FrameSampling(fps=2.0),
    "16 frames": FrameSampling(num_frames=16),
    "first and last": FrameSampling(num_frames=2),
}
PARSED = (".ts", ".mpg", ".wmv")  # their demuxers take packed frames apart; no muxer writes them
NOT_MADE = {("mpeg2_2_b", ".wmv"), *((codec, suffix) for codec in CODECS if "packed" in codec for suffix in PARSED)}
CELLS = [(codec, suffix) for codec in CODECS for suffix in SUFFIXES if (codec, suffix) not in NOT_MADE]


def render_cell(folder: Path, codec: str, suffix: str) -> Path | None:
    """The file, or None where the container does not take the codec."""
    kind = replace(CODECS[codec], suffix=suffix, num_frames=NUM_FRAMES)
    path = folder / (codec + suffix)
    try:
        if codec.startswith("mpeg4_packed"):
            pack_b_frames(render(folder / f"{codec}.m4v.avi", replace(kind, suffix=".avi")), path)
        else:
            render(path, kind)
        with av.open(str(path)) as container:
            container.decode(video=0).__next__()
    except (ValueError, IndexError, av.error.FFmpegError):
        return None  # the muxer refuses the codec, or writes what no demuxer finds again
    return path


def wrong_frames(path: Path, decoder: str, sampling: FrameSampling) -> list[str]:
    """What is not as it should be; raises VideoError where the decoder refuses."""
    reader = open_video(path, decoder)
    facts = reader.facts
    start, wrong = facts.first_seconds, []
    if abs(facts.end_seconds - start - NUM_FRAMES / 25) > 2e-3:
        wrong.append(f"takes {facts.end_seconds - start:.3f} s")
    wanted = sampling.times(start, facts.last_seconds, facts.end_seconds)
    missing = set(range(len(wanted)))
    for shown in reader.frames_at(wanted):
        missing.difference_update(shown.positions)
        for position in shown.positions:
            expected = int((wanted[position] - start) * 25 + 1e-2)
            number = read_counter(shown.image)
            if number != expected:
                wrong.append(f"frame {number} for {expected}")
            if abs(shown.time_seconds - start - expected / 25) > 2e-3:
                wrong.append(f"frame {expected} at {shown.time_seconds - start:.3f} s")
    return wrong + [f"{len(missing)} not answered"] * bool(missing)


@pytest.mark.parametrize(("codec", "suffix"), CELLS)
def test_each_wanted_frame_is_the_right_one_in_every_codec_and_container(tmp_path, codec, suffix):
    path = render_cell(tmp_path, codec, suffix)
    if path is None:
        pytest.skip(f"{suffix} does not take {codec}")
    for name, sampling in SAMPLINGS.items():
        assert wrong_frames(path, "auto", sampling) == [], name
        try:
            assert wrong_frames(path, "decord", sampling) == [], f"decord, {name}"
        except VideoError as error:
            assert error.reason == "unsound"


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv"])
@pytest.mark.parametrize("codec", ["mpeg4", "mpeg4_packed"])
def test_an_empty_mpeg4_packet_leaves_the_frame_before_on_screen(tmp_path, codec, suffix):
    source = render_cell(tmp_path, codec, ".avi")
    path, shown = tmp_path / f"dropped{suffix}", []

    def with_empty_ones(chunks: list[bytes]) -> list[bytes]:
        result = []
        for number, chunk in enumerate(chunks):
            result.append(chunk)
            shown.append(number)
            if number > 9 and (codec == "mpeg4" or chunk == NOT_CODED):
                result += [NOT_CODED] * 3
                shown.extend([number] * 3)
        return result

    remux(source, path, with_empty_ones)
    for step in (1, 7):
        reader = open_video(path)
        places = list(range(0, len(shown) - 3, step))
        read = read_counters(reader, reader.facts.first_seconds + np.asarray(places) / 25)
        assert read == [shown[place] for place in places]


@pytest.mark.parametrize("codec", ["h264_3_b", "mpeg4_2_b", "mpeg4_packed"])
def test_a_lost_frame_in_avi_shifts_no_frame_after_the_next_key_frame(tmp_path, codec):
    source = render_cell(tmp_path, codec, ".avi")
    path = tmp_path / "damaged.avi"
    remux(source, path, lambda chunks: [*chunks[:15], chunks[15][:2], *chunks[16:]])
    reader = open_video(path)
    read = read_counters(reader, reader.facts.first_seconds + np.arange(NUM_FRAMES) / 25)
    sound = [*range(12), *range(25, NUM_FRAMES)]
    assert [read[place] for place in sound] == sound


@pytest.mark.parametrize("codec", ["h264_3_b", "h264_pyramid", "h264_open_gop"])
def test_an_avi_that_begins_within_a_group_is_right_from_its_second_key_frame_on(tmp_path, codec):
    path = tmp_path / "late.avi"
    remux(render_cell(tmp_path, codec, ".avi"), path, lambda chunks: chunks[5:])
    reader = open_video(path, allow_partial=True)
    read = read_counters(reader, reader.facts.first_seconds + np.arange(NUM_FRAMES - 5) / 25)
    assert read[19:] == list(range(24, NUM_FRAMES))


@cache
def field_coded(num_reordered: int) -> tuple[list[np.ndarray], list[tuple[int, bytes, bytes]]]:
    images = [np.pad(counter_image(number), ((0, 16), (0, 0), (0, 0))) for number in range(40)]
    return images, field_coded_frames(images, num_reordered=num_reordered)


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".mkv", ".mp4"])
@pytest.mark.parametrize("packets_per_frame", [1, 2])
@pytest.mark.parametrize("num_reordered", [0, 2])
def test_field_coded_h264_gives_both_fields_of_each_frame_at_its_time(
    tmp_path, suffix, packets_per_frame, num_reordered
):
    images, coded = field_coded(num_reordered)
    path = tmp_path / f"fields{suffix}"
    write_field_coded(path, coded, packets_per_frame)
    for decoder in ("pyav", "decord"):
        for name, sampling in SAMPLINGS.items():
            try:
                reader = open_video(path, decoder)
                facts = reader.facts
                wanted = sampling.times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
                shown = list(reader.frames_at(wanted))
            except VideoError as error:
                assert decoder == "decord", error
                assert error.reason == "unsound"
                continue
            assert {place for frame in shown for place in frame.positions} == set(range(len(wanted)))
            for frame in shown:
                for place in frame.positions:
                    number = int((wanted[place] - facts.first_seconds) * 25 + 1e-2)
                    assert np.abs(frame.image.astype(float) - images[number]).mean() < 2, f"{decoder}, {name}"
                    assert frame.time_seconds - facts.first_seconds == pytest.approx(number / 25, abs=2e-3)
