"""`unloc extract`: videos and texts into a cache."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unloc.cli import app
from unloc.cli import extract_options as option
from unloc.errors import InputError

if TYPE_CHECKING:
    from pipeline.decoding import Limits
    from pipeline.extract import ExtractOptions
    from unloc.inference.encode import EncodeConfig
    from unloc.video.tar_shards import VideoFile

SHOWN_FAILURES = 20
GIB = 1 << 30


@app.command()
def extract(
    manifest: option.ManifestFile,
    cache: option.CacheFolder,
    videos: option.VideoFolder = None,
    shards: option.Shards = None,
    tower: option.Tower = "toy",
    pretrained: option.Pretrained = None,
    like: option.Like = None,
    fps: option.Fps = None,
    frames: option.Frames = None,
    workers: option.Workers = -1,
    encoders: option.Encoders = None,
    address: option.Address = None,
    split: option.Split = None,
    limit: option.Limit = 0,
    decoder: option.Decoder = "auto",
    dtype: option.Dtype = "float32",
    token_dtype: option.TokenDtype = "float16",
    views: option.Views = "centre",
    frame_token: option.FrameToken = "cls",
    projection: option.Projection = True,
    text_projection: option.TextProjection = True,
    last_k: option.LastK = 1,
    coverage: option.Coverage = 1.0,
    timeout: option.Timeout = 600.0,
    memory: option.Memory = 4.0,
    recycle_after: option.RecycleAfter = 500,
    recycle_growth: option.RecycleGrowth = 1.0,
    shard_size: option.ShardSize = 512,
    allow_partial: option.AllowPartial = False,
    retry_failed: option.RetryFailed = False,
    refresh: option.Refresh = None,
    prompts: option.Prompts = True,
    plan: option.Plan = False,
    as_json: option.Json = False,
) -> None:
    """Decode videos, encode frames and texts with a frozen tower, write the tokens into a cache.

    Existing videos are skipped; the same command resumes a job that was interrupted.

    Example: unloc extract data/mr.jsonl --videos data/videos --cache data/cache --fps 4
    """
    config = _encode_config(
        fps,
        frames,
        views,
        tower=tower,
        pretrained=pretrained,
        like=like,
        dtype=token_dtype,
        tower_dtype=dtype,
        frame_token=frame_token,
        projected=projection,
        texts_projected=text_projection,
        num_layers=last_k,
        decoder=decoder,
        allow_partial=allow_partial,
    )
    inputs = _Inputs.read(manifest, videos, shards, split, limit, prompts)
    limits = _limits(timeout, memory, recycle_after, recycle_growth)
    options = _job_options(workers, encoders, address, limits, shard_size, coverage, retry_failed, refresh)
    if plan and refresh:
        raise InputError("--plan: does not count what --refresh extracts again; give one of them")
    if plan:
        _forecast(cache, config, options, inputs, as_json)
    else:
        _run(cache, config, options, inputs, as_json)


@dataclass(frozen=True)
class _Inputs:
    """What a manifest and a folder, or tar shards, ask for."""

    files: dict[str, "VideoFile"]
    missing: list[str]
    texts: list[str]
    durations: dict[str, float]
    """Seconds of video as the manifest states them."""

    @classmethod
    def read(
        cls, manifest: Path, videos: Path | None, shards: str | None, split: str | None, limit: int, prompts: bool
    ) -> "_Inputs":
        """Of one split, or all. Raises InputError where not exactly one place with videos is given."""
        from unloc.annotations.schema import load_manifest
        from unloc.examples.texts import manifest_texts
        from unloc.video.locate import locate_in_shards, locate_videos

        if (videos is None) == (shards is None):
            raise InputError("unloc extract: give one of --videos DIR and --shards 'videos-{000..127}.tar'")
        selected = load_manifest(manifest).select(split)
        files, missing = locate_in_shards(selected.videos, shards) if shards else locate_videos(selected.videos, videos)
        if limit:
            files, missing = dict(list(files.items())[:limit]), []
        table = selected.videos
        durations = dict(zip(table["video_id"], table["duration_seconds"].astype(float), strict=True))
        return cls(files, missing, manifest_texts(selected, prompts=prompts), durations)


def _encode_config(
    fps: float | None, frames: int | None, views: str, **rest: str | bool | int | None
) -> "EncodeConfig":
    from unloc.inference.encode import EncodeConfig

    fps = 2.0 if fps is None and frames is None else fps
    return EncodeConfig(fps=fps, num_frames=frames, views=tuple(views.split(",")), **rest)


def _limits(timeout: float, memory: float, recycle_after: int, recycle_growth: float) -> "Limits":
    from pipeline.decoding import Limits

    return Limits(
        timeout_seconds=timeout,
        memory_bytes=int(memory * GIB),
        recycle_videos=recycle_after,
        recycle_bytes=int(recycle_growth * GIB),
    )


def _job_options(
    workers: int,
    encoders: int | None,
    address: str | None,
    limits: "Limits",
    shard_size: int,
    coverage: float,
    retry_failed: bool,
    refresh: list[str] | None,
) -> "ExtractOptions":
    from pipeline.extract import ExtractOptions

    return ExtractOptions(
        workers=workers,
        encoders=encoders,
        address=address,
        limits=limits,
        shard_size=shard_size,
        coverage=coverage,
        retry_failed=retry_failed,
        refresh=tuple(refresh or ()),
    )


def _forecast(cache: str, config: "EncodeConfig", options: "ExtractOptions", inputs: _Inputs, as_json: bool) -> None:
    from pipeline.forecast import forecast

    told = forecast(cache, config, options, inputs.files, inputs.missing, inputs.texts, inputs.durations)
    typer.echo(json.dumps(told.to_dict(), indent=1) if as_json else _table(told.lines()))
    _print_failures(told.failures, "the sample's ledger rows: --json")


def _run(cache: str, config: "EncodeConfig", options: "ExtractOptions", inputs: _Inputs, as_json: bool) -> None:
    from pipeline.extract import require_coverage, run_job
    from unloc.cli.progress import shown_notes, termination_as_interrupt, video_progress

    with shown_notes("pipeline"), video_progress() as on_progress, termination_as_interrupt():
        summary = run_job(cache, config, options, inputs.files, inputs.missing, inputs.texts, on_progress)
    typer.echo(json.dumps(summary.to_dict(), indent=1) if as_json else _table(summary.lines()))
    _print_failures(summary.failures, f"{summary.cache}/ledger.jsonl")
    require_coverage(summary, options)


def _table(lines: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:10} {words}" for name, words in lines)


def _print_failures(failures: list[dict], rest_in: str) -> None:
    for row in failures[:SHOWN_FAILURES]:
        words = f"failed: {row['video_id']}: {row['reason']}: {row['message']}"
        typer.echo(" ".join(words.splitlines()), err=True)
    if len(failures) > SHOWN_FAILURES:
        typer.echo(f"and {len(failures) - SHOWN_FAILURES} more: {rest_in}", err=True)
