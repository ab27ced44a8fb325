"""Every real file of ../shared/videos/A gives the frames of a sequential PyAV reference, or the true reason."""

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from unloc.errors import VideoError
from unloc.video.decord_reader import unsound_by_facts
from unloc.video.facts import scan
from unloc.video.reading import FrameSampling, open_video

REASONS = {
    "ax_sample_audio_only_15s.mp4": "no_video_stream",
    "ft_fixture2.mkv": "truncated",  # 102400 of 112749101 bytes
    "mp_result_zero_bytes.webm": "empty_file",
    "ft_fixture-moov.mov": "truncated",  # cut off inside its index
    "ax_invalid-bitstream.webm": "no_frames",
    "fate_mp4-init-nonkeyframe.mp4": "decode_error",  # begins off a key frame: only the last second decodes
}
HEAVY = {"ax_long_1080p_videoonly_lowbitrate.mp4", "ax_portrait_4k60.mp4", "mb_video-h265.mp4", "mb_cursed-vfr.mp4"}
NUM_FRAMES = 16
MIN_PSNR = 40.0


def file_names() -> list[str]:
    manifest = Path(__file__).resolve().parents[2].parent / "shared" / "videos" / "A" / "manifest.csv"
    if not manifest.is_file():
        return ["none"]
    with manifest.open() as handle:
        return [row["file"] for row in csv.DictReader(handle)]


def marked(names: list[str]) -> list:
    return [pytest.param(name, marks=pytest.mark.slow if Path(name).name in HEAVY else ()) for name in names]


@pytest.fixture
def folder(shared) -> Path:
    if not (shared / "videos" / "A").is_dir():
        pytest.skip("../shared/videos/A is not here")
    return shared / "videos" / "A"


def reference_frames(path: Path, wanted: np.ndarray) -> list[tuple[float, np.ndarray]]:
    """Independent of the library: every frame by container.decode, the last at or before each time."""
    with av.open(f"file:{path}", metadata_errors="replace") as container:
        stream = container.streams.best("video")
        stream.thread_count = 1
        origin, shown, held = (container.start_time or 0) / av.time_base, [], None
        packets = container.demux(stream)

        def answer(until: float) -> None:
            due = [time for time in wanted[len(shown) :] if time + 1e-4 < until]
            if held is not None and due:
                image = np.rot90(held[1].to_ndarray(format="rgb24"), round(held[1].rotation / 90) % 4)
                shown.extend([(held[0], image)] * len(due))

        while True:
            try:
                frames = next(packets).decode()
            except StopIteration:
                break
            except av.error.FFmpegError:
                continue
            for frame in frames:
                seconds = float(frame.pts * frame.time_base) - origin
                if held is not None and seconds <= held[0]:
                    continue
                answer(until=seconds)
                held = (seconds, frame)
                if len(shown) == len(wanted):
                    return shown
    answer(until=np.inf)
    return shown


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def read(path: Path, decoder: str, sampling: FrameSampling) -> tuple[np.ndarray, dict]:
    reader = open_video(path, decoder)
    facts = reader.facts
    wanted = sampling.times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
    return wanted, {p: f for f in reader.frames_at(wanted) for p in f.positions}


@pytest.mark.parametrize("name", marked(file_names()))
def test_frames_are_those_of_the_reference_or_the_reason_is_true(folder, name):
    path = folder / name
    if path.name in REASONS:
        with pytest.raises(VideoError) as caught:
            read(path, "auto", FrameSampling(num_frames=NUM_FRAMES))
        assert caught.value.reason == REASONS[path.name]
        return
    wanted, frames = read(path, "auto", FrameSampling(num_frames=NUM_FRAMES))
    if path.name == "fate_packed_bframes.avi":
        # Its frames come in order under swapped time stamps; each is shown at the time of its place in the order.
        assert len({frame.time_seconds for frame in frames.values()}) == 15
        return
    for position, (seconds, image) in enumerate(reference_frames(path, wanted)):
        assert frames[position].time_seconds == pytest.approx(seconds, abs=1e-6)
        assert psnr(frames[position].image, image) > MIN_PSNR


@pytest.mark.parametrize("name", marked(file_names()))
def test_decord_by_name_gives_the_same_frames_or_says_that_it_is_unsound(folder, name):
    path = folder / name
    if path.name in REASONS or unsound_by_facts(scan(path)):
        with pytest.raises(VideoError):
            read(path, "decord", FrameSampling(num_frames=NUM_FRAMES))
        return
    try:
        _, frames = read(path, "decord", FrameSampling(num_frames=NUM_FRAMES))
    except VideoError as error:
        assert error.reason in ("unsound", "decode_error")
        return
    _, ours = read(path, "pyav", FrameSampling(num_frames=NUM_FRAMES))
    for position, frame in frames.items():
        assert frame.time_seconds == pytest.approx(ours[position].time_seconds, abs=1e-6)
        assert psnr(frame.image, ours[position].image) > MIN_PSNR


@pytest.mark.slow
@pytest.mark.parametrize("name", file_names())
def test_dense_sampling_gives_the_frames_of_the_reference(folder, name):
    path = folder / name
    if path.name in REASONS or path.name == "fate_packed_bframes.avi" or "long_1080p" in path.name:
        pytest.skip("no dense reference")
    wanted, frames = read(path, "auto", FrameSampling(fps=5.0))
    for position, (seconds, image) in enumerate(reference_frames(path, wanted)):
        assert frames[position].time_seconds == pytest.approx(seconds, abs=1e-6)
        assert psnr(frames[position].image, image) > MIN_PSNR


@pytest.mark.parametrize("name", ["ft_fixture2.mkv", "fate_mp4-init-nonkeyframe.mp4"])
def test_allow_partial_reads_what_decodes(folder, name):
    reader = open_video(folder / "torture" / name, allow_partial=True)
    facts = reader.facts
    wanted = FrameSampling(num_frames=4).times(facts.first_seconds, facts.last_seconds, facts.end_seconds)
    assert sum(len(frame.positions) for frame in reader.frames_at(wanted)) == 4
