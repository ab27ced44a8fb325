"""Frame shards: what they hold, that the same videos give the same bytes, and what happens to broken videos."""

import json
import multiprocessing
import os
import signal
import tarfile
from io import BytesIO

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from tests.video.rendered import KINDS, SIZE, counter_image, read_counter, render
from unloc.errors import CacheError, CoverageError, InputError, MissingError
from unloc.video import frame_shards
from unloc.video.frame_shards import FrameSpec, pack_frames, packed_videos, read_frames, require_coverage
from unloc.video.preprocess import PreprocessSpec, resize_and_crop
from unloc.video.pyav_reader import PyAVReader, ShownFrame
from unloc.video.reading import FrameSampling, ReadSpec, VideoReading

SPEC = FrameSpec(sampling=FrameSampling(num_frames=12), size=48)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Five videos: uneven times, a late start, a rotation, an id with dots."""
    folder = tmp_path_factory.mktemp("frame_videos")
    kinds = {
        "a_60.0_210.0": ("h264_vfr", None),
        "b": ("h264_late_start", None),
        "c": ("h264_b_frames", 90),
        "d": ("h264_open_gop", None),
        "e": ("h264_long_gop", None),
    }
    return {
        key: render(folder / f"{key}{KINDS[kind].suffix}", KINDS[kind], display_rotation=turn)
        for key, (kind, turn) in kinds.items()
    }


def packed(files, out, spec=SPEC, videos_per_shard=2, **options):
    return pack_frames(list(files), files, out, spec, videos_per_shard=videos_per_shard, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def extracted(path, sampling, size):
    """(pixels (T, 3, S, S), times) as extract has them."""
    spec = PreprocessSpec(image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    reading = VideoReading(path, ReadSpec(sampling, spec))
    pixels = np.zeros((len(reading.wanted_seconds), 3, size, size), np.uint8)
    for positions, views in reading.frames():
        pixels[positions] = views[0]
    return pixels, reading.row("x")["times_seconds"]


def centres(frames, size):
    spec = PreprocessSpec(image_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    return np.stack([resize_and_crop(frame.transpose(1, 2, 0).copy(), spec).numpy() for frame in frames])


@pytest.mark.parametrize("sampling", [FrameSampling(num_frames=12), FrameSampling(fps=4)], ids=["frames", "fps"])
def test_shards_hold_the_frames_and_times_that_extract_encodes(files, tmp_path, sampling):
    packed(files, tmp_path, FrameSpec(sampling=sampling, size=48))
    videos = packed_videos(tmp_path)
    assert list(videos) == list(files)
    for video_id, path in files.items():
        shard, row = videos[video_id]
        pixels, times = extracted(path, sampling, 48)
        assert row["times_seconds"] == times
        found = centres(read_frames(shard, row, np.arange(len(times))), 48)
        difference = np.abs(found.astype(int) - pixels)
        assert difference.mean() < 1.5 and difference.max() < 40  # JPEG on hard edges


def test_frames_are_upright_and_show_the_moment_that_they_state(files, tmp_path):
    sampling = FrameSampling(num_frames=9)
    packed(files, tmp_path, FrameSpec(sampling=sampling, size=80))
    for video_id in ("b", "e"):
        shard, row = packed_videos(tmp_path)[video_id]
        frames = read_frames(shard, row, np.arange(9)).transpose(0, 2, 3, 1)
        assert frames.shape[1:3] == SIZE[::-1]
        assert [read_counter(frame) for frame in frames] == [round(time * 25) for time in row["times_seconds"]]
    shard, row = packed_videos(tmp_path)["c"]
    assert read_frames(shard, row, [0]).shape == (1, 3, *SIZE)  # turned


def test_small_videos_are_not_enlarged_and_repeat_frames(files, tmp_path):
    packed({"d": files["d"]}, tmp_path, FrameSpec(sampling=FrameSampling(num_frames=100), size=256))
    _, row = packed_videos(tmp_path)["d"]
    assert (row["frame_height"], row["frame_width"]) == SIZE[::-1]
    assert len(row["times_seconds"]) == 100 and len(set(row["times_seconds"])) == 75


def test_webdataset_reads_the_same_samples(files, tmp_path):
    packed(files, tmp_path)
    shards = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:08d}" for number in range(5)]
    for sample, (video_id, (shard, row)) in zip(samples, packed_videos(tmp_path).items(), strict=True):
        described = json.loads(sample["json"])
        assert described == {key: value for key, value in row.items() if key not in ("frame_offsets", "frame_bytes")}
        assert described["video_id"] == video_id and described["num_frames"] == 12 and described["size"] == 48
        images = [np.asarray(Image.open(BytesIO(sample[f"{index:04d}.jpg"]))) for index in range(12)]
        order = np.random.default_rng(0).permutation(24) // 2  # any order, with repeats
        np.testing.assert_array_equal(read_frames(shard, row, order), np.stack(images).transpose(0, 3, 1, 2)[order])


def test_the_index_says_where_frames_are_in_the_tar_file(files, tmp_path):
    packed(files, tmp_path)
    for shard, row in packed_videos(tmp_path).values():
        with tarfile.open(shard) as tar:
            offsets = {member.offset_data: member.size for member in tar}
        assert all(offsets[at] == size for at, size in zip(row["frame_offsets"], row["frame_bytes"], strict=True))


def kill_after(videos):
    def on_progress(done, total):
        if done == videos:
            os.kill(os.getpid(), signal.SIGKILL)

    return on_progress


@pytest.mark.parametrize("videos", [3, 4])
def test_a_killed_packing_resumes_to_the_same_bytes(files, tmp_path, videos):
    packed(files, tmp_path / "whole")
    context = multiprocessing.get_context("fork")
    options = {"on_progress": kill_after(videos)}
    process = context.Process(target=packed, args=(files, tmp_path / "killed"), kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    names = {path.name for path in (tmp_path / "killed").glob("frames-*.tar")}
    assert names == {"frames-000000.tar"}
    kept = (tmp_path / "killed" / "frames-000000.tar").stat().st_mtime_ns
    rows = packed(files, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert (tmp_path / "killed" / "frames-000000.tar").stat().st_mtime_ns == kept
    assert rows == packed(files, tmp_path / "whole")


def crash(job):
    if job[0] == "b":
        os.kill(os.getpid(), signal.SIGSEGV)
    return PACK_VIDEO(job)


PACK_VIDEO = frame_shards._pack_video


def test_processes_give_the_same_bytes_and_a_crash_costs_one_video(files, tmp_path, monkeypatch):
    some, options = (
        {key: files[key] for key in ("d", "b", "c")},
        {"videos_per_shard": 3},
    )  # each shard has new processes
    packed(some, tmp_path / "one", **options)
    packed(some, tmp_path / "two", **options, workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    monkeypatch.setattr(frame_shards, "_pack_video", crash)
    rows = packed(some, tmp_path / "crash", **options, workers=2)
    assert [row.get("reason") for row in rows] == [None, "crash", None]


def test_broken_and_absent_videos_are_counted_and_named_also_when_resumed(files, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(files["b"].read_bytes()[:3000])
    ids, found = ["a", "broken", "gone"], {"a": files["b"], "broken": broken}
    for _ in range(2):
        rows = pack_frames(ids, found, tmp_path / "out", SPEC)
        assert [row.get("reason") for row in rows] == [None, "truncated", "not_found"]
        assert str(broken) in rows[1]["message"]
        require_coverage(rows, 1 / 3)
        with pytest.raises(CoverageError, match=r"1 of 3 .* broken: truncated"):
            require_coverage(rows, 0.34)
    assert list(packed_videos(tmp_path / "out")) == ["a"]


def two_shapes(self, wanted_seconds):
    """Frames of 128x80, then of 160x256."""
    for position, time_seconds in enumerate(wanted_seconds.tolist()):
        image = counter_image(position)
        turned = np.kron(np.rot90(image), np.ones((2, 2, 1), np.uint8))
        yield ShownFrame([position], time_seconds, image if position < 6 else turned)


def test_a_stream_that_changes_size_keeps_the_centre_of_each_frame(files, tmp_path, monkeypatch):
    monkeypatch.setattr(PyAVReader, "frames_at", two_shapes)
    packed({"d": files["d"]}, tmp_path)
    shard, row = packed_videos(tmp_path)["d"]
    frames = read_frames(shard, row, np.arange(12))
    assert frames.shape[2:] == (48, 76)
    assert np.abs(centres(frames, 48).astype(int) - extracted(files["d"], SPEC.sampling, 48)[0]).mean() < 1.5


def test_shards_of_another_packing_are_not_touched(files, tmp_path):
    packed(files, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError, match="another packing"):
        packed(files, tmp_path, FrameSpec(sampling=SPEC.sampling, size=32))
    with pytest.raises(InputError, match="holds other videos"):
        packed(dict(reversed(files.items())), tmp_path)
    with pytest.raises(InputError, match="another packing"):
        packed({"b": files["b"]}, tmp_path)
    with pytest.raises(InputError, match="nothing is packed"):
        pack_frames(["a"], {}, tmp_path / "none", SPEC)
    assert contents(tmp_path) == before


def test_damaged_shards_are_named(files, tmp_path):
    packed(files, tmp_path)
    shard, row = packed_videos(tmp_path)["b"]
    data = bytearray(shard.read_bytes())
    data[row["frame_offsets"][3] : row["frame_offsets"][3] + 20] = bytes(20)
    shard.write_bytes(data)
    with pytest.raises(CacheError, match=r"frame 3 of b"):
        read_frames(shard, row, [3])
    shard.write_bytes(data[:-100])
    with pytest.raises(CacheError, match="bytes that its index states"):
        packed_videos(tmp_path)
    shard.with_suffix(".jsonl").unlink()
    with pytest.raises(CacheError, match="is no index"):
        packed_videos(tmp_path)
    with pytest.raises(MissingError, match="data pack"):
        packed_videos(tmp_path / "none")


def test_pixels_do_not_depend_on_the_number_of_threads(files, tmp_path):
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        packed({"d": files["d"]}, tmp_path / str(threads))
    torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
