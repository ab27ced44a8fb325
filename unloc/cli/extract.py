"""`unloc extract`: videos and texts into a cache."""

import json
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from unloc.cli import app
from unloc.cli.progress import progress, shown_warnings, sigterm_as_interrupt
from unloc.errors import InputError

if TYPE_CHECKING:
    from pipeline.ledger import Summary

SHOWN_FAILURES = 20
GIB = 1 << 30


@app.command()
def extract(
    manifest: Annotated[Path, Argument(help="Manifest of `unloc data convert`: a file or a URL.")],
    cache: Annotated[str, Option("--cache", "-c", help="Cache to write or extend: a folder, or s3://bucket/cache.")],
    videos: Annotated[Path | None, Option(help="Folder with the video files, or a URL: s3://bucket/videos.")] = None,
    shards: Annotated[str | None, Option(help="Tar files of `unloc data pack`: 'videos-{000..127}.tar'.")] = None,
    tower: Annotated[str, Option(help="toy, or a model of open_clip: ViT-B-16.")] = "toy",
    pretrained: Annotated[str | None, Option(help="Tag of open_clip, weights file, or none: random weights.")] = None,
    like: Annotated[str | None, Option(help="Tag whose activation and preprocessing a weights file has.")] = None,
    fps: Annotated[float | None, Option(help="Frames per second of video; 2 where --frames is not given.")] = None,
    frames: Annotated[int | None, Option(help="Number of frames, evenly over each video.")] = None,
    workers: Annotated[int, Option(min=-1, help="Ray workers that decode; 0: no Ray; -1: one per core.")] = -1,
    encoders: Annotated[int | None, Option(min=0, help="Ray workers that only encode (default: one per GPU).")] = None,
    address: Annotated[str | None, Option(help="Ray cluster to use: auto, or host:port.")] = None,
    split: Annotated[str | None, Option(help="Only this split.")] = None,
    limit: Annotated[int, Option(min=0, help="Only the first N videos; 0: all.")] = 0,
    decoder: Annotated[str, Option(help="auto, decord or pyav.")] = "auto",
    dtype: Annotated[str, Option(help="Precision of the tower: float32, bfloat16, or auto.")] = "float32",
    token_dtype: Annotated[str, Option(help="How tokens are stored: float16, float32 or bfloat16.")] = "float16",
    views: Annotated[str, Option(help="Views of each frame, centre first: centre,flip,crop0,crop1.")] = "centre",
    frame_token: Annotated[str, Option(help="cls: class token; gap: mean of the patches.")] = "cls",
    projection: Annotated[bool, Option(help="Frame tokens after CLIP's projection, or before it.")] = True,
    text_projection: Annotated[bool, Option(help="Text tokens after CLIP's projection, or before it.")] = True,
    last_k: Annotated[int, Option(help="Concatenate the frame tokens of the last K layers.")] = 1,
    coverage: Annotated[float, Option(min=0, max=1, help="Fail where a smaller share of videos is cached.")] = 1.0,
    timeout: Annotated[float, Option(min=0.01, max=1e6, help="Seconds without progress that stop a decoder.")] = 600.0,
    memory: Annotated[float, Option(min=0.05, max=1e6, help="GiB that decoding one video may take.")] = 4.0,
    recycle_after: Annotated[int, Option(min=1, help="Videos after which a decoder process is replaced.")] = 500,
    recycle_growth: Annotated[float, Option(min=0, max=1e6, help="GiB of growth after which it is replaced.")] = 1.0,
    shard_size: Annotated[int, Option(min=1, help="Videos per shard.")] = 512,
    allow_partial: Annotated[bool, Option("--allow-partial", help="Keep the readable part of damaged videos.")] = False,
    retry_failed: Annotated[bool, Option("--retry-failed", help="Try videos again that failed before.")] = False,
    refresh: Annotated[list[str] | None, Option(help="Cached video to extract again; changed: all changed.")] = None,
    prompts: Annotated[bool, Option(help="Also encode class names in the 28 CLIP prompts.")] = True,
    plan: Annotated[bool, Option("--plan", help="Try a few videos, estimate the whole job, write nothing.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print the summary or the plan as JSON.")] = False,
) -> None:
    """Decode videos, encode frames and texts with a frozen tower, write the tokens into a cache.

    Existing videos are skipped; the same command resumes a job that was interrupted.

    Example: unloc extract data/mr.jsonl --videos data/videos --cache data/cache --fps 4
    """
    from pipeline.decoding import Limits
    from pipeline.extract import ExtractOptions
    from pipeline.extract import extract as extract_videos
    from pipeline.forecast import forecast
    from unloc.annotations.schema import load_manifest
    from unloc.examples.texts import manifest_texts
    from unloc.inference.encode import EncodeConfig
    from unloc.video.locate import index_videos

    if (videos is None) == (shards is None):
        raise InputError("unloc extract: give one of --videos DIR and --shards 'videos-{000..127}.tar'")
    if plan and refresh:
        raise InputError("--plan: does not count what --refresh extracts again; give one of them")
    config = EncodeConfig(
        tower=tower,
        pretrained=pretrained,
        like=like,
        fps=2.0 if fps is None and frames is None else fps,
        num_frames=frames,
        views=tuple(views.split(",")),
        dtype=token_dtype,
        tower_dtype=dtype,
        frame_token=frame_token,
        projected=projection,
        texts_projected=text_projection,
        num_layers=last_k,
        decoder=decoder,
        allow_partial=allow_partial,
    )
    recycling = {"recycle_videos": recycle_after, "recycle_bytes": int(recycle_growth * GIB)}
    limits = Limits(timeout_seconds=timeout, memory_bytes=int(memory * GIB), **recycling)
    options = ExtractOptions(
        workers=workers,
        encoders=encoders,
        address=address,
        limits=limits,
        shard_size=shard_size,
        retry_failed=retry_failed,
        refresh=tuple(refresh or ()),
    )
    selected = load_manifest(manifest).select(split)
    table, texts = selected.videos, manifest_texts(selected, prompts=prompts)
    files, missing = index_videos(videos, shards).locate(table)
    if limit:
        files, missing = dict(islice(files.items(), limit)), []
    job = (cache, config, options, files, missing, texts)
    if plan:
        durations = dict(zip(table["video_id"], table["duration_seconds"].astype(float), strict=True))
        _print(forecast(*job, durations), as_json, "the sample's ledger rows: --json")
        return
    started = time.perf_counter()

    def on_progress(done: int, due: int, frames: int, failed: int) -> None:
        report(done, due, frames_per_second=f"{frames / (time.perf_counter() - started):.1f}", failed=failed)

    with shown_warnings("pipeline"), progress("extracting", "videos") as report, sigterm_as_interrupt():
        summary = extract_videos(*job, on_progress)
    _print(summary, as_json, f"{summary.cache}/ledger.jsonl")
    summary.require_coverage(coverage)


def _print(result: "Summary", as_json: bool, all_failures: str) -> None:
    """A summary or a forecast as a table or JSON, then its first failures."""
    table = "\n".join(f"{name:10} {value}" for name, value in result.lines())
    typer.echo(json.dumps(result.to_dict(), indent=1) if as_json else table)
    for row in result.failures[:SHOWN_FAILURES]:
        message = f"failed: {row['video_id']}: {row['reason']}: {row['message']}"
        typer.echo(" ".join(message.splitlines()), err=True)
    if len(result.failures) > SHOWN_FAILURES:
        typer.echo(f"and {len(result.failures) - SHOWN_FAILURES} more: {all_failures}", err=True)
