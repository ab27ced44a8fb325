"""`--plan` foretells what the job then takes, and writes nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.extract import ExtractOptions, extract
from pipeline.forecast import forecast
from tests.video.rendered import Kind, render
from unloc.cache.opening import home_for
from unloc.errors import CoverageError
from unloc.inference.encode import EncodeConfig, Encoder

CONFIG = EncodeConfig(fps=5.0)
OPTIONS = ExtractOptions(workers=0, shard_size=3)
TEXTS = ["a red square", "a man walks"]
ROOT = Path(__file__).resolve().parents[2]


def files_of(folder):
    return {path.stem: path for path in sorted(folder.glob("*.mp4"))}


def size_of(cache):
    files = [item for item in cache.rglob("*") if item.is_file()]
    return len(files), sum(item.stat().st_size for item in files)


def test_frames_files_and_bytes_come_out_as_foretold_and_nothing_is_written_before(video_folder, tmp_path):
    files = files_of(video_folder)
    told = forecast(tmp_path / "cache", CONFIG, OPTIONS, files, ["gone"], TEXTS, {"v0": 1.5})
    assert not list(tmp_path.iterdir())
    assert (told.videos, told.cached_before, told.missing, told.sampled, told.gpu_hours) == (7, 0, 1, 5, 0.0)
    done = extract(tmp_path / "cache", CONFIG, OPTIONS, files, [], TEXTS)
    num_files, num_bytes = size_of(tmp_path / "cache")
    assert told.frames == pytest.approx(done.frames, rel=0.1)
    assert told.hours_of_video * 3600 == pytest.approx(16.8, rel=0.1)
    assert told.files == pytest.approx(num_files, abs=2)
    assert told.bytes == pytest.approx(num_bytes, rel=0.4)


def test_unknown_durations_are_read_from_the_files_whatever_their_bytes_say(video_folder, tmp_path):
    files = {f"still{n}": render(tmp_path / f"s{n}.mp4", Kind(".mp4", num_frames=250)) for n in range(5)}
    files |= {f"noise{n}": render(tmp_path / f"n{n}.mkv", Kind(".mkv", is_noisy=True)) for n in range(2)}
    files["late"] = render(tmp_path / "late.ts", Kind(".ts", first_stamp=10_000))
    told = forecast(tmp_path / "cache", CONFIG, OPTIONS, files, [], [], {})
    assert told.hours_of_video * 3600 == pytest.approx(5 * 10 + 3 * 3, rel=0.01)
    assert told.frames == pytest.approx(5 * (5 * 10 + 3 * 3), abs=3)


def test_what_is_cached_is_not_planned_in_the_cache_asked_for_or_in_the_one_beside_it(video_folder, tmp_path):
    files, cache = files_of(video_folder), tmp_path / "cache"
    some = dict(list(files.items())[:4])
    extract(cache, CONFIG, OPTIONS, some, [], TEXTS)
    told = forecast(cache, CONFIG, OPTIONS, files, [], TEXTS, {})
    assert (told.videos, told.cached_before) == (3, 4)
    other = EncodeConfig(num_frames=4)
    assert forecast(cache, other, OPTIONS, files, [], TEXTS, {}).frames == 28
    extract(cache, other, OPTIONS, some, [], TEXTS)
    assert (home_for(cache, Encoder(other).fingerprint).folder / "zarr.json").is_file()
    assert forecast(cache, other, OPTIONS, files, [], TEXTS, {}).frames == 12


def test_nothing_due_is_planned_as_nothing(video_folder, tmp_path):
    extract(tmp_path / "cache", CONFIG, OPTIONS, files_of(video_folder), [], TEXTS)
    told = forecast(tmp_path / "cache", CONFIG, OPTIONS, files_of(video_folder), [], TEXTS, {})
    assert (told.videos, told.frames, told.bytes, told.files, told.sampled) == (0, 0, 0, 0, 0)


def test_what_failed_before_is_planned_only_where_the_job_would_try_it_again(video_folder, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 1000)
    lenient, files = ExtractOptions(workers=0, coverage=0.0), {"v0": video_folder / "v0.mp4", "broken": broken}
    extract(tmp_path / "cache", CONFIG, lenient, files, [], [])
    told = forecast(tmp_path / "cache", CONFIG, lenient, files, [], [], {})
    assert (told.videos, told.cached_before, told.failed_before) == (0, 1, 1)
    broken.write_bytes((video_folder / "v1.mp4").read_bytes())
    told = forecast(tmp_path / "cache", CONFIG, lenient, files, [], [], {})
    assert (told.videos, told.failed_before) == (1, 0)


def test_a_folder_of_broken_files_is_said_before_anything_starts(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 1000)
    with pytest.raises(CoverageError, match=r"--plan: none of 1 sampled videos .*broken: unreadable"):
        forecast(tmp_path / "cache", CONFIG, OPTIONS, {"broken": broken}, [], TEXTS, {})


def test_the_command_prints_a_table_or_json(video_folder, tmp_path):
    rows = [{"kind": "manifest", "version": 1, "name": "m", "tasks": ["mr"]}]
    rows += [{"kind": "video", "video_id": f"v{n}", "split": "test", "duration_seconds": 1.5} for n in range(3)]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)) + "\n")
    command = [sys.executable, "-m", "unloc", "extract", manifest, "--videos", video_folder, "--cache", tmp_path / "c"]
    command += ["--workers", "0", "--json"]
    planned = subprocess.run([*command, "--plan"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(planned.stdout)["frames"] == 9 and not (tmp_path / "c").exists()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    summary = json.loads(done.stdout)
    assert (summary["cached_now"], summary["frames"], summary["reasons"]) == (3, 12, {})
    assert summary == json.loads((tmp_path / "c" / "summary.json").read_text())
    stages = ("decode", "preprocess", "encode", "write", "waiting", "start_up", "wall")
    assert all(f"seconds_{stage}" in summary for stage in stages)
