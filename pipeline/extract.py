"""The extraction job: which videos are due, and their results into the shards of a cache."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from ray.util.metrics import Counter

from pipeline.aliases import add_aliases, drop_aliases, split_by_file
from pipeline.cluster import ExtractOptions, RayActors, connected, suited_to_device
from pipeline.decoding import MACHINE, Job
from pipeline.ledger import CACHED, UNCHANGED, Ledger, Summary
from pipeline.supervisor import Supervisor
from pipeline.workers import in_process_results
from unloc.cache.opening import Home, home_for, open_for_writing
from unloc.cache.reading import Cache
from unloc.cache.shards import Failure, Result, ShardWriter, last_failures
from unloc.cache.writing import write_projections, write_texts
from unloc.errors import CacheError, InputError
from unloc.files import disk_full_errors, write_file
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.video_file import VideoFile, file_hash, file_identity

logger = logging.getLogger(__name__)
TEXTS_AT_ONCE = 20_000
CHANGED = "changed"  # in `refresh`: every video whose file has changed
HELPED_BY_PARTIAL = ("truncated", "decode_error")  # reasons that --allow-partial may remove
Progress = Callable[[int, int, int, int], None]
"""Called with the videos done, videos due, frames encoded and videos failed so far in this run."""


def extract(
    cache_path: Path | str,
    config: EncodeConfig,
    options: ExtractOptions,
    files: dict[str, VideoFile],
    missing: Sequence[str],
    texts: Sequence[str],
    on_progress: Progress = lambda *counts: None,
) -> Summary:
    """Bring every video and text into the cache; existing videos are skipped.

    `files` has the file of every video, in order; `missing` are those without one. Refreshed videos go into new shards,
    which replace the older ones once they are complete. If the cache was made with another tower or preprocessing, a
    new one is made next to it (`Summary.cache`). A cache in a bucket (a URL) is written in its local mirror and
    published shard by shard. Raises CacheError where another process writes the cache, the disk is full or the bucket
    keeps failing, InputError where a video to refresh has no file.
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
        with open_for_writing(home, encoder.fingerprint, {name: version(name) for name in packages}):
            cache = Cache(path)
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


def is_worth_a_try(
    failure: Failure, files: dict[str, VideoFile], config: EncodeConfig, options: ExtractOptions
) -> bool:
    """May a video that failed before succeed now?"""
    file = files.get(failure.video_id)
    partial_helps = config.allow_partial and not failure.partial_allowed and failure.reason in HELPED_BY_PARTIAL
    return file is not None and (failure.file_identity != file_identity(file) or partial_helps or options.retry_failed)


class _Job:
    """One run over the videos that are due."""

    def __init__(
        self, home: Home, encoder: Encoder, options: ExtractOptions, files: dict[str, VideoFile], summary: Summary
    ) -> None:
        self.home, self.path, self.summary = home, home.folder, summary
        self.encoder, self.config, self.options = encoder, encoder.config, options
        self.files, self.same_file = split_by_file(files, Cache(self.path).rows)
        self.cache = add_aliases(self.path, self.files, self.same_file)
        self.writer, self.ledger = ShardWriter(self.cache), Ledger(self.path)
        self.last_rows = self.ledger.last_rows()
        self.is_worth_a_try = partial(is_worth_a_try, files=self.files, config=self.config, options=options)

    def run(self, missing: Sequence[str], on_progress: Progress) -> None:
        """Write every shard of which all videos have a result; extract those that have none."""
        self._plan()
        self._write_complete_shards()
        pending = (video_id for video_id in self.writer.planned if video_id not in self.writer.done)
        jobs = [Job(video_id, self.files[video_id]) for video_id in pending]
        failed_before = self.summary.failed
        on_progress(0, len(jobs), 0, 0)
        with results_of(jobs, self.encoder, self.options, self.summary) as results:
            for done, result in enumerate(results, start=1):
                started = time.perf_counter()
                if isinstance(result, Failure):
                    failure = replace(result, partial_allowed=self.config.allow_partial)
                    if failure.reason == MACHINE:  # the next run tries it again
                        self.writer.release([failure.video_id])
                    else:
                        self.writer.put(failure)
                    self._record(failure)
                else:
                    self.writer.put(result)
                    self.summary.add_video(result.meta, len(result.tokens))
                    self.ledger.write_cached(result.meta, len(result.tokens))
                self._write_complete_shards()
                self.summary.seconds_write += time.perf_counter() - started
                on_progress(done, len(jobs), self.summary.frames, self.summary.failed - failed_before)
        for video_id in missing:
            self._record(Failure(video_id, "missing", "no file for it in the video folder"))
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
            result, last_row = self.writer.staged(video_id), self.last_rows.get(video_id, {})
            failure = result if isinstance(result, Failure) else None
            if failure and self.is_worth_a_try(failure):
                self.writer.forget([video_id])
            elif result is not None:
                # The job may have been killed between the staged result and its line in the ledger.
                if failure and last_row != failure.to_row():
                    self.ledger.write(failure.to_row())
                if not failure and last_row.get("status") != CACHED:
                    self.ledger.write_cached(result.meta, len(result.tokens))
                if video_id in self.files:
                    self._count_before(failure)
        self.writer.release(set(self.writer.planned) - self.writer.done - self.files.keys())
        planned, failures = set(self.writer.planned), last_failures(self.cache)
        given_up = {video_id for video_id, failure in failures.items() if not self.is_worth_a_try(failure)}
        refreshed, due = self._refreshed(given_up), []
        for video_id in self.files:
            if video_id in planned:
                continue
            if video_id in refreshed or (video_id not in self.cache and video_id not in given_up):
                due.append(video_id)
            else:
                self._count_before(None if video_id in self.cache else failures[video_id])
        self.writer.add(due, self.options.shard_size)
        self._publish()

    def _count_before(self, failure: Failure | None) -> None:
        """A video that an earlier run has done."""
        if failure is None:
            self.summary.cached_before += 1
        else:
            self.summary.failed_before += 1
            self.summary.add_failure(failure)

    def _refreshed(self, given_up: set[str]) -> set[str]:
        """Cached videos to extract again; changed files that are not are reported."""
        cached = [video_id for video_id in self.files if video_id in self.cache]
        changed = {video_id for video_id in cached if self._has_changed(video_id)}
        asked = {self.same_file.get(video_id, video_id) for video_id in self.options.refresh}
        chosen = asked & set(cached) | (changed - given_up if CHANGED in asked else set())
        # An id that shared the tokens of a chosen one gets its own.
        chosen |= {video_id for video_id in cached if self.cache.own_id(video_id) in chosen}
        self.summary.changed = [video_id for video_id in cached if video_id in changed - chosen]
        for video_id in self.summary.changed:
            logger.warning("%s: %s is not the file that was cached", video_id, self.files[video_id])
        return chosen

    def _has_changed(self, video_id: str) -> bool:
        """Compares size and time stamp with the cached file's; the content where only the time stamp differs."""
        own, file = self.cache.own_id(video_id), self.files[video_id]
        identity, last_row = file_identity(file), self.last_rows.get(video_id, {})
        if self.cache.column("file_bytes", own) != identity["file_bytes"]:
            return True
        compared = last_row["file_mtime_ns"] if last_row.get("status") == UNCHANGED else None
        if identity["file_mtime_ns"] in (self.cache.column("file_mtime_ns", own), compared):
            return False
        if file_hash(file) != self.cache.rows[own]["content_sha256"]:
            return True
        self.ledger.write({"status": UNCHANGED, "video_id": video_id, **identity})  # so that it is compared once
        return False

    def _record(self, failure: Failure) -> None:
        self.summary.add_failure(failure)
        self.ledger.write(failure.to_row())

    def _write_complete_shards(self) -> None:
        for name in self.writer.complete:
            drop_aliases(self.path, self.writer.replaced(name), self.same_file)
            self.writer.write(name)
            self._publish()

    def _publish(self) -> None:
        """A failing bucket does not stop the job: the next shard tries again, and the end of the job must succeed."""
        try:
            self.home.publish()
        except CacheError as error:
            logger.warning("%s", error)


@contextmanager
def results_of(
    jobs: list[Job], encoder: Encoder, options: ExtractOptions, summary: Summary
) -> Iterator[Iterator[Result]]:
    """Results of jobs, from this process or from Ray workers, which count them in Ray's metrics."""
    if options.workers == 0 or not jobs:
        yield in_process_results(encoder, options.limits, jobs)
        return
    started = time.perf_counter()
    with connected(options):
        summary.seconds_start_up += time.perf_counter() - started
        actors = RayActors(encoder.config, encoder.read_spec, options.limits)
        pool = Supervisor(actors, options.workers, options.encoders, options.limits.timeout_seconds)
        videos = Counter("unloc_extract_videos", "Videos by status.", tag_keys=("status",))
        frames = Counter("unloc_extract_frames", "Frames encoded.")

        def counted() -> Iterator[Result]:
            for result in pool.results(jobs):
                videos.inc(tags={"status": result.reason if isinstance(result, Failure) else CACHED})
                if not isinstance(result, Failure):
                    frames.inc(len(result.tokens))
                yield result

        yield counted()
    summary.seconds_start_up += pool.seconds_to_first_worker
