"""The extraction job: which videos are due, their results into shards, and what is said at the end."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ray

from pipeline.ledger import CACHED, Failure, Ledger, Plan, Staging, failures_of, lease
from pipeline.workers import Job, RayPool, in_process_results
from unloc.data.cache import open_cache
from unloc.data.cache_writer import (
    VideoTokens,
    create_or_check,
    write_atomically,
    write_text_shard,
    write_video_shard,
)
from unloc.errors import CacheError, CoverageError
from unloc.inference.encode import EncodeConfig, Encoder, file_identity, recorded_versions

logger = logging.getLogger(__name__)
TEXTS_PER_SHARD = 20_000


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How the job runs; nothing here changes a token."""

    workers: int = 1
    """Ray actors; 0 runs in this process without Ray."""
    address: str | None = None
    """An existing Ray cluster; None starts a local one."""
    timeout_seconds: float = 600.0
    """Longest a video may take before its worker is killed."""
    recycle_after: int = 500
    """Videos after which a worker is replaced."""
    shard_size: int = 512
    """Videos per shard."""
    coverage: float = 1.0
    """Smallest share of videos that must end up cached."""
    retry_failed: bool = False
    """Try videos again that failed before and whose file has not changed."""


@dataclass(kw_only=True)
class Summary:
    """What a run did."""

    videos: int = 0
    cached_before: int = 0
    cached_now: int = 0
    failed: int = 0
    failed_before: int = 0
    missing: int = 0
    texts_now: int = 0
    frames: int = 0
    seconds_decode: float = 0.0
    seconds_encode: float = 0.0
    seconds_wall: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[dict] = field(default_factory=list)

    @property
    def coverage(self) -> float:
        """Share of the videos that are in the cache now."""
        return (self.cached_before + self.cached_now) / self.videos if self.videos else 1.0


Progress = Callable[[int, int, int], None]
"""Called with videos done, videos due, frames encoded so far."""


def extract(
    cache_path: Path,
    config: EncodeConfig,
    options: ExtractOptions,
    files: dict[str, Path],
    missing: Sequence[str],
    texts: Sequence[str],
    on_progress: Progress | None = None,
) -> Summary:
    """Bring every video and text into the cache; what is there is left alone.

    `files` names the file of every video, in order; `missing` those that have none. Raises CoverageError where fewer
    videos than the stated coverage end up cached, after everything else is done and written.
    """
    started = time.perf_counter()
    encoder = Encoder(config)
    create_or_check(cache_path, encoder.fingerprint, recorded_versions())
    with lease(cache_path):
        summary = Summary(videos=len(files) + len(missing), missing=len(missing))
        summary.texts_now = _add_texts(cache_path, encoder, texts)
        job = _Job(cache_path, config, options, files, summary, on_progress or (lambda *counts: None))
        job.run()
        for video_id in missing:
            job.note_failure(Failure(video_id, "missing", "no file for it in the video folder"))
    summary.seconds_wall = round(time.perf_counter() - started, 3)
    (cache_path / "summary.json").write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    if summary.coverage < options.coverage:
        first = summary.failures[0]
        raise CoverageError(
            f"{cache_path}: {summary.cached_before + summary.cached_now} of {summary.videos} videos are cached, "
            f"--coverage asks for {options.coverage:.0%} (first: {first['video_id']}: {first['reason']}: "
            f"{first['message']}); all reasons: {cache_path / 'ledger.jsonl'}"
        )
    return summary


def _add_texts(cache_path: Path, encoder: Encoder, texts: Sequence[str]) -> int:
    cache = open_cache(cache_path)
    new = [text for text in dict.fromkeys(texts) if not cache.has_text(text)]
    for start in range(0, len(new), TEXTS_PER_SHARD):
        part = new[start : start + TEXTS_PER_SHARD]
        write_text_shard(cache_path, list(zip(part, encoder.encode_texts(part), strict=True)), encoder.config.dtype)
    return len(new)


class _Job:
    """One run over the videos that are due."""

    def __init__(
        self,
        cache_path: Path,
        config: EncodeConfig,
        options: ExtractOptions,
        files: dict[str, Path],
        summary: Summary,
        on_progress: Progress,
    ) -> None:
        self.path, self.config, self.options = cache_path, config, options
        self.files, self.summary, self.on_progress = files, summary, on_progress
        self.cache = open_cache(cache_path)
        self.plan, self.staging, self.ledger = Plan(cache_path), Staging(cache_path), Ledger(cache_path)

    def run(self) -> None:
        """Settle every due video, then write every shard whose videos are all settled."""
        self._plan()
        shards = self.plan.open_shards(self.cache)
        wanted = [video_id for ids in shards.values() for video_id in ids if not self.staging.has(video_id)]
        # A planned video that this run's manifest does not name waits for a run that does; its shard waits with it.
        jobs = [Job(video_id, self.files[video_id]) for video_id in wanted if video_id in self.files]
        self._write_settled(shards)
        done = 0
        self.on_progress(0, len(jobs), 0)
        with self._results(jobs) as results:
            for result in results:
                self._settle(result)
                done += 1
                self.on_progress(done, len(jobs), self.summary.frames)
                self._write_settled(shards)
        self._release_unnamed(shards)

    def _add_aliases(self) -> None:
        """An id whose file is that of a cached video is another name of it: nothing is decoded twice."""
        known = {(row["file"], row["file_bytes"], row["file_mtime_ns"]): key for key, row in self.cache.rows.items()}
        new = {}
        for video_id, path in self.files.items():
            other = known.get((path.name, *file_identity(path).values()))
            if other is not None and video_id not in self.cache:
                new[video_id] = other
        if new:
            aliases = self.cache.aliases | new
            write_atomically(self.path / "aliases.json", json.dumps(aliases, indent=1, ensure_ascii=False))
            self.cache = open_cache(self.path)

    def _plan(self) -> None:
        self._add_aliases()
        known = {video_id for ids in self.plan.open_shards(self.cache).values() for video_id in ids}
        failed = failures_of(self.cache)
        new = []
        for video_id, path in self.files.items():
            if video_id in self.cache:
                self.summary.cached_before += 1
            elif video_id in failed and not (self.options.retry_failed or _has_changed(path, failed[video_id])):
                self.summary.failed_before += 1
                self._count_failure(failed[video_id])
            elif video_id not in known:
                new.append(video_id)
            elif self.staging.has(video_id):  # settled by a run that was stopped before its shard was complete
                self._count_staged(video_id)
        self.plan.extend(new, self.options.shard_size)

    def _count_staged(self, video_id: str) -> None:
        result = self.staging.get(video_id)
        if isinstance(result, Failure):
            self.summary.failed_before += 1
            self._count_failure(result)
        elif result is not None:
            self.summary.cached_before += 1

    @contextmanager
    def _results(self, jobs: list[Job]) -> Iterator[Iterator[VideoTokens | Failure]]:
        if not jobs:
            yield iter(())
        elif self.options.workers == 0:
            yield in_process_results(self.config, jobs)
        else:
            with _ray(self.options.address, self.options.workers):
                pool = RayPool(
                    self.config,
                    min(self.options.workers, len(jobs)),
                    timeout_seconds=self.options.timeout_seconds,
                    recycle_after=self.options.recycle_after,
                )
                yield pool.results(jobs)

    def _settle(self, result: VideoTokens | Failure) -> None:
        self.staging.put(result)
        if isinstance(result, Failure):
            self.note_failure(result)
            return
        meta = result.meta
        self.summary.cached_now += 1
        self.summary.frames += len(result.tokens)
        self.summary.seconds_decode += meta["seconds_decode"]
        self.summary.seconds_encode += meta["seconds_encode"]
        row = {key: meta[key] for key in ("video_id", "decoder", "seconds_decode", "seconds_encode")}
        self.ledger.write({"status": CACHED, **row, "num_tokens": len(result.tokens)})

    def note_failure(self, failure: Failure) -> None:
        """Count a failure and write it to the ledger."""
        self._count_failure(failure)
        self.ledger.write(failure.to_row())

    def _count_failure(self, failure: Failure) -> None:
        self.summary.failed += 1
        self.summary.failures.append(failure.to_row())
        self.summary.reasons = dict(Counter(row["reason"] for row in self.summary.failures))

    def _write_settled(self, shards: dict[str, list[str]]) -> None:
        for name, ids in list(shards.items()):
            if all(self.staging.has(video_id) for video_id in ids):
                self._write_shard(name, ids)
                del shards[name]

    def _write_shard(self, name: str, ids: list[str]) -> None:
        results = [self.staging.get(video_id) for video_id in ids]
        if any(result is None for result in results):
            raise CacheError(f"{self.path}: a staged result of shard {name} is damaged; run the same command again")
        videos = [result for result in results if isinstance(result, VideoTokens)]
        failed = [result.to_row() for result in results if isinstance(result, Failure)]
        write_video_shard(self.path, name, videos, failed, self.config.dtype)
        self.staging.drop(ids)

    def _release_unnamed(self, shards: dict[str, list[str]]) -> None:
        """Shards that wait for videos this run does not name are said, not silently left."""
        for name, ids in shards.items():
            absent = [video_id for video_id in ids if video_id not in self.files and not self.staging.has(video_id)]
            logger.warning("shard %s waits for %d videos of another run (first: %s)", name, len(absent), absent[:1])


def _has_changed(path: Path, failure: Failure) -> bool:
    return file_identity(path) != {"file_bytes": failure.file_bytes, "file_mtime_ns": failure.file_mtime_ns}


@contextmanager
def _ray(address: str | None, workers: int) -> Iterator[None]:
    """A Ray connection for the time of the job: an existing cluster, or a local one of just enough cores."""
    own = not ray.is_initialized()
    if own and address is None:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    elif own:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield
    finally:
        if own:
            ray.shutdown()
