"""Decoders apart from an encoder: the same bytes, and no death of a part loses a video."""

import os
import signal
from pathlib import Path

import pytest
import ray

from pipeline.decode_child import Job
from pipeline.decoding import Limits
from pipeline.extract import ExtractOptions, extract
from pipeline.split_workers import RemoteDecoders
from pipeline.workers import Assembler, encode_jobs
from unloc.data.cache import open_cache
from unloc.inference.encode import EncodeConfig, Encoder

CONFIG = EncodeConfig(fps=5.0)


def jobs_of(folder: Path) -> list[Job]:
    return [Job(path.stem, path) for path in sorted(folder.glob("*.mp4"))]


@pytest.fixture(scope="module")
def clean(tmp_path_factory, video_folder):
    cache = tmp_path_factory.mktemp("clean") / "cache"
    extract(cache, CONFIG, ExtractOptions(workers=0), {job.video_id: job.path for job in jobs_of(video_folder)}, [], [])
    return cache


def check_equal(clean: Path, results: dict) -> None:
    cache = open_cache(clean)
    assert results.keys() == cache.rows.keys()
    for video_id, result in results.items():
        assert result.meta["tokens_sha256"] == cache.rows[video_id]["tokens_sha256"]


def test_an_encoder_with_decoders_beside_it_writes_the_bytes_of_one_process(clean, video_folder, one_ray, tmp_path):
    files = {job.video_id: job.path for job in jobs_of(video_folder)}
    done = extract(tmp_path / "cache", CONFIG, ExtractOptions(workers=2, encoders=1), files, [], [])
    assert done.cached_now == 7 and done.seconds_start_up > 0
    for file in clean.glob("shards/*/frames/c/**/*"):
        if file.is_file():
            assert file.read_bytes() == (tmp_path / "cache" / file.relative_to(clean)).read_bytes()


def test_a_decode_worker_that_is_killed_costs_no_video(clean, video_folder, one_ray):
    encoder, jobs = Encoder(CONFIG), jobs_of(video_folder)
    decoders = RemoteDecoders(encoder.read_spec, Limits(), 1)
    victim = ray.get(decoders._idle[0].__ray_call__.remote(lambda worker: os.getpid()))
    results = {}
    for result in encode_jobs(Assembler(encoder), decoders, jobs):
        if not results:
            os.kill(victim, signal.SIGKILL)
        assert result.meta["video_id"] not in results, "done twice"
        results[result.meta["video_id"]] = result
    check_equal(clean, results)


def test_a_broken_video_and_one_over_its_time_are_failures_with_their_reason(video_folder, one_ray, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 1000)
    encoder = Encoder(CONFIG)
    decoders = RemoteDecoders(encoder.read_spec, Limits(), 1)
    jobs = [Job("broken", broken), *jobs_of(video_folder)[:1]]
    results = list(encode_jobs(Assembler(encoder), decoders, jobs))
    assert [getattr(result, "reason", "cached") for result in results] == ["unreadable", "cached"]
