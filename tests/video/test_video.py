"""Every reader gives the frame that is shown at the wanted time: read off counters in rendered files."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import unloc.video.pyav_reader as pyav_reader
from tests.video.rendered import KINDS, Kind, counter_image, read_counter, render
from tests.video.streams import write_two_sizes
from unloc.errors import InputError, VideoError
from unloc.video.decord_reader import unsound_by_facts
from unloc.video.facts import scan
from unloc.video.pyav_reader import PyAVReader
from unloc.video.reading import open_video

CUT_BY_EDIT_LIST = "h264_negative_start"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rendered")
    return {name: render(folder / (name + kind.suffix), kind) for name, kind in KINDS.items()}


def shown_seconds(kind: Kind, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers and times of the frames that a player shows, on the container's clock."""
    kept = np.flatnonzero(kind.stamps >= 0)
    start = 0 if name == CUT_BY_EDIT_LIST else kind.stamps[0]
    return kept, (kind.stamps[kept] - start) / 1000


def many_times(facts, count: int = 53) -> np.ndarray:
    """Evenly, at random, and exactly at frames."""
    rng = np.random.default_rng(1)
    evenly = np.linspace(facts.first_seconds, facts.end_seconds - 1e-3, count)
    anywhere = rng.uniform(facts.first_seconds, facts.end_seconds - 1e-3, 20)
    return np.sort(np.concatenate([evenly, anywhere, rng.choice(facts.packet_times, 10)]))


def check_frames(name: str, reader, wanted: np.ndarray) -> None:
    numbers, seconds = shown_seconds(KINDS[name], name)
    seconds = seconds + reader.facts.first_seconds - seconds[0]  # FLV and MPEG-TS begin where their muxer likes
    answered = []
    for shown in reader.frames_at(wanted):
        for position in shown.positions:
            expected = max(int(np.searchsorted(seconds, wanted[position] + 1e-4, side="right")) - 1, 0)
            assert read_counter(shown.image) == numbers[expected], f"at {wanted[position]:.4f} s"
            assert shown.time_seconds == pytest.approx(seconds[expected], abs=2e-3)
            answered.append(position)
    assert sorted(answered) == list(range(len(wanted)))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
def test_the_frame_shown_at_a_time_is_returned_or_the_decoder_says_it_is_unsound(files, name, decoder):
    try:
        reader = open_video(files[name], decoder)
    except VideoError as error:
        assert decoder == "decord", "PyAV reads every kind"
        assert error.reason == "unsound"
        return
    assert reader.reason
    check_frames(name, reader, many_times(reader.facts))


@pytest.mark.parametrize("name", KINDS)
def test_few_wanted_frames_are_the_right_ones(files, name):
    for count in (1, 2, 5):
        reader = open_video(files[name])
        facts = reader.facts
        check_frames(name, reader, np.linspace(facts.first_seconds, facts.last_seconds, count))


@pytest.mark.parametrize("name", KINDS)
def test_jumping_in_the_file_gives_the_same_frames(files, name, monkeypatch):
    monkeypatch.setattr(pyav_reader, "SEEK_BYTES", -1)
    reader = open_video(files[name], "pyav")
    facts = reader.facts
    check_frames(name, reader, np.linspace(facts.first_seconds, facts.last_seconds, 9))


@pytest.mark.parametrize("name", KINDS)
def test_decoding_by_plan_equals_decoding_in_order_to_the_bit(files, name):
    facts = scan(files[name])
    wanted = many_times(facts, 11)
    planned = {p: f for f in PyAVReader(facts).frames_at(wanted) for p in f.positions}
    in_order = {p: f for f in PyAVReader(facts)._in_order(list(enumerate(wanted.tolist()))) for p in f.positions}
    assert planned.keys() == in_order.keys()
    for position, frame in planned.items():
        assert frame.time_seconds == in_order[position].time_seconds
        assert np.array_equal(frame.image, in_order[position].image)


@pytest.mark.parametrize("name", ["h264_b_frames", "h264_open_gop", "hevc", "mpeg4_mp4_b_frames", "h264_no_index"])
def test_ordinary_streams_are_decoded_by_plan_without_falling_back(files, name, monkeypatch):
    monkeypatch.setattr(PyAVReader, "_in_order", lambda *_: pytest.fail("fell back to decoding in order"))
    reader = open_video(files[name], "pyav")
    facts = reader.facts
    check_frames(name, reader, np.linspace(facts.first_seconds, facts.last_seconds, 4))


def test_a_wrong_plan_is_noticed_and_the_rest_is_read_in_order(files, monkeypatch):
    # A plan that starts off a key frame loses frames, which must be noticed.
    real_plan = pyav_reader.make_plan

    def broken(facts, wanted):
        plan = real_plan(facts, wanted)
        late = [range(min(one.start + 2, one.stop - 1), one.stop) for one in plan.ranges]
        return type(plan)(plan.positions, late, plan.skip_unreferenced)

    monkeypatch.setattr(pyav_reader, "make_plan", broken)
    reader = open_video(files["h264_b_frames"], "pyav")
    facts = reader.facts
    check_frames("h264_b_frames", reader, np.linspace(facts.first_seconds, facts.last_seconds, 5))


def test_facts_are_measured_from_packets_not_headers(files):
    facts = scan(files["h264_vfr"])
    times = KINDS["h264_vfr"].stamps / 1000
    assert np.allclose(facts.packet_times, times, atol=1e-3)
    assert len(facts.packets) == 75
    assert facts.last_seconds == pytest.approx(times[-1], abs=1e-3)
    assert scan(files["h264_interlaced"]).interlaced
    assert not scan(files["h264_b_frames"]).interlaced
    assert scan(files["hevc_layers"]).num_temporal_layers > 1
    assert scan(files["hevc"]).num_temporal_layers == 1


def test_time_zero_is_the_containers_start(files):
    late = scan(files["h264_late_start"])
    assert (late.first_seconds, late.clock_start_seconds) == (0.0, 10.0)
    facts = scan(files["h264_no_index"])
    assert (facts.first_seconds, facts.end_seconds) == (pytest.approx(0.0), pytest.approx(3.0, abs=1e-3))


def test_auto_records_why_it_did_not_use_decord(files):
    reasons = {name: open_video(files[name]).reason for name in ("h264_b_frames", "h264_interlaced", "mpeg4_avi")}
    assert "PyAV is faster" in reasons["h264_b_frames"]
    assert "interlaced" in reasons["h264_interlaced"]
    assert "may pack B-frames" in reasons["mpeg4_avi"]


def test_decord_by_name_on_an_unsound_stream_is_an_error_that_names_the_cause(files):
    with pytest.raises(VideoError, match="interlaced") as caught:
        open_video(files["h264_interlaced"], "decord")
    assert caught.value.reason == "unsound"
    assert unsound_by_facts(scan(files["h264_b_frames"])) is None
    assert "edit list" in unsound_by_facts(scan(files[CUT_BY_EDIT_LIST]))
    assert "yuv420p10le" in unsound_by_facts(scan(files["hevc_open_gop_10_bit"]))


def test_an_unknown_decoder_is_an_error(files):
    with pytest.raises(InputError, match="'opencv'"):
        open_video(files["hevc"], "opencv")


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_are_turned_upright(tmp_path, degrees):
    kind = Kind(".mp4", options={"preset": "veryfast", "g": "5"}, num_frames=10)
    path = render(tmp_path / "turned.mp4", kind, display_rotation=degrees)
    reader = open_video(path)
    facts = reader.facts
    image = next(iter(reader.frames_at(np.asarray([facts.packet_times[3]])))).image
    expected = np.rot90(counter_image(3), degrees // 90).astype(float)
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 12, "another turn differs by far more"


HALF = 1 << 15
MATRICES = {  # (a, b, c, d) → counterclockwise quarter turns
    "all zeros": ((0, 0, 0, 0), 0),
    "identity": ((2 * HALF, 0, 0, 2 * HALF), 0),
    "singular": ((2 * HALF, 0, 0, 0), 0),
    "45 degrees": ((46341, 46341, -46341, 46341), 0),
    "93 degrees": ((-3430, 65446, -65446, -3430), 0),
    "91 degrees": ((-1144, 65526, -65526, -1144), 3),
    "90 degrees, enlarged": ((0, 4 * HALF, -4 * HALF, 0), 3),
    "270 degrees": ((0, -2 * HALF, 2 * HALF, 0), 1),
    "180 degrees": ((-2 * HALF, 0, 0, -2 * HALF), 2),
    "a mirror": ((-2 * HALF, 0, 0, 2 * HALF), 0),
    "a mirror upside down": ((2 * HALF, 0, 0, -2 * HALF), 0),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_only_a_display_matrix_that_rotates_by_quarters_turns_frames(tmp_path, name, decoder):
    (a, b, c, d), turns = MATRICES[name]
    kind = Kind(".mp4", options={"preset": "veryfast", "g": "5"}, num_frames=10)
    path = render(tmp_path / "turned.mp4", kind, display_rotation=90)
    content, before = path.read_bytes(), struct.pack(">5i", 0, -2 * HALF, 0, 2 * HALF, 0)
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, struct.pack(">5i", a, b, 0, c, d)))
    try:
        reader = open_video(path, decoder)
        facts = reader.facts
    except VideoError as error:
        assert decoder == "decord" and error.reason == "unsound"
        return
    image = next(iter(reader.frames_at(np.asarray([facts.packet_times[3]])))).image
    expected = np.rot90(counter_image(3), turns).astype(float)
    assert image.shape == expected.shape and np.abs(image - expected).mean() < 12


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [
        (".mkv", "libx264", "yuv420p"),
        (".webm", "libvpx", "yuv420p"),
        (".webm", "libvpx-vp9", "yuv420p"),
        (".avi", "mjpeg", "yuvj420p"),
    ],
)
def test_a_stream_whose_frame_size_changes_is_read_by_pyav_and_refused_for_decord(
    tmp_path, suffix, codec, pixel_format
):
    path = write_two_sizes(tmp_path / f"sizes{suffix}", codec, pixel_format)
    reader = open_video(path)
    facts = reader.facts
    shapes = [shown.image.shape for shown in reader.frames_at(facts.packet_times)]
    assert shapes == [(80, 128, 3)] * 10 + [(160, 256, 3)] * 10
    with pytest.raises(VideoError, match="128x80 and 256x160") as caught:
        open_video(path, "decord")
    assert caught.value.reason == "unsound"


def test_stored_pixels_are_kept_and_their_aspect_ratio_is_a_fact(tmp_path):
    kind = Kind(".mp4", options={"preset": "veryfast"}, num_frames=5)
    path = render(tmp_path / "wide.mp4", kind, aspect=Fraction(2, 1))
    reader = open_video(path)
    facts = reader.facts
    assert facts.sample_aspect_ratio == 2
    assert next(iter(reader.frames_at(np.zeros(1)))).image.shape == (80, 128, 3)
