"""The extraction job: which videos are due, their results into shards, and what is said at the end."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.aliases import add_aliases, drop_aliases, share_tokens, split_by_file
from pipeline.cluster import connected, counted, suited_to_device
from pipeline.decode_child import MACHINE, Job
from pipeline.decoding import Limits
from pipeline.ledger import CACHED, UNCHANGED, Ledger
from pipeline.ray_actors import RayActors
from pipeline.summary import Summary
from pipeline.supervisor import Supervisor
from pipeline.workers import in_process_results
from unloc.cache.mirror import Home
from unloc.cache.opening import home_for, open_for_writing
from unloc.cache.reading import Cache
from unloc.cache.shards import Failure, Result, ShardWriter, failures_of, last_failures
from unloc.cache.writing import write_projections, write_texts
from unloc.errors import CacheError, CoverageError, InputError
from unloc.files import disk_full_errors
from unloc.inference.encode import EncodeConfig, Encoder, recorded_versions
from unloc.video.video_file import VideoFile, file_hash, file_identity

logger = logging.getLogger(__name__)
TEXTS_AT_ONCE = 20_000
CHANGED = "changed"  # in `refresh`: every video whose file has changed
CURED_BY_PARTIAL = ("truncated", "decode_error")  # reasons that --allow-partial may do away with


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How the job runs; nothing here changes a token."""

    workers: int = 1
    """Ray actors that decode; 0 runs in this process without Ray, the decoder in a process beside it; -1: one for each
    CPU of this machine, or of the cluster at `address`."""
    encoders: int | None = None
    """Ray actors that only encode; 0: the workers encode too; None: one per accelerator of the cluster."""
    address: str | None = None
    """An existing Ray cluster; None starts a local one."""
    limits: Limits = field(default_factory=Limits)
    """What one video may cost."""
    shard_size: int = 512
    """Videos per shard, at most: one of more than SHARD_BYTES is cut."""
    coverage: float = 1.0
    """Smallest share of videos that must end up cached."""
    retry_failed: bool = False
    """Try videos again that failed before and whose file has not changed."""
    refresh: tuple[str, ...] = ()
    """Ids of cached videos that are extracted again; `changed`: all whose file is another than the one cached."""

    @property
    def uses_cluster(self) -> bool:
        """Is the job to run on an existing Ray cluster?"""
        return self.address is not None and self.workers != 0


Progress = Callable[[int, int, int, int], None]
"""Called with videos done, videos due, frames encoded and videos failed so far in this run."""


def extract(
    cache_path: Path | str,
    config: EncodeConfig,
    options: ExtractOptions,
    files: dict[str, VideoFile],
    missing: Sequence[str],
    texts: Sequence[str],
    on_progress: Progress | None = None,
) -> Summary:
    """`run_job`, after which CoverageError is raised where fewer videos than the stated coverage are cached."""
    summary = run_job(cache_path, config, options, files, missing, texts, on_progress)
    require_coverage(summary, options)
    return summary


def require_coverage(summary: Summary, options: ExtractOptions) -> None:
    """Raises CoverageError where fewer videos than asked for are cached; what is cached stays."""
    if summary.coverage >= options.coverage:
        return
    first = summary.failures[0]
    raise CoverageError(
        f"{summary.cache}: {summary.cached} of {summary.videos} videos are cached, --coverage asks for "
        f"{options.coverage:.0%} (first: {first['video_id']}: {first['reason']}: {first['message']}); "
        f"all reasons: {summary.cache}/ledger.jsonl"
    )


def run_job(
    cache_path: Path | str,
    config: EncodeConfig,
    options: ExtractOptions,
    files: dict[str, VideoFile],
    missing: Sequence[str],
    texts: Sequence[str],
    on_progress: Progress | None = None,
) -> Summary:
    """Bring every video and text into the cache; existing videos are skipped.

    `files` names the file of every video, in order; `missing` those that have none. Videos to refresh are extracted
    into new shards, which replace the older ones once they are committed. A cache that another tower or preprocessing
    made is left alone: a new one starts beside it (`Summary.cache`). One in a bucket (a URL) is written in its mirror
    and published shard by shard. Raises CacheError where another extractor holds the cache, the disk is full or the
    bucket keeps failing, InputError where a video to refresh has no file.
    """
    started = time.perf_counter()
    if unknown := set(options.refresh) - files.keys() - {CHANGED}:
        raise InputError(f"--refresh {sorted(unknown)[0]}: the manifest has no such video, or it has no file")
    summary = Summary(videos=len(files) + len(missing), missing=len(missing))
    cluster = connected(options.address, options.workers, options.encoders) if options.uses_cluster else nullcontext()
    with disk_full_errors(cache_path), cluster:
        encoder = Encoder(*suited_to_device(config, options.encoders, on_cluster=options.uses_cluster))
        home = home_for(cache_path, encoder.fingerprint)
        path, summary.cache = home.folder, str(home)
        with open_for_writing(home, encoder.fingerprint, recorded_versions()):
            cache = Cache(path)
            if encoder.tower.projections and not cache.projections:
                write_projections(path, encoder.tower.projections)
            new_texts = [text for text in dict.fromkeys(texts) if text not in cache.text_index]
            parts = (new_texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(new_texts), TEXTS_AT_ONCE))
            tokens = (pair for part in parts for pair in zip(part, encoder.encode_texts(part), strict=True))
            summary.texts_now = write_texts(path, tokens, encoder.config.dtype)
            summary.seconds_start_up = time.perf_counter() - started
            job = _Job(home, encoder, options, files, summary, on_progress or (lambda *counts: None))
            job.run()
            job.note_rest(missing)
            summary.seconds_wall = time.perf_counter() - started
            summary.write(path / "summary.json")
    return summary


def is_worth_a_try(failure: Failure, file: VideoFile, config: EncodeConfig, options: ExtractOptions) -> bool:
    """Could a video that failed before fare better now?"""
    allowed_now = config.allow_partial and not failure.partial_allowed and failure.reason in CURED_BY_PARTIAL
    has_changed = failure.file_identity != file_identity(file)
    return has_changed or allowed_now or options.retry_failed


class _Job:
    """One run over the videos that are due."""

    def __init__(
        self,
        home: Home,
        encoder: Encoder,
        options: ExtractOptions,
        files: dict[str, VideoFile],
        summary: Summary,
        on_progress: Progress,
    ) -> None:
        path = home.folder
        self.home, self.path, self.encoder, self.config, self.options = home, path, encoder, encoder.config, options
        self.summary, self.on_progress = summary, on_progress
        self.cache = Cache(path)
        self.files, self.same = split_by_file(files, self.cache.rows)
        self.refresh = {self.same.get(video_id, video_id) for video_id in options.refresh}
        self.ledger = Ledger(path)
        self.noted = self.ledger.last_rows()
        self.left_over: dict[str, Failure] = {}
        """Videos that no machine could do, though their files can be read: left to the next run."""

    def run(self) -> None:
        """Write every shard of which all videos have a result; the others get theirs first."""
        self.cache = add_aliases(self.path, self.files)
        self.writer = ShardWriter(self.cache)
        self._resume()
        self._plan_new()
        self._write_complete_shards()
        jobs = [Job(video_id, self.files[video_id]) for video_id in self.writer.pending]
        self.on_progress(0, len(jobs), 0, 0)
        failed_before = self.summary.failed
        with results_of(jobs, self.encoder, self.options, self.summary) as results:
            for done, result in enumerate(results, start=1):
                self._keep(result)
                self.on_progress(done, len(jobs), self.summary.frames, self.summary.failed - failed_before)
                self._write_complete_shards()

    def note_rest(self, missing: Sequence[str]) -> None:
        """Let each id share the tokens, or the failure, of the id that has its file; and tell of those without one."""
        for video_id in missing:
            self.note_failure(Failure(video_id, "missing", "no file for it in the video folder"))
        if not self.same:
            return
        before = {video_id for video_id in self.same if video_id in self.cache}
        cache = share_tokens(self.path, self.same)
        failures = failures_of(cache)
        for video_id, first in self.same.items():
            if video_id not in cache:
                failure = self.left_over.get(first) or failures[first]
                self.note_failure(replace(failure, video_id=video_id))
            elif video_id in before:
                self.summary.cached_before += 1
            else:
                self.summary.cached_now += 1

    def _resume(self) -> None:
        """Continue an interrupted job: its results count, videos that this job does not have leave the plan."""
        for video_id in self.writer.planned:
            result = self.writer.staged(video_id)
            if isinstance(result, Failure) and self._is_worth_a_try(result):
                self.writer.forget([video_id])
            elif result is not None:
                self._note_staged(video_id, result, self.noted.get(video_id, {}))
                self._count_staged(video_id, result)
        unwanted = set(self.writer.pending) - self.files.keys()
        self.writer.release(lambda video_id: video_id in unwanted)

    def _note_staged(self, video_id: str, result: Result, noted: dict) -> None:
        """The ledger line of a staged result, if a kill came between the two."""
        if isinstance(result, Failure):
            if noted != result.to_row():
                self.ledger.write(result.to_row())
        elif noted.get("status") != CACHED:
            self.ledger.write_cached(result.meta, len(result.tokens))

    def _count_staged(self, video_id: str, result: Result) -> None:
        if video_id not in self.files:
            return
        if isinstance(result, Failure):
            self.summary.failed_before += 1
            self.summary.add_failure(result)
        else:
            self.summary.cached_before += 1

    def _plan_new(self) -> None:
        """Places for videos that have none."""
        planned = set(self.writer.planned)
        failed, new = last_failures(self.cache), []
        settled = {video_id for video_id, failure in failed.items() if not self._is_worth_a_try(failure)}
        refreshed = self._refreshed(settled)
        for video_id in self.files:
            if video_id in planned:
                continue
            if video_id in refreshed or (video_id not in self.cache and video_id not in settled):
                new.append(video_id)
            elif video_id in self.cache:
                self.summary.cached_before += 1
            else:
                self.summary.failed_before += 1
                self.summary.add_failure(failed[video_id])
        self.writer.add(new, self.options.shard_size)
        self._publish()

    def _refreshed(self, settled: set[str]) -> set[str]:
        """Cached videos to extract again; those with a new file that are not are told."""
        there = [video_id for video_id in self.files if video_id in self.cache]
        changed = {video_id for video_id in there if self._has_changed(video_id)}
        chosen = self.refresh & set(there) | (changed - settled if CHANGED in self.refresh else set())
        # An id that shared the tokens of one that is chosen gets tokens of its own.
        chosen |= {video_id for video_id in there if self.cache.own_id(video_id) in chosen}
        self.summary.changed = [video_id for video_id in there if video_id in changed - chosen]
        for video_id in self.summary.changed:
            logger.warning("%s: %s is not the file that was cached", video_id, self.files[video_id])
        return chosen

    def _has_changed(self, video_id: str) -> bool:
        """Is the file another than the one that was cached? It is read only where its time differs but not its size."""
        own, file = self.cache.own_id(video_id), self.files[video_id]
        identity, noted = file_identity(file), self.noted.get(video_id, {})
        if self.cache.column("file_bytes", own) != identity["file_bytes"]:
            return True
        if self.cache.column("file_mtime_ns", own) == identity["file_mtime_ns"]:
            return False
        if noted.get("status") == UNCHANGED and noted["file_mtime_ns"] == identity["file_mtime_ns"]:
            return False
        if file_hash(file) != self.cache.rows[own]["content_sha256"]:
            return True
        self.ledger.write({"status": UNCHANGED, "video_id": video_id, **identity})  # so that it is read once
        return False

    def _is_worth_a_try(self, failure: Failure) -> bool:
        file = self.files.get(failure.video_id)
        return file is not None and is_worth_a_try(failure, file, self.config, self.options)

    def _keep(self, result: Result) -> None:
        if isinstance(result, Failure):
            result = replace(result, partial_allowed=self.config.allow_partial)
            if result.reason == MACHINE:
                self.left_over[result.video_id] = result
                self.writer.release(lambda video_id: video_id == result.video_id)
            else:
                self.writer.put(result)
            self.note_failure(result)
            return
        started = time.perf_counter()
        self.writer.put(result)
        self.summary.seconds_write += time.perf_counter() - started
        self.summary.add_video(result.meta, len(result.tokens))
        self.ledger.write_cached(result.meta, len(result.tokens))

    def note_failure(self, failure: Failure) -> None:
        """Count a failure and write it to the ledger."""
        self.summary.add_failure(failure)
        self.ledger.write(failure.to_row())

    def _write_complete_shards(self) -> None:
        for name in self.writer.complete:
            started = time.perf_counter()
            drop_aliases(self.path, self.writer.replaced(name), self.same)
            self.writer.write(name)
            self._publish()
            self.summary.seconds_write += time.perf_counter() - started

    def _publish(self) -> None:
        """A bucket that fails now is no reason to stop: the next shard tries again, and the end of the job insists."""
        try:
            self.home.publish()
        except CacheError as error:
            logger.warning("%s", error)


@contextmanager
def results_of(
    jobs: list[Job], encoder: Encoder, options: ExtractOptions, summary: Summary
) -> Iterator[Iterator[Result]]:
    """Results of jobs, by this process or by Ray workers."""
    if not jobs:
        yield iter(())
    elif options.workers == 0:
        yield in_process_results(encoder, options.limits, jobs)
    else:
        started = time.perf_counter()
        with connected(options.address, options.workers, options.encoders):
            summary.seconds_start_up += time.perf_counter() - started
            actors = RayActors(encoder.config, encoder.read_spec, options.limits)
            pool = Supervisor(actors, options.workers, options.encoders, options.limits.timeout_seconds)
            yield counted(pool.results(jobs))
        summary.seconds_start_up += pool.seconds_to_first_worker
