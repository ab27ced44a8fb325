"""Other projects' features into a cache: their tokens, the times that are stated for them, and where they came from."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.ledger import Failure, Plan, failures_of
from unloc.annotations.schema import Manifest
from unloc.cache.dtype import require_token_dtype, to_stored
from unloc.cache.features import FeatureSource, Timing, list_features, read_tokens, tokens_hash
from unloc.cache.reading import Cache, open_cache
from unloc.cache.writing import (
    VideoTokens,
    create_or_check,
    token_checksum,
    write_text_shard,
    write_video_shard,
)
from unloc.errors import InputError, MissingError, VideoError
from unloc.files import folder_lock
from unloc.video.video_file import file_identity

logger = logging.getLogger(__name__)
TEXTS_PER_SHARD = 20_000
MAX_DRIFT = 0.1  # typical share by which tokens may cover more or less than the manifest's durations


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What is imported and what is known about it; all of it stands in the fingerprint."""

    format: str
    """One of `features.FORMATS`."""
    origin: str
    """Who made the features with which tower, in words."""
    timing: Timing
    """When each token is shown."""
    dtype: str = "float16"
    """How tokens are stored (`token_dtype`)."""
    dataset: str | None = None
    """Name of the array inside a file."""
    transposed: bool = False
    """Files hold (D, T)."""

    def __post_init__(self) -> None:
        require_token_dtype(self.dtype, "--token-dtype")
        if not self.origin.strip():
            raise InputError("--origin: say who made the features with which tower; it identifies the cache")

    def fingerprint(self, frame_dim: int) -> dict:
        """What identifies the tokens, flat; no `tower.` key, as no tower of ours made them."""
        return {
            "origin": self.origin,
            "import.format": self.format,
            "import.dataset": self.dataset,
            "import.frame_dim": frame_dim,
            **{f"timing.{key}": value for key, value in self.timing.to_dict().items()},
            "dtype": self.dtype,
            "views": ["centre"],
        }


@dataclass(kw_only=True)
class ImportSummary:
    """What an import did."""

    videos: int = 0
    there_before: int = 0
    texts: int = 0
    missing: list[str] = field(default_factory=list)
    """Videos of the manifest that the source does not hold."""
    failures: list[dict] = field(default_factory=list)


def import_features(
    out: Path,
    source: Path,
    config: ImportConfig,
    *,
    manifest: Manifest | None = None,
    texts: Path | None = None,
    shard_size: int = 512,
) -> ImportSummary:
    """Bring a source's videos into a cache: those of the manifest, or all where there is none.

    `texts` is a folder of QID.npz or qidQID.npz with `last_hidden_state` (K, D), one per query of the manifest.
    Raises InputError where the stated timing contradicts the manifest's durations, or no file can be read.
    """
    features = list_features(config.format, source, config.dataset)
    durations = _durations(manifest)
    chosen = _chosen(features, durations) if manifest else features
    if not chosen:
        raise InputError(
            f"{source}: holds none of the manifest's {len(durations)} videos (first: {list(durations)[:1]})"
        )
    frame_dim = _check_timing(chosen, config, durations)
    create_or_check(out, config.fingerprint(frame_dim), {})
    with folder_lock(out):
        summary = ImportSummary(missing=[video_id for video_id in durations if video_id not in chosen])
        _write_videos(out, chosen, config, durations, summary, shard_size)
        if texts is not None and manifest is not None:
            summary.texts = _write_texts(out, manifest, texts, config.dtype)
    return summary


def _durations(manifest: Manifest | None) -> dict[str, float]:
    if manifest is None:
        return {}
    videos = manifest.videos.drop_duplicates("video_id")
    return dict(zip(videos["video_id"], videos["duration_seconds"].astype(float), strict=True))


def _chosen(features: dict[str, FeatureSource], video_ids: Iterable[str]) -> dict[str, FeatureSource]:
    """The source of each id, with or without ActivityNet's `v_`."""
    chosen = {}
    for video_id in video_ids:
        bare = video_id.removeprefix("v_")
        name = next((name for name in (video_id, bare, f"v_{bare}") if name in features), None)
        if name is not None:
            chosen[video_id] = features[name]
    return chosen


def _check_timing(chosen: dict[str, FeatureSource], config: ImportConfig, durations: dict[str, float]) -> int:
    """Channels of the features, after the times stated for a sample of them were held against the durations."""
    if config.timing.spacing_seconds is None:
        unknown = [video_id for video_id in chosen if not np.isfinite(durations.get(video_id, np.nan))]
        if unknown:
            raise InputError(
                f"timing: tokens spread evenly need the duration of every video ({len(unknown)} have none, first: "
                f"{unknown[0]!r}); give a --manifest that states it"
            )
    ratios, dims = [], []
    for video_id, source in list(chosen.items())[:200]:
        try:
            shape = read_tokens(source, transposed=config.transposed).shape
        except VideoError:
            continue
        dims.append(shape[1])
        covered, duration = config.timing.covered_seconds(shape[0]), durations.get(video_id, np.nan)
        if covered is not None and np.isfinite(duration) and duration > 0:
            ratios.append(covered / duration)
    if not dims:
        raise InputError(f"{next(iter(chosen.values())).path}: none of the first {len(chosen)} files can be read")
    typical = float(np.median(ratios)) if ratios else 1.0
    if abs(typical - 1) > MAX_DRIFT:
        raise InputError(
            f"timing: with it the tokens cover {typical:.0%} of the manifest's durations (median of {len(ratios)} "
            "videos); check the clip length, or the stride, window and frame rate"
        )
    return int(np.bincount(dims).argmax())


def _write_videos(
    out: Path,
    chosen: dict[str, FeatureSource],
    config: ImportConfig,
    durations: dict[str, float],
    summary: ImportSummary,
    shard_size: int,
) -> None:
    cache, plan = open_cache(out), Plan(out)
    planned = {video_id for ids in plan.open_shards(cache).values() for video_id in ids}
    failed = {name: one for name, one in failures_of(cache).items() if name in chosen and one.is_of(chosen[name].path)}
    summary.there_before = sum(video_id in cache.rows for video_id in chosen)
    summary.failures = [failure.to_row() for failure in failed.values()]
    known = planned | failed.keys() | cache.rows.keys()
    plan.extend([video_id for video_id in chosen if video_id not in known], shard_size)
    for name, ids in plan.open_shards(cache).items():
        if any(video_id not in chosen for video_id in ids):
            logger.warning("shard %s waits for videos of another import", name)
            continue
        results = [_result(cache, video_id, chosen[video_id], config, durations) for video_id in ids]
        videos = [result for result in results if isinstance(result, VideoTokens)]
        failed = [result.to_row() for result in results if isinstance(result, Failure)]
        write_video_shard(out, name, videos, failed, config.dtype)
        summary.videos += len(videos)
        summary.failures += failed


def _result(
    cache: Cache, video_id: str, source: FeatureSource, config: ImportConfig, durations: dict[str, float]
) -> VideoTokens | Failure:
    identity = file_identity(source.path)
    try:
        tokens = read_tokens(source, transposed=config.transposed)
        frame_dim = cache.fingerprint["import.frame_dim"]
        if tokens.shape[1] != frame_dim:
            message = f"{source.path} ({source.name}): has {tokens.shape[1]} channels, the others {frame_dim}"
            raise VideoError(message, reason="not_features")
        stored = to_stored(tokens[:, None], config.dtype)
    except VideoError as error:
        return Failure(video_id, error.reason, str(error), **identity)
    except InputError as error:
        return Failure(video_id, "does_not_fit", f"{source.path}: {error}", **identity)
    duration = durations.get(video_id, np.nan)
    times = config.timing.times(len(tokens), duration)
    covered = config.timing.covered_seconds(len(tokens))
    meta = {
        "video_id": video_id,
        "file": source.path.name,
        **identity,
        "content_sha256": tokens_hash(tokens),
        "tokens_sha256": token_checksum(stored),
        "duration_seconds": float(duration) if np.isfinite(duration) else covered,
        "times_seconds": [round(float(value), 6) for value in times],
        "decoder": f"imported from {config.format}",
    }
    return VideoTokens(meta, stored)


def _write_texts(out: Path, manifest: Manifest, folder: Path, dtype: str) -> int:
    """Tokens of the manifest's queries that are not there yet; a query without a file is named."""
    cache, new = open_cache(out), {}
    for qid, text in zip(manifest.queries["qid"], manifest.queries["text"], strict=True):
        if text not in new and not cache.has_text(text):
            new[text] = to_stored(_text_tokens(folder, str(qid)), dtype)
    items = list(new.items())
    for start in range(0, len(items), TEXTS_PER_SHARD):
        write_text_shard(out, items[start : start + TEXTS_PER_SHARD], dtype)
    return len(items)


def _text_tokens(folder: Path, qid: str) -> np.ndarray:
    for path in (folder / f"qid{qid}.npz", folder / f"{qid}.npz"):
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                tokens = np.asarray(stored["last_hidden_state"], dtype=np.float32)
            return tokens.reshape(-1, tokens.shape[-1])
    raise MissingError(f"{folder}: has neither qid{qid}.npz nor {qid}.npz for a query of the manifest")
