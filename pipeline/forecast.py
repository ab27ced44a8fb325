"""`--plan`: what an extraction would take, from a few videos that are decoded and encoded; nothing is written."""

import json
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import numpy as np

from pipeline.claim import beside
from pipeline.cluster import connected, local_accelerators, own_cpus, suited_to_device
from pipeline.decode_child import Job
from pipeline.extract import ExtractOptions, is_worth_a_try
from pipeline.ledger import failures_of
from pipeline.ray_actors import live_nodes
from pipeline.supervisor import Node, wanted_staff
from pipeline.workers import in_process_results
from unloc.cache.mirror import Home
from unloc.cache.reading import Cache, open_cache
from unloc.cache.remote import home_of
from unloc.cache.writing import CHUNK_ROWS, VideoTokens, fingerprint_differences
from unloc.errors import CoverageError, VideoError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.facts import best_stream, open_container, start_seconds
from unloc.video.tar_shards import VideoFile, on_disk

SAMPLE_VIDEOS, SAMPLE_TEXTS, SAMPLE_SECONDS = 5, 32, 60.0
PROBE_SECONDS = 20.0  # for the headers of files whose duration is unknown; thousands of local files
RAY_SECONDS = 5.0  # measured start of a local Ray
FILES_OF_SHARD, FILES_OF_TEXTS, FILES_OF_CACHE = 4, 3, 6
MANY = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of what is not cached yet. Seconds are those of this machine in its present state."""

    videos: int
    cached_before: int
    failed_before: int
    """Failed before and would not be tried again."""
    missing: int
    hours_of_video: float
    """Durations from the manifest; where it states none, from the headers of the files."""
    frames: int
    frames_per_second: float
    seconds_wall: float
    gpu_hours: float
    """0 where the encoders have no GPU."""
    bytes: int
    files: int
    workers: int
    encoders: int
    sampled: int
    sampled_frames: int
    failures: list[dict] = field(default_factory=list)
    """Of the sample."""

    def to_dict(self) -> dict:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """A table of (name, words) for people."""
        who = f"{self.workers} workers" + (f", {self.encoders} encoders" if self.encoders else "")
        return [
            ("videos", f"{self.videos} to do, {self.cached_before} cached before, {self._told_failed()}"),
            ("hours", f"{self.hours_of_video:.2f} of video"),
            ("frames", f"{self.frames} ({self.frames_per_second:.1f} a second with {who})"),
            ("wall time", f"{self.seconds_wall / 3600:.2f} h ({self.seconds_wall:.0f} s, start-up included)"),
            ("GPU hours", f"{self.gpu_hours:.2f}"),
            ("disk", f"{self.bytes / 1e6:.1f} MB in {self.files} files"),
            ("sample", f"{self.sampled} videos, {self.sampled_frames} frames; {len(self.failures)} failed"),
        ]

    def _told_failed(self) -> str:
        return f"{self.failed_before} failed before (not tried again), {self.missing} without a file"


def forecast(
    cache_path: Path | str,
    config: EncodeConfig,
    options: ExtractOptions,
    files: dict[str, VideoFile],
    missing: Sequence[str],
    texts: Sequence[str],
    durations: dict[str, float],
) -> Forecast:
    """Try a sample of what is due. `durations` are seconds of video where known.

    Raises CoverageError where none of the sampled videos decodes.
    """
    started = time.perf_counter()
    with connected(options.address, options.workers, options.encoders) if options.address else nullcontext():
        workers, encoders, has_gpu = _sizes(options)
        config, device = suited_to_device(config, options.encoders, on_cluster=options.address is not None)
    encoder = Encoder(config, device)
    seconds_load = time.perf_counter() - started
    cache = _cache_there(home_of(cache_path), encoder.fingerprint)
    uncached = {video_id: path for video_id, path in files.items() if cache is None or video_id not in cache}
    due = _without_settled_failures(uncached, cache, config, options)
    new_texts = [text for text in dict.fromkeys(texts) if cache is None or not cache.has_text(text)]
    sample, failures = _sample(encoder, options, due)
    seconds = _total_seconds(due, durations)
    frames = _num_frames(config, due, seconds)
    decode, encode = (
        _seconds_per_frame(sample, *stages) * frames for stages in (("decode", "preprocess"), ("encode",))
    )
    busy = _wall_seconds(decode, encode, workers, encoders)
    return Forecast(
        videos=len(due),
        cached_before=len(files) - len(uncached),
        failed_before=len(uncached) - len(due),
        missing=len(missing),
        hours_of_video=sum(seconds.values()) / 3600,
        frames=frames,
        frames_per_second=frames / busy if busy else 0.0,
        seconds_wall=busy + seconds_load + (RAY_SECONDS + seconds_load if workers else 0.0),
        gpu_hours=encode / 3600 if has_gpu else 0.0,
        bytes=_video_bytes(config, sample, len(due), frames) + _text_bytes(encoder, new_texts),
        files=_num_files(cache, len(due), options.shard_size, bool(new_texts)),
        workers=workers,
        encoders=encoders,
        sampled=len(sample),
        sampled_frames=sum(len(video.tokens) for video in sample),
        failures=failures,
    )


def _without_settled_failures(
    files: dict[str, VideoFile], cache: Cache | None, config: EncodeConfig, options: ExtractOptions
) -> dict[str, VideoFile]:
    """The files without those that failed before and that the job would not try again."""
    failed = {} if cache is None else failures_of(cache)
    return {
        video_id: file
        for video_id, file in files.items()
        if video_id not in failed or is_worth_a_try(failed[video_id], file, config, options)
    }


def _num_files(cache: Cache | None, num_videos: int, shard_size: int, has_new_texts: bool) -> int:
    """Files that are not there yet."""
    of_cache = FILES_OF_CACHE if cache is None else 0
    return of_cache + FILES_OF_SHARD * -(-num_videos // shard_size) + FILES_OF_TEXTS * has_new_texts


def _sizes(options: ExtractOptions) -> tuple[int, int, bool]:
    """Workers, encoders apart from them, and whether these have GPUs."""
    if options.workers == 0:
        return 0, 0, options.encoders != 0 and local_accelerators() > 0
    if options.address is None:
        nodes = [Node("", "", own_cpus(options.workers, options.encoders), local_accelerators())]
    else:
        nodes = live_nodes()
    staff = wanted_staff(nodes, options.workers, options.encoders, MANY)
    return staff.takers, staff.encoders, staff.encoders > 0 and any(node.gpus for node in nodes)


def _cache_there(home: Home, fingerprint: dict) -> Cache | None:
    stated = json.loads(json.dumps(fingerprint))
    for candidate in (home, beside(home, fingerprint)):
        candidate.pull()
        if (candidate.folder / "zarr.json").is_file():
            cache = open_cache(candidate.folder)
            if not fingerprint_differences(cache.fingerprint, stated, names=("cache", "now")):
                return cache
    return None


def _sample(
    encoder: Encoder, options: ExtractOptions, due: dict[str, VideoFile]
) -> tuple[list[VideoTokens], list[dict]]:
    """Videos evenly over those that are due, as many as a minute allows, and the failures among them."""
    jobs = [Job(video_id, path) for video_id, path in due.items()]
    middles = (np.arange(min(SAMPLE_VIDEOS, len(jobs))) + 0.5) / min(SAMPLE_VIDEOS, max(1, len(jobs)))
    jobs, videos, failures = [jobs[int(middle * len(jobs))] for middle in middles], [], []
    started = time.perf_counter()
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


def _total_seconds(due: dict[str, VideoFile], durations: dict[str, float]) -> dict[str, float]:
    """Seconds of each video: stated, else by its header; of those for which there is no time, by their bytes."""
    seconds = {video_id: durations[video_id] for video_id in due if 0 < durations.get(video_id, math.nan) < math.inf}
    unknown, probed, started = [video_id for video_id in due if video_id not in seconds], {}, time.perf_counter()
    for number in np.random.default_rng(0).permutation(len(unknown)).tolist():
        probed[unknown[number]] = header_seconds(due[unknown[number]])
        if time.perf_counter() - started > PROBE_SECONDS:
            break
    per_byte = sum(probed.values()) / max(1, sum(due[video_id].stat().st_size for video_id in probed))
    rest = {video_id: due[video_id].stat().st_size * per_byte for video_id in unknown if video_id not in probed}
    return seconds | probed | rest


def header_seconds(file: VideoFile) -> float:
    """How long the container says that its best video stream is; 0 for a file that cannot be opened."""
    try:
        with on_disk(file) as path, open_container(path) as container:
            stream = best_stream(container, path)
            if stream.duration is None:
                return (container.duration or 0) / av.time_base
            offset = float((stream.start_time or 0) * stream.time_base) - start_seconds(container)
            return offset + float(stream.duration * stream.time_base)
    except VideoError:
        return 0.0


def _num_frames(config: EncodeConfig, due: dict[str, VideoFile], seconds: dict[str, float]) -> int:
    if config.num_frames is not None:
        return len(due) * config.num_frames
    return sum(max(1, math.ceil(value * config.fps - 1e-6)) for value in seconds.values())


def _seconds_per_frame(sample: list[VideoTokens], *stages: str) -> float:
    frames = sum(len(video.tokens) for video in sample)
    return sum(video.meta[f"seconds_{stage}"] for video in sample for stage in stages) / max(1, frames)


def _wall_seconds(decode: float, encode: float, workers: int, encoders: int) -> float:
    """Without start-up: stages that run in processes of their own overlap, those that share cores add up."""
    if workers == 0:
        return max(decode, encode)
    if encoders:
        return max(decode / workers, encode / encoders)
    return (decode + encode) / workers


def _video_bytes(config: EncodeConfig, sample: list[VideoTokens], num_videos: int, frames: int) -> int:
    if not sample:
        return 0
    token_bytes = sample[0].tokens[0].nbytes
    row_bytes = sum(len(json.dumps(video.meta)) for video in sample) / len(sample)
    padding = 0 if config.num_frames else num_videos * CHUNK_ROWS // 2
    return int((frames + padding) * token_bytes + num_videos * row_bytes)


def _text_bytes(encoder: Encoder, texts: list[str]) -> int:
    sample = encoder.encode_texts(texts[:SAMPLE_TEXTS])
    return sum(tokens.nbytes for tokens in sample) * len(texts) // max(1, len(sample))
