"""`--plan`: what an extraction would take, from a few videos that are decoded and encoded; nothing is written."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np
import torch

from pipeline.cluster import connected, local_cpus, suited_to_device
from pipeline.decode_child import Job
from pipeline.extract import ExtractOptions, is_worth_a_try
from pipeline.ray_actors import Node, live_nodes
from pipeline.supervisor import pool_size
from pipeline.workers import in_process_results
from unloc.cache.opening import home_for
from unloc.cache.reading import Cache
from unloc.cache.shards import failures_of
from unloc.cache.writing import CHUNK_ROWS, VideoTokens
from unloc.errors import CoverageError, VideoError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.facts import best_stream, open_container, start_seconds
from unloc.video.video_file import VideoFile, on_disk

SAMPLE_VIDEOS, SAMPLE_TEXTS, SAMPLE_SECONDS = 5, 32, 60.0
PROBE_SECONDS = 20.0  # for headers of files whose duration is unknown: enough for thousands of local files
RAY_SECONDS = 5.0  # to start a local Ray, measured
FILES_PER_SHARD, FILES_FOR_TEXTS, FILES_PER_CACHE = 4, 3, 6
MANY = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the videos that are not cached yet would take, at the speed of this machine as it is now."""

    videos: int
    cached_before: int
    failed_before: int
    missing: int
    hours_of_video: float
    frames: int
    frames_per_second: float
    seconds_wall: float
    gpu_hours: float
    bytes: int
    files: int
    workers: int
    encoders: int
    sampled: int
    sampled_frames: int
    failures: list[dict]

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """A table of (name, text) for people."""
        before = f"{self.cached_before} cached before, {self.failed_before} failed before (not tried again)"
        pool = f"{self.workers} workers" + (f", {self.encoders} encoders" if self.encoders else "")
        return [
            ("videos", f"{self.videos} to do, {before}, {self.missing} without a file"),
            ("hours", f"{self.hours_of_video:.2f} of video"),
            ("frames", f"{self.frames} ({self.frames_per_second:.1f} a second with {pool})"),
            ("wall time", f"{self.seconds_wall / 3600:.2f} h ({self.seconds_wall:.0f} s, start-up included)"),
            ("GPU hours", f"{self.gpu_hours:.2f}"),
            ("disk", f"{self.bytes / 1e6:.1f} MB in {self.files} files"),
            ("sample", f"{self.sampled} videos, {self.sampled_frames} frames; {len(self.failures)} failed"),
        ]


def forecast(
    cache_path: Path | str,
    config: EncodeConfig,
    options: ExtractOptions,
    files: dict[str, VideoFile],
    missing: Sequence[str],
    texts: Sequence[str],
    durations: dict[str, float],
) -> Forecast:
    """From a sample of the videos that are due. `durations` are seconds of video where known.

    Raises CoverageError where none of the sampled videos can be encoded.
    """
    started = time.perf_counter()
    with connected(options.address, options.workers, options.encoders) if options.uses_cluster else nullcontext():
        config, device = suited_to_device(config, options.encoders, on_cluster=options.uses_cluster)
        cpus, gpus = local_cpus(options.workers, options.encoders), torch.cuda.device_count()
        nodes = live_nodes() if options.uses_cluster else [Node("", "", cpus, gpus)]
    workers, encoders = pool_size(nodes, options.workers, options.encoders, MANY) if options.workers else (0, 0)
    encoder = Encoder(config, device)
    seconds_load = time.perf_counter() - started

    home = home_for(cache_path, encoder.fingerprint)
    home.pull()
    cache = Cache(home.folder) if (home.folder / "zarr.json").is_file() else None
    cached = set() if cache is None else {video_id for video_id in files if video_id in cache}
    failed = {} if cache is None else failures_of(cache)
    due = {
        video_id: file
        for video_id, file in files.items()
        if video_id not in cached
        and (video_id not in failed or is_worth_a_try(failed[video_id], file, config, options))
    }
    new_texts = [text for text in dict.fromkeys(texts) if cache is None or text not in cache.text_index]

    sample, failures = _sample(encoder, options, due)
    sampled_frames = sum(len(video.tokens) for video in sample)
    seconds = _video_seconds(due, durations)
    frames = sum(config.num_frames or max(1, math.ceil(value * config.fps - 1e-6)) for value in seconds)

    seconds_of = {
        stage: frames * sum(video.meta[f"seconds_{stage}"] for video in sample) / max(1, sampled_frames)
        for stage in ("decode", "preprocess", "encode")
    }
    decode, encode = seconds_of["decode"] + seconds_of["preprocess"], seconds_of["encode"]
    if workers == 0:
        busy = max(decode, encode)
    elif encoders:
        busy = max(decode / workers, encode / encoders)
    else:
        busy = (decode + encode) / workers

    num_files = FILES_PER_SHARD * -(-len(due) // options.shard_size) + FILES_FOR_TEXTS * bool(new_texts)

    return Forecast(
        videos=len(due),
        cached_before=len(cached),
        failed_before=len(files) - len(cached) - len(due),
        missing=len(missing),
        hours_of_video=sum(seconds) / 3600,
        frames=frames,
        frames_per_second=frames / busy if busy else 0.0,
        seconds_wall=busy + seconds_load + (RAY_SECONDS + seconds_load if workers else 0.0),
        gpu_hours=encode / 3600 if options.encoders != 0 and any(node.gpus for node in nodes) else 0.0,
        bytes=_num_bytes(encoder, sample, len(due), frames, new_texts),
        files=num_files + (FILES_PER_CACHE if cache is None else 0),
        workers=workers,
        encoders=encoders,
        sampled=len(sample),
        sampled_frames=sampled_frames,
        failures=failures,
    )


def _num_bytes(encoder: Encoder, sample: list[VideoTokens], num_videos: int, frames: int, texts: list[str]) -> int:
    """Of tokens and tables on disk."""
    num_bytes = 0
    if sample:
        row_bytes = sum(len(json.dumps(video.meta)) for video in sample) / len(sample)
        padding = 0 if encoder.config.num_frames else num_videos * CHUNK_ROWS // 2
        num_bytes = int((frames + padding) * sample[0].tokens[0].nbytes + num_videos * row_bytes)
    if texts:
        tokens = encoder.encode_texts(texts[:SAMPLE_TEXTS])
        num_bytes += sum(each.nbytes for each in tokens) * len(texts) // len(tokens)
    return num_bytes


def _sample(
    encoder: Encoder, options: ExtractOptions, due: dict[str, VideoFile]
) -> tuple[list[VideoTokens], list[dict]]:
    """Videos evenly over those that are due, as many as a minute allows, and the failures among them."""
    count = min(SAMPLE_VIDEOS, len(due))
    jobs = [Job(*list(due.items())[int((number + 0.5) / count * len(due))]) for number in range(count)]
    videos, failures, started = [], [], time.perf_counter()
    for result in in_process_results(encoder, options.limits, jobs):
        if isinstance(result, VideoTokens):
            videos.append(result)
        else:
            failures.append(result.to_row())
        if time.perf_counter() - started > SAMPLE_SECONDS:
            break
    if due and not videos:
        first = failures[0]
        raise CoverageError(
            f"--plan: none of {len(failures)} sampled videos can be encoded (first: {first['video_id']}: "
            f"{first['reason']}: {first['message']})"
        )
    return videos, failures


def _video_seconds(due: dict[str, VideoFile], durations: dict[str, float]) -> list[float]:
    """Seconds of each video: as stated, else from its header; where there is no time to read that, the mean."""
    stated = [durations[video_id] for video_id in due if 0 < durations.get(video_id, math.nan) < math.inf]
    unknown = [file for video_id, file in due.items() if not 0 < durations.get(video_id, math.nan) < math.inf]
    probed, started = [], time.perf_counter()
    for index in np.random.default_rng(0).permutation(len(unknown)).tolist():
        probed.append(_header_seconds(unknown[index]))
        if time.perf_counter() - started > PROBE_SECONDS:
            break
    mean = sum(probed) / max(1, len(probed))
    return stated + probed + [mean] * (len(unknown) - len(probed))


def _header_seconds(file: VideoFile) -> float:
    """Duration of the best video stream as the container states it; 0 for a file that cannot be opened."""
    try:
        with on_disk(file) as path, open_container(path) as container:
            stream = best_stream(container, path)
            if stream.duration is None:
                return (container.duration or 0) / av.time_base
            offset = float((stream.start_time or 0) * stream.time_base) - start_seconds(container)
            return offset + float(stream.duration * stream.time_base)
    except VideoError:
        return 0.0
