"""`--plan`: what an extraction would take, from a few videos that are decoded and encoded; nothing is written."""

import json
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np

from pipeline.cluster import ExtractOptions, connected, nodes_for, suited_to_device
from pipeline.decoding import Job
from pipeline.extract import is_worth_a_try
from pipeline.ledger import Summary
from pipeline.supervisor import pool_size
from pipeline.workers import in_process_results
from unloc.cache.opening import home_for
from unloc.cache.reading import Cache
from unloc.cache.shards import last_failures
from unloc.cache.writing import CHUNK_ROWS, VideoTokens
from unloc.errors import CoverageError, VideoError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.facts import scan
from unloc.video.video_file import VideoFile, on_disk

SAMPLE_VIDEOS, SAMPLE_TEXTS, SAMPLE_SECONDS = 5, 32, 60.0
SCAN_SECONDS = 20.0  # for files whose duration is unknown: enough for hundreds of local files
RAY_SECONDS = 5.0  # to start a local Ray, measured
FILES_PER_SHARD, FILES_FOR_TEXTS, FILES_PER_CACHE = 4, 3, 6
TABLE = {  # what is printed of a forecast
    "videos": "{videos} to do, {cached_before} cached and {failed_before} failed before, {missing} without a file",
    "hours": "{hours_of_video:.2f} of video",
    "frames": "{frames} ({frames_per_second:.1f} a second with {workers} workers and {encoders} encoders)",
    "wall time": "{seconds_wall:,.0f} s, start-up included",
    "GPU hours": "{gpu_hours:.2f}",
    "disk": "{bytes:,} bytes in {files} files",
    "sample": "{sampled} videos, {sampled_frames} frames",
}


def forecast(
    cache_path: Path | str,
    config: EncodeConfig,
    options: ExtractOptions,
    files: dict[str, VideoFile],
    missing: Sequence[str],
    texts: Sequence[str],
    durations: dict[str, float],
) -> dict:
    """What the videos that are due would take here; `durations`: seconds where known. Raises CoverageError."""
    started = time.perf_counter()
    with connected(options) if options.uses_cluster else nullcontext():
        config, device = suited_to_device(config, options)
        nodes = nodes_for(options)
    encoder = Encoder(config, device)
    seconds_load = time.perf_counter() - started

    home = home_for(cache_path, encoder.fingerprint)
    home.pull()
    due, num_cached, known_texts, num_files = dict(files), 0, {}, FILES_PER_CACHE
    if (home.folder / "zarr.json").is_file():
        cache, num_files = Cache(home.folder), 0
        failed = last_failures(cache).items()
        given_up = {name for name, failure in failed if not is_worth_a_try(failure, files, config, options)}
        due = {name: file for name, file in files.items() if name not in cache and name not in given_up}
        num_cached, known_texts = sum(name in cache for name in files), cache.text_index
    new_texts = [text for text in dict.fromkeys(texts) if text not in known_texts]
    num_files += FILES_PER_SHARD * -(-len(due) // options.shard_size) + FILES_FOR_TEXTS * bool(new_texts)

    chosen = np.linspace(0, len(due) - 1, min(SAMPLE_VIDEOS, len(due))).astype(int)
    jobs = [Job(*list(due.items())[index]) for index in chosen]
    results = _within(SAMPLE_SECONDS, in_process_results(encoder, options.limits, jobs))
    sample = Summary()
    for result in results:
        sample.add(result)
    if due and not sample.cached_now:
        first = "{video_id}: {reason}: {message}".format(**sample.failures[0])
        raise CoverageError(f"--plan: none of {len(results)} sampled videos can be encoded (first: {first})")

    seconds = _seconds_of(due, durations)
    num_frames = sum(config.num_frames or max(1, math.ceil(value * config.fps - 1e-6)) for value in seconds)
    num_bytes = 0.0
    if videos := [result for result in results if isinstance(result, VideoTokens)]:
        row_bytes = sum(len(json.dumps(video.meta)) for video in videos) / len(videos)
        padding = 0 if config.num_frames else len(due) * CHUNK_ROWS // 2
        num_bytes += (num_frames + padding) * videos[0].tokens[0].nbytes + len(due) * row_bytes
    if new_texts:
        tokens = encoder.encode_texts(new_texts[:SAMPLE_TEXTS])
        num_bytes += sum(each.nbytes for each in tokens) * len(new_texts) / len(tokens)

    scale = num_frames / max(1, sample.frames)
    decode, encode = scale * (sample.seconds_decode + sample.seconds_preprocess), scale * sample.seconds_encode
    workers = encoders = 0
    if options.workers:
        workers, encoders = pool_size(nodes, options.workers, options.encoders, 1 << 30)
        seconds_load = RAY_SECONDS + 2 * seconds_load  # the driver loads the tower, then the workers
    busy = (decode + encode) / max(1, workers)
    if encoders or not workers:  # frames are encoded while others are decoded
        busy = max(decode / max(1, workers), encode / max(1, encoders))
    uses_gpu = options.encoders != 0 and any(node.gpus for node in nodes)
    return {
        "videos": len(due),
        "cached_before": num_cached,
        "failed_before": len(files) - num_cached - len(due),
        "missing": len(missing),
        "hours_of_video": sum(seconds) / 3600,
        "frames": num_frames,
        "frames_per_second": num_frames / busy if busy else 0.0,
        "seconds_wall": busy + seconds_load,
        "gpu_hours": encode / 3600 if uses_gpu else 0.0,
        "bytes": int(num_bytes),
        "files": num_files,
        "workers": workers,
        "encoders": encoders,
        "sampled": sample.cached_now,
        "sampled_frames": sample.frames,
        "failures": sample.failures,
    }


def _seconds_of(due: dict[str, VideoFile], durations: dict[str, float]) -> list[float]:
    """Durations of the videos: as stated, else measured, and their mean for those that there is no time to read."""

    def measured_seconds(file: VideoFile) -> float:
        with suppress(VideoError), on_disk(file) as path:
            return scan(path).end_seconds
        return 0.0  # it cannot be opened

    stated = {name: durations[name] for name in due if 0 < durations.get(name, math.nan) < math.inf}
    unknown = [file for name, file in due.items() if name not in stated]
    shuffled = np.random.default_rng(0).permutation(len(unknown)).tolist()
    measured = _within(SCAN_SECONDS, (measured_seconds(unknown[index]) for index in shuffled))
    return [*stated.values(), *measured, *[sum(measured) / max(1, len(measured))] * (len(unknown) - len(measured))]


def _within(seconds: float, items: Iterable) -> list:
    """The items that arrive within so many seconds, at least one."""
    found, started = [], time.perf_counter()
    for item in items:
        found.append(item)
        if time.perf_counter() - started > seconds:
            break
    return found
