"""`--plan` predicts what the job then takes, and writes nothing."""

import json

import pytest

from pipeline.extract import ExtractOptions, extract
from pipeline.forecast import forecast
from tests.conftest import write_manifest
from tests.pipeline.comparison import files_of
from tests.video.rendered import Kind, render
from unloc.annotations.schema import VideoRow
from unloc.cache.opening import home_for
from unloc.errors import CoverageError
from unloc.inference.encode import EncodeConfig, Encoder

CONFIG = EncodeConfig(fps=5.0)
OPTIONS = ExtractOptions(workers=0, shard_size=3)
TEXTS = ["a red square", "a man walks"]


def size_of(cache):
    files = [item for item in cache.rglob("*") if item.is_file()]
    return len(files), sum(item.stat().st_size for item in files)


def test_frames_files_and_bytes_are_as_predicted_and_nothing_is_written_before(video_folder, tmp_path):
    files = files_of(video_folder)
    plan = forecast(tmp_path / "cache", CONFIG, OPTIONS, files, ["gone"], TEXTS, {"v0": 1.5})
    assert not list(tmp_path.iterdir())
    counts = [plan[name] for name in ("videos", "cached_before", "missing", "sampled", "gpu_hours")]
    assert counts == [7, 0, 1, 5, 0.0]
    done = extract(tmp_path / "cache", CONFIG, OPTIONS, files, [], TEXTS)
    num_files, num_bytes = size_of(tmp_path / "cache")
    assert plan["frames"] == pytest.approx(done.frames, rel=0.1)
    assert plan["hours_of_video"] * 3600 == pytest.approx(16.8, rel=0.1)
    assert plan["files"] == pytest.approx(num_files, abs=2)
    assert plan["bytes"] == pytest.approx(num_bytes, rel=0.4)


def test_unknown_durations_are_read_from_the_files_whatever_their_bytes_say(video_folder, tmp_path):
    files = {f"still{n}": render(tmp_path / f"s{n}.mp4", Kind(".mp4", num_frames=250)) for n in range(5)}
    files |= {f"noise{n}": render(tmp_path / f"n{n}.mkv", Kind(".mkv", is_noisy=True)) for n in range(2)}
    files["late"] = render(tmp_path / "late.ts", Kind(".ts", first_stamp=10_000))
    plan = forecast(tmp_path / "cache", CONFIG, OPTIONS, files, [], [], {})
    assert plan["hours_of_video"] * 3600 == pytest.approx(5 * 10 + 3 * 3, rel=0.01)
    assert plan["frames"] == pytest.approx(5 * (5 * 10 + 3 * 3), abs=3)


def test_cached_videos_are_not_planned_in_the_given_cache_or_the_one_next_to_it(video_folder, tmp_path):
    files, cache = files_of(video_folder), tmp_path / "cache"
    some = dict(list(files.items())[:4])
    extract(cache, CONFIG, OPTIONS, some, [], TEXTS)
    plan = forecast(cache, CONFIG, OPTIONS, files, [], TEXTS, {})
    assert (plan["videos"], plan["cached_before"]) == (3, 4)
    other = EncodeConfig(num_frames=4)
    assert forecast(cache, other, OPTIONS, files, [], TEXTS, {})["frames"] == 28
    extract(cache, other, OPTIONS, some, [], TEXTS)
    assert (home_for(cache, Encoder(other).fingerprint).folder / "zarr.json").is_file()
    assert forecast(cache, other, OPTIONS, files, [], TEXTS, {})["frames"] == 12


def test_nothing_due_is_planned_as_nothing(video_folder, tmp_path):
    extract(tmp_path / "cache", CONFIG, OPTIONS, files_of(video_folder), [], TEXTS)
    plan = forecast(tmp_path / "cache", CONFIG, OPTIONS, files_of(video_folder), [], TEXTS, {})
    assert (plan["videos"], plan["frames"], plan["bytes"], plan["files"], plan["sampled"]) == (0, 0, 0, 0, 0)


def test_failed_videos_are_planned_only_where_the_job_would_try_them_again(video_folder, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 1000)
    lenient, files = ExtractOptions(workers=0), {"v0": video_folder / "v0.mp4", "broken": broken}
    extract(tmp_path / "cache", CONFIG, lenient, files, [], [])
    plan = forecast(tmp_path / "cache", CONFIG, lenient, files, [], [], {})
    assert (plan["videos"], plan["cached_before"], plan["failed_before"]) == (0, 1, 1)
    broken.write_bytes((video_folder / "v1.mp4").read_bytes())
    plan = forecast(tmp_path / "cache", CONFIG, lenient, files, [], [], {})
    assert (plan["videos"], plan["failed_before"]) == (1, 0)


def test_a_folder_of_broken_files_is_an_error(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 1000)
    with pytest.raises(CoverageError, match=r"--plan.*broken: unreadable"):
        forecast(tmp_path / "cache", CONFIG, OPTIONS, {"broken": broken}, [], TEXTS, {})


def test_the_command_prints_a_table_or_json(unloc, video_folder, tmp_path):
    manifest = write_manifest(tmp_path / "m.jsonl", *(VideoRow(f"v{n}", "test", 1.5) for n in range(3)))
    words = ["extract", manifest, "--videos", video_folder, "--cache", tmp_path / "c", "--workers", "0"]
    code, table, _ = unloc(*words, "--plan")
    assert code == 0 and "9 (" in table and "3 to do" in table
    _, planned, _ = unloc(*words, "--json", "--plan")
    assert json.loads(planned)["frames"] == 9 and not (tmp_path / "c").exists()
    _, done, _ = unloc(*words, "--json")
    summary = json.loads(done)
    assert (summary["cached_now"], summary["frames"], summary["reasons"]) == (3, 12, {})
    assert summary == json.loads((tmp_path / "c" / "summary.json").read_text())
    stages = ("decode", "preprocess", "encode", "write", "waiting", "start_up", "wall")
    assert all(f"seconds_{stage}" in summary for stage in stages)
