"""`--plan`: what an extraction would take, from a few videos that are decoded and encoded; nothing is written."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import numpy as np

from pipeline.cluster import ExtractOptions, connected, nodes_for, suited_to_device
from pipeline.decoding import Job
from pipeline.extract import is_worth_a_try
from pipeline.supervisor import pool_size
from pipeline.workers import in_process_results
from unloc.cache.opening import home_for
from unloc.cache.reading import Cache
from unloc.cache.shards import Failure, failures_of
from unloc.cache.writing import CHUNK_ROWS, VideoTokens
from unloc.errors import CoverageError, VideoError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.facts import open_stream
from unloc.video.video_file import VideoFile, on_disk

SAMPLE_VIDEOS, SAMPLE_TEXTS, SAMPLE_SECONDS = 5, 32, 60.0
PROBE_SECONDS = 20.0  # for headers of files whose duration is unknown: enough for thousands of local files
RAY_SECONDS = 5.0  # to start a local Ray, measured
FILES_PER_SHARD, FILES_FOR_TEXTS, FILES_PER_CACHE = 4, 3, 6


@dataclass(kw_only=True)
class Forecast:
    """What the videos that are not cached yet would take, at the speed of this machine as it is now."""

    videos: int
    cached_before: int
    failed_before: int
    missing: int
    hours_of_video: float = 0.0
    frames: int = 0
    frames_per_second: float = 0.0
    seconds_wall: float = 0.0
    gpu_hours: float = 0.0
    bytes: int = 0
    files: int = 0
    workers: int = 0
    encoders: int = 0
    sampled: int = 0
    sampled_frames: int = 0
    failures: list[dict] = field(default_factory=list)

    to_dict = asdict

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
    with connected(options) if options.uses_cluster else nullcontext():
        config, device = suited_to_device(config, options)
        nodes = nodes_for(options)
    encoder = Encoder(config, device)
    seconds_load = time.perf_counter() - started

    home = home_for(cache_path, encoder.fingerprint)
    home.pull()
    cached, given_up, known_texts, num_files = set(), set(), {}, FILES_PER_CACHE
    if (home.folder / "zarr.json").is_file():
        cache = Cache(home.folder)
        cached, known_texts, num_files = {video_id for video_id in files if video_id in cache}, cache.text_index, 0
        failed = failures_of(cache).items()
        given_up = {name for name, failure in failed if not is_worth_a_try(failure, files, config, options)}
    due = {name: file for name, file in files.items() if name not in cached and name not in given_up}
    new_texts = [text for text in dict.fromkeys(texts) if text not in known_texts]
    num_files += FILES_PER_SHARD * -(-len(due) // options.shard_size) + FILES_FOR_TEXTS * bool(new_texts)
    num_failed = len(files) - len(cached) - len(due)
    plan = Forecast(videos=len(due), cached_before=len(cached), failed_before=num_failed, missing=len(missing))
    plan.files = num_files

    count = min(SAMPLE_VIDEOS, len(due))  # evenly over those that are due
    jobs = [Job(*list(due.items())[int((number + 0.5) / count * len(due))]) for number in range(count)]
    results = _within(SAMPLE_SECONDS, in_process_results(encoder, options.limits, jobs))
    sample = [result for result in results if isinstance(result, VideoTokens)]
    plan.sampled, plan.sampled_frames = len(sample), sum(len(video.tokens) for video in sample)
    plan.failures = [result.to_row() for result in results if isinstance(result, Failure)]
    if due and not sample:
        first = "{video_id}: {reason}: {message}".format(**plan.failures[0])
        raise CoverageError(f"--plan: none of {len(results)} sampled videos can be encoded (first: {first})")

    stated = {name: durations[name] for name in due if 0 < durations.get(name, math.nan) < math.inf}
    unknown = [file for name, file in due.items() if name not in stated]
    shuffled = np.random.default_rng(0).permutation(len(unknown)).tolist()
    probed = _within(PROBE_SECONDS, (_header_seconds(unknown[index]) for index in shuffled))
    mean = sum(probed) / max(1, len(probed))  # for those that there is no time to open
    seconds = [*stated.values(), *probed, *[mean] * (len(unknown) - len(probed))]
    plan.hours_of_video = sum(seconds) / 3600
    plan.frames = sum(config.num_frames or max(1, math.ceil(value * config.fps - 1e-6)) for value in seconds)
    if sample:
        row_bytes = sum(len(json.dumps(video.meta)) for video in sample) / len(sample)
        padding = 0 if config.num_frames else len(due) * CHUNK_ROWS // 2
        plan.bytes = int((plan.frames + padding) * sample[0].tokens[0].nbytes + len(due) * row_bytes)
    if new_texts:
        tokens = encoder.encode_texts(new_texts[:SAMPLE_TEXTS])
        plan.bytes += sum(each.nbytes for each in tokens) * len(new_texts) // len(tokens)

    decode, preprocess, encode = (
        plan.frames * sum(video.meta[f"seconds_{stage}"] for video in sample) / max(1, plan.sampled_frames)
        for stage in ("decode", "preprocess", "encode")
    )
    if options.workers:
        plan.workers, plan.encoders = pool_size(nodes, options.workers, options.encoders, 1 << 30)
        seconds_load *= 2  # the driver, then the workers
        plan.seconds_wall = RAY_SECONDS
    if plan.encoders or not plan.workers:
        busy = max((decode + preprocess) / max(1, plan.workers), encode / max(1, plan.encoders))
    else:
        busy = (decode + preprocess + encode) / plan.workers
    plan.frames_per_second = plan.frames / busy if busy else 0.0
    plan.seconds_wall += busy + seconds_load
    plan.gpu_hours = encode / 3600 if options.encoders != 0 and any(node.gpus for node in nodes) else 0.0
    return plan


def _within(seconds: float, items: Iterable) -> list:
    """The items that come within these seconds, and at least one."""
    found, started = [], time.perf_counter()
    for item in items:
        found.append(item)
        if time.perf_counter() - started > seconds:
            break
    return found


def _header_seconds(file: VideoFile) -> float:
    """Duration of the best video stream as the container states it; 0 for a file that cannot be opened."""
    try:
        with on_disk(file) as path, open_stream(path) as (container, stream, clock_start):
            if stream.duration is None:
                return (container.duration or 0) / av.time_base
            offset = float((stream.start_time or 0) * stream.time_base) - clock_start
            return offset + float(stream.duration * stream.time_base)
    except VideoError:
        return 0.0
