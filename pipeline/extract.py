"""The extraction job: which videos are due, and their results into the shards of a cache."""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from ray.util.metrics import Counter

from pipeline.cluster import ExtractOptions, RayActors, connected, suited_to_device
from pipeline.decoding import MACHINE, Job
from pipeline.ledger import MISSING, UNCHANGED, Ledger, Summary, ledger_row
from pipeline.supervisor import Supervisor
from pipeline.workers import in_process_results
from unloc.cache.metadata import read_checked, write_checked
from unloc.cache.opening import Home, home_for, open_for_writing
from unloc.cache.reading import Cache
from unloc.cache.shards import Failure, Result, ShardWriter, last_failures
from unloc.cache.writing import VideoTokens, write_projections, write_texts
from unloc.errors import CacheError, InputError
from unloc.files import disk_full_errors, file_identity, write_file
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.video_file import VideoFile, file_hash

logger = logging.getLogger(__name__)
TEXTS_AT_ONCE = 20_000
CHANGED = "changed"  # in `refresh`: every video whose file has changed
HELPED_BY_PARTIAL = ("truncated", "decode_error")  # reasons that --allow-partial may remove
Files = dict[str, VideoFile]  # by the id of the video
Progress = Callable[[int, int, int, int], None]
"""Called with the videos done, videos due, frames encoded and videos failed so far in this run."""


def extract(
    cache_path: Path | str,
    config: EncodeConfig,
    options: ExtractOptions,
    files: Files,
    missing: Sequence[str],
    texts: Sequence[str],
    on_progress: Progress = lambda *counts: None,
) -> Summary:
    """Bring every video and text into the cache; existing videos are skipped.

    `files` has the file of every video, in order; `missing` are those without one. If the cache was made with another
    tower or preprocessing, a new one is made next to it (`Summary.cache`). Raises CacheError where another process
    writes the cache, the disk is full or the bucket keeps failing, InputError where a video to refresh has no file.
    """
    started = time.perf_counter()
    if unknown := set(options.refresh) - files.keys() - {CHANGED}:
        raise InputError(f"--refresh {sorted(unknown)[0]}: the manifest has no such video, or it has no file")
    summary = Summary(videos=len(files) + len(missing), missing=len(missing))
    with disk_full_errors(cache_path), connected(options) if options.uses_cluster else nullcontext():
        encoder = Encoder(*suited_to_device(config, options))
        home = home_for(cache_path, encoder.fingerprint)
        path, summary.cache = home.folder, str(home)
        packages = ("unloc", "torch", "torchvision", "open_clip_torch", "zarr", "decord", "av", "numpy")
        with open_for_writing(home, encoder.fingerprint, {name: version(name) for name in packages}) as cache:
            if encoder.tower.projections and not cache.projections:
                write_projections(path, encoder.tower.projections)
            new_texts = [text for text in dict.fromkeys(texts) if text not in cache.text_index]
            parts = (new_texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(new_texts), TEXTS_AT_ONCE))
            tokens = (pair for part in parts for pair in zip(part, encoder.encode_texts(part), strict=True))
            summary.texts_now = write_texts(path, tokens, encoder.config.dtype)
            summary.seconds_start_up = time.perf_counter() - started
            _Job(home, encoder, options, files, summary).run(missing, on_progress)
            summary.seconds_wall = time.perf_counter() - started
            write_file(path / "summary.json", json.dumps(summary.to_dict(), indent=1, ensure_ascii=False))
    return summary


def is_worth_a_try(failure: Failure, files: Files, config: EncodeConfig, options: ExtractOptions) -> bool:
    """May a video that failed before succeed now?"""
    file = files.get(failure.video_id)
    partial_helps = config.allow_partial and not failure.partial_allowed and failure.reason in HELPED_BY_PARTIAL
    return file is not None and (failure.file_identity != file_identity(file) or partial_helps or options.retry_failed)


class _Job:
    def __init__(self, home: Home, encoder: Encoder, options: ExtractOptions, files: Files, summary: Summary) -> None:
        self.home, self.path, self.summary = home, home.folder, summary
        self.encoder, self.config, self.options = encoder, encoder.config, options
        self.files, self.same_file = split_by_file(files, Cache(self.path).places)
        self.cache = add_aliases(self.path, self.files, self.same_file)
        self.writer, self.ledger = ShardWriter(self.cache), Ledger(self.path)
        self.last_rows = self.ledger.last_rows()
        self.is_worth_a_try = partial(is_worth_a_try, files=self.files, config=self.config, options=options)

    def run(self, missing: Sequence[str], on_progress: Progress) -> None:
        """Extract the videos that have no result; write every shard whose videos all have one."""
        self._plan()
        self._write(self.writer.complete)
        pending = (video_id for video_id in self.writer.planned if video_id not in self.writer.done)
        jobs = [Job(video_id, self.files[video_id]) for video_id in pending]
        on_progress(0, len(jobs), 0, 0)
        with closing(results_of(jobs, self.encoder, self.options, self.summary)) as results:
            for done, result in enumerate(results, start=1):
                started = time.perf_counter()
                if isinstance(result, Failure):
                    result = replace(result, partial_allowed=self.config.allow_partial)
                if isinstance(result, Failure) and result.reason == MACHINE:  # the next run tries it again
                    self.writer.release([result.video_id])
                else:
                    self.writer.put(result)
                self._record(result)
                if complete := self.writer.complete:
                    self._write(complete)
                self.summary.seconds_write += time.perf_counter() - started
                on_progress(done, len(jobs), self.summary.frames, self.summary.failed - self.summary.failed_before)
        for video_id in missing:
            self._record(Failure(video_id, MISSING, "no file for it in the video folder"))
        # Other ids of a file share its tokens, or its failure.
        before = {video_id for video_id in self.same_file if video_id in self.cache}
        cache = add_aliases(self.path, {}, self.same_file)
        failures = {row["video_id"]: Failure.from_row(row) for row in self.summary.failures}
        for video_id, first in self.same_file.items():
            if video_id not in cache:
                self._record(replace(failures[first], video_id=video_id))
            elif video_id in before:
                self.summary.cached_before += 1
            else:
                self.summary.cached_now += 1

    def _plan(self) -> None:
        """Count the results of earlier runs, and assign places in new shards to the videos that are due."""
        for video_id in self.writer.planned:  # by a run that was interrupted
            result = self.writer.staged(video_id)
            if isinstance(result, Failure) and self.is_worth_a_try(result):
                self.writer.forget([video_id])
            elif result is not None:
                # The job may have been killed between the staged result and its line in the ledger.
                if self.last_rows.get(video_id) != ledger_row(result):
                    self.ledger.write(ledger_row(result))
                if isinstance(result, Failure) and video_id in self.files:
                    self.summary.add(result)
        self.writer.release(set(self.writer.planned) - self.writer.done.keys() - self.files.keys())
        planned, failures = set(self.writer.planned), last_failures(self.cache)
        given_up = {video_id for video_id, failure in failures.items() if not self.is_worth_a_try(failure)}
        cached = [video_id for video_id in self.files if video_id in self.cache]
        changed = {video_id for video_id in cached if self._has_changed(video_id)}
        asked = {self.same_file.get(video_id, video_id) for video_id in self.options.refresh}
        refreshed = asked & set(cached) | (changed - given_up if CHANGED in asked else set())
        # An id that shared the tokens of a refreshed one gets its own.
        refreshed |= {video_id for video_id in cached if self.cache.own_id(video_id) in refreshed}
        self.summary.changed = [video_id for video_id in cached if video_id in changed - refreshed]
        for video_id in self.summary.changed:
            logger.warning("%s: %s is not the file that was cached", video_id, self.files[video_id])
        due = []
        for video_id in self.files:
            if video_id in planned:
                continue
            if video_id in refreshed or (video_id not in self.cache and video_id not in given_up):
                due.append(video_id)
            elif video_id not in self.cache:
                self.summary.add(failures[video_id])
        self.writer.add(due, self.options.shard_size)
        self.summary.failed_before = self.summary.failed
        num_pending = len(set(self.writer.planned) - self.writer.done.keys())
        self.summary.cached_before = len(self.files) - num_pending - self.summary.failed

    def _has_changed(self, video_id: str) -> bool:
        """Compares size and time stamp with the cached file's; the content where only the time stamp differs."""
        own, file = self.cache.own_id(video_id), self.files[video_id]
        identity, last_row = file_identity(file), self.last_rows.get(video_id, {})
        if self.cache.column("file_bytes", own) != identity["file_bytes"]:
            return True
        compared = last_row["file_mtime_ns"] if last_row.get("status") == UNCHANGED else None
        if identity["file_mtime_ns"] in (self.cache.column("file_mtime_ns", own), compared):
            return False
        if file_hash(file) != self.cache.row(own)["content_sha256"]:
            return True
        self.ledger.write({"status": UNCHANGED, "video_id": video_id, **identity})  # so that it is compared once
        return False

    def _record(self, result: Result) -> None:
        self.summary.add(result)
        self.ledger.write(ledger_row(result))

    def _write(self, shards: list[str]) -> None:
        """Write and publish shards; a bucket may fail: the next shard tries again, the end of the job must succeed."""
        for name in shards:
            drop_aliases(self.path, self.writer.replaced(name), self.same_file)
            self.writer.write(name)
        try:
            self.home.publish()
        except CacheError as error:
            logger.warning("%s", error)


def results_of(jobs: list[Job], encoder: Encoder, options: ExtractOptions, summary: Summary) -> Iterator[Result]:
    """Results of jobs, from this process or from Ray workers, which count them in Ray's metrics. Close it after use."""
    if options.workers == 0 or not jobs:
        yield from in_process_results(encoder, options.limits, jobs)
        return
    started = time.perf_counter()
    with connected(options):
        summary.seconds_start_up += time.perf_counter() - started
        actors = RayActors(encoder.config, encoder.read_spec, options.limits)
        pool = Supervisor(actors, options.workers, options.encoders, options.limits.timeout_seconds)
        videos = Counter("unloc_extract_videos", "Videos by status.", tag_keys=("status",))
        frames = Counter("unloc_extract_frames", "Frames encoded.")
        for result in pool.results(jobs):
            row = ledger_row(result)
            videos.inc(tags={"status": row.get("reason", row["status"])})
            if isinstance(result, VideoTokens):
                frames.inc(len(result.tokens))
            yield result
    summary.seconds_start_up += pool.seconds_to_first_worker


def split_by_file(files: Files, own: Collection[str] = ()) -> tuple[Files, dict[str, str]]:
    """(one id of each file with the file, every other id, as `v_<id>` of `<id>`, with that one); `own` ids keep it."""
    first: dict[VideoFile, str] = {}
    for video_id in sorted(files, key=lambda video_id: video_id not in own):
        first.setdefault(files[video_id], video_id)
    unique = {video_id: file for video_id, file in files.items() if first[file] == video_id or video_id in own}
    return unique, {video_id: first[file] for video_id, file in files.items() if video_id not in unique}


def drop_aliases(path: Path, replaced: Collection[str], same: dict[str, str]) -> None:
    """Remove the other ids of videos that are replaced now, except those that still have the same file."""
    aliases = read_checked(path / "aliases.json")
    dropped = [alias for alias, own in aliases.items() if own in replaced and same.get(alias) != own]
    if dropped:
        logger.warning("no longer the file of another id, to be extracted again: %s", ", ".join(dropped))
        write_checked(path / "aliases.json", {alias: own for alias, own in aliases.items() if alias not in dropped})


def add_aliases(path: Path, files: Files, same: dict[str, str]) -> Cache:
    """Record every id of `split_by_file` whose file is that of a cached video as an alias; the cache with them."""
    cache, new, cached = Cache(path), {}, defaultdict(list)
    for own in cache.places:
        cached[cache.column("file_bytes", own), cache.column("file_mtime_ns", own)].append(own)
    for video_id, file in files.items():
        if video_id in cache:
            continue
        rows = (cache.row(own) for own in cached[tuple(file_identity(file).values())])
        row = next((row for row in rows if row["file"] == file.name), None)
        if row is not None and file_hash(file) == row["content_sha256"]:
            new[video_id] = row["video_id"]
    for video_id, first in same.items():
        own = cache.own_id(new.get(first, first))
        if video_id not in cache and own is not None:
            new[video_id] = own
    if new:
        write_checked(path / "aliases.json", cache.aliases | new)
    return Cache(path)
