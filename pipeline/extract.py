"""The extraction job: which videos are due, their results into shards, and what is said at the end."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.aliases import add_aliases, share_tokens, split_by_file
from pipeline.claim import held, own_cache, remove_rests, tidied_up
from pipeline.cluster import connected, make_pool
from pipeline.decode_child import MACHINE, Job
from pipeline.decoding import Limits
from pipeline.ledger import CACHED, Failure, Ledger, Plan, Staging, failures_of
from pipeline.summary import Summary
from pipeline.workers import Result, in_process_results
from unloc.data.cache import open_cache
from unloc.data.cache_writer import (
    VideoTokens,
    disk_errors,
    write_projections,
    write_text_shard,
    write_video_shard,
)
from unloc.data.mirror import Home
from unloc.data.remote import home_of
from unloc.data.tar_shards import VideoFile
from unloc.errors import CacheError, CoverageError
from unloc.inference.device import resolve_device
from unloc.inference.encode import EncodeConfig, Encoder

logger = logging.getLogger(__name__)
TEXTS_PER_SHARD = 20_000
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
    """Videos per shard."""
    coverage: float = 1.0
    """Smallest share of videos that must end up cached."""
    retry_failed: bool = False
    """Try videos again that failed before and whose file has not changed."""
    release: bool = True
    """Take videos out of the plan that are not among the files, so that the shards that wait for them are written."""


Progress = Callable[[int, int, int], None]
"""Called with videos done, videos due, frames encoded so far."""


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
    """Bring every video and text into the cache; what is there is left alone.

    `files` names the file of every video, in order; `missing` those that have none. A cache that another tower or
    preprocessing made is left alone too: a new one starts beside it (`Summary.cache`). One in a bucket (a URL) is
    written in its mirror and published shard by shard. Raises CacheError where another extractor holds the cache, the
    disk is full or the bucket keeps failing.
    """
    started = time.perf_counter()
    in_process = options.workers == 0 and options.encoders != 0
    encoder = Encoder(config, resolve_device("auto" if in_process else "cpu"))
    summary = Summary(videos=len(files) + len(missing), missing=len(missing))
    with disk_errors(cache_path):
        home = own_cache(home_of(cache_path), encoder.fingerprint)
        path, summary.cache = home.folder, str(home)
        with held(home, encoder.fingerprint), tidied_up(path):
            remove_rests(path)
            if encoder.tower.projections and not open_cache(path).projections:
                write_projections(path, encoder.tower.projections)
            summary.texts_now = _add_texts(path, encoder, texts)
            summary.seconds_start_up = time.perf_counter() - started
            unique, same = split_by_file(files)
            job = _Job(home, encoder, options, unique, summary, on_progress or (lambda *counts: None))
            job.run()
            job.note_rest(same, missing)
            summary.seconds_wall = time.perf_counter() - started
            summary.write(path / "summary.json")
            home.publish()
    return summary


def _add_texts(path: Path, encoder: Encoder, texts: Sequence[str]) -> int:
    cache = open_cache(path)
    new = [text for text in dict.fromkeys(texts) if not cache.has_text(text)]
    for start in range(0, len(new), TEXTS_PER_SHARD):
        part = new[start : start + TEXTS_PER_SHARD]
        write_text_shard(path, list(zip(part, encoder.encode_texts(part), strict=True)), encoder.config.dtype)
    return len(new)


def is_worth_a_try(failure: Failure, file: VideoFile, config: EncodeConfig, options: ExtractOptions) -> bool:
    """Could a video that failed before fare better now?"""
    allowed_now = config.allow_partial and not failure.partial_allowed and failure.reason in CURED_BY_PARTIAL
    return not failure.is_of(file) or allowed_now or options.retry_failed


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
        self.files, self.summary, self.on_progress = files, summary, on_progress
        self.cache = open_cache(path)
        self.plan, self.staging, self.ledger = Plan(path), Staging(path), Ledger(path)
        self.settled: set[str] = set()
        """Videos whose result is staged."""
        self.left_over: dict[str, Failure] = {}
        """Videos that no machine could do, though their files can be read: left to the next run."""

    def run(self) -> None:
        """Settle every due video, then write every shard whose videos are all settled."""
        self.cache = add_aliases(self.path, self.files)
        self._take_up()
        self._plan_new()
        shards = _OpenShards(self.plan.open_shards(self.cache), self.settled)
        for name in shards.take_complete():
            self._write_shard(name)
        jobs = [Job(video_id, self.files[video_id]) for video_id in shards.unsettled if video_id in self.files]
        self.on_progress(0, len(jobs), 0)
        with self._results(jobs) as results:
            for done, result in enumerate(results, start=1):
                video_id = self._settle(result)
                self.on_progress(done, len(jobs), self.summary.frames)
                if video_id in self.left_over and not self.options.release:
                    continue  # a shard that is repaired waits for all that was in it
                name = shards.settle(video_id)
                if name is not None:
                    self._write_shard(name)

    def note_rest(self, same: dict[str, str], missing: Sequence[str]) -> None:
        """Let each id share the tokens, or the failure, of the id that has its file; and tell of those without one."""
        for video_id in missing:
            self.note_failure(Failure(video_id, "missing", "no file for it in the video folder"))
        if not same:
            return
        before = {video_id for video_id in same if video_id in self.cache}
        cache = share_tokens(self.path, same)
        failures = failures_of(cache)
        for video_id, first in same.items():
            if video_id not in cache:
                failure = self.left_over.get(first) or failures[first]
                self.note_failure(replace(failure, video_id=video_id))
            elif video_id in before:
                self.summary.cached_before += 1
            else:
                self.summary.cached_now += 1

    def _take_up(self) -> None:
        """Go on where an earlier run stopped: what it settled counts, what nobody settles now leaves the plan."""
        planned = [video_id for ids in self.plan.open_shards(self.cache).values() for video_id in ids]
        self.staging.keep_only(planned)
        noted = self.ledger.last_rows()
        for video_id in planned:
            result = self.staging.get(video_id)
            if isinstance(result, Failure) and video_id in self.files and self._is_worth_a_try(result):
                self.staging.drop([video_id])
            elif result is not None:
                self.settled.add(video_id)
                self._note_staged(video_id, result, noted.get(video_id, {}))
                self._count_staged(video_id, result)
        if self.options.release:
            self.plan.release(self.cache, lambda video_id: video_id in self.files or video_id in self.settled)

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
        planned = {video_id for ids in self.plan.open_shards(self.cache).values() for video_id in ids}
        failed, new = failures_of(self.cache), []
        for video_id, path in self.files.items():
            if video_id in self.cache:
                self.summary.cached_before += 1
                self._note_change(video_id, path)
            elif video_id in planned:
                continue
            elif video_id in failed and not self._is_worth_a_try(failed[video_id]):
                self.summary.failed_before += 1
                self.summary.add_failure(failed[video_id])
            else:
                new.append(video_id)
        self.plan.extend(new, self.options.shard_size)
        self._publish()

    def _note_change(self, video_id: str, path: VideoFile) -> None:
        row = self.cache.rows.get(video_id)
        if row is not None and row["file_bytes"] != path.stat().st_size:
            self.summary.changed.append(video_id)
            logger.warning("%s: %s is another file than the one that was cached; its tokens are kept", video_id, path)

    def _is_worth_a_try(self, failure: Failure) -> bool:
        return is_worth_a_try(failure, self.files[failure.video_id], self.config, self.options)

    @contextmanager
    def _results(self, jobs: list[Job]) -> Iterator[Iterator[Result]]:
        options = self.options
        if not jobs:
            yield iter(())
        elif options.workers == 0:
            yield in_process_results(self.encoder, options.limits, jobs)
        else:
            started = time.perf_counter()
            with connected(options.address, options.workers, options.encoders):
                self.summary.seconds_start_up += time.perf_counter() - started
                pool = make_pool(self.encoder, options.limits, options.workers, options.encoders)
                yield pool.results(jobs)
            self.summary.seconds_start_up += pool.seconds_to_first_worker

    def _settle(self, result: Result) -> str:
        if isinstance(result, Failure):
            result = replace(result, partial_allowed=self.config.allow_partial)
            if result.reason == MACHINE:
                self.left_over[result.video_id] = result
                if self.options.release:
                    self.plan.release(self.cache, lambda video_id: video_id != result.video_id)
            else:
                self.staging.put(result)
            self.note_failure(result)
            return result.video_id
        started = time.perf_counter()
        self.staging.put(result)
        self.summary.seconds_write += time.perf_counter() - started
        self.summary.add_video(result.meta, len(result.tokens))
        self.ledger.write_cached(result.meta, len(result.tokens))
        return result.meta["video_id"]

    def note_failure(self, failure: Failure) -> None:
        """Count a failure and write it to the ledger."""
        self.summary.add_failure(failure)
        self.ledger.write(failure.to_row())

    def _write_shard(self, name: str) -> None:
        started = time.perf_counter()
        ids = self.plan.shards.get(name)
        if ids is None:  # nothing was left of it
            return
        results = [self.staging.get(video_id) for video_id in ids]
        if any(result is None for result in results):
            raise CacheError(f"{self.path}: a staged result of shard {name} is damaged; run the same command again")
        videos = [result for result in results if isinstance(result, VideoTokens)]
        failed = [result.to_row() for result in results if isinstance(result, Failure)]
        write_video_shard(self.path, name, videos, failed, self.config.dtype)
        self.staging.drop(ids)
        self._publish()
        self.summary.seconds_write += time.perf_counter() - started

    def _publish(self) -> None:
        """A bucket that fails now is no reason to stop: the next shard tries again, and the end of the job insists."""
        try:
            self.home.publish()
        except CacheError as error:
            logger.warning("%s", error)


class _OpenShards:
    """Which shards still lack which videos."""

    def __init__(self, shards: dict[str, list[str]], settled: set[str]) -> None:
        self.lacking = {name: set(ids) - settled for name, ids in shards.items()}
        self.unsettled = [video_id for ids in shards.values() for video_id in ids if video_id not in settled]
        self.shard_of = {video_id: name for name, ids in shards.items() for video_id in ids}

    def take_complete(self) -> list[str]:
        """Shards that lack nothing; each is told once."""
        done = [name for name, ids in self.lacking.items() if not ids]
        for name in done:
            del self.lacking[name]
        return done

    def settle(self, video_id: str) -> str | None:
        """Note that a video is settled; the shard that it completes, if it does."""
        name = self.shard_of[video_id]
        self.lacking[name].discard(video_id)
        return name if not self.lacking[name] and self.lacking.pop(name) is not None else None
