"""`unloc extract`: videos and texts into a cache."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from unloc.cli import app
from unloc.cli.progress import progress, shown_warnings, sigterm_as_interrupt
from unloc.errors import InputError

if TYPE_CHECKING:
    from pipeline.extract import ExtractOptions
    from pipeline.summary import Summary
    from unloc.inference.encode import EncodeConfig

SHOWN_FAILURES = 20
GIB = 1 << 30


@app.command()
def extract(
    manifest: Annotated[Path, Argument(help="Manifest of `unloc data convert`: a file or a URL.")],
    cache: Annotated[str, Option("--cache", "-c", help="Cache to write or extend: a folder, or s3://bucket/cache.")],
    videos: Annotated[
        Path | None, Option("--videos", help="Folder with the video files, or a URL: s3://bucket/videos.")
    ] = None,
    shards: Annotated[
        str | None, Option("--shards", help="Tar files of `unloc data pack` instead: 'videos-{000..127}.tar'.")
    ] = None,
    tower: Annotated[str, Option("--tower", help="toy, or a model of open_clip: ViT-B-16.")] = "toy",
    pretrained: Annotated[
        str | None, Option("--pretrained", help="Tag of open_clip (openai), weights file, or none: random weights.")
    ] = None,
    like: Annotated[
        str | None,
        Option("--like", help="For a weights file: the tag whose activation and preprocessing it was trained with."),
    ] = None,
    fps: Annotated[
        float | None, Option("--fps", help="Frames per second of video; 2 where --frames is not given.")
    ] = None,
    frames: Annotated[int | None, Option("--frames", help="Number of frames, evenly over each video.")] = None,
    workers: Annotated[
        int, Option("--workers", min=-1, help="Ray workers that decode; 0: no Ray; -1: one per core.")
    ] = -1,
    encoders: Annotated[
        int | None, Option("--encoders", min=0, help="Ray workers that only encode; default: one per GPU.")
    ] = None,
    address: Annotated[str | None, Option("--address", help="Ray cluster to use: auto, or host:port.")] = None,
    split: Annotated[str | None, Option("--split", help="Only this split.")] = None,
    limit: Annotated[int, Option("--limit", min=0, help="Only the first N videos; 0: all.")] = 0,
    decoder: Annotated[str, Option("--decoder", help="auto, decord or pyav.")] = "auto",
    dtype: Annotated[
        str, Option("--dtype", help="Precision of the tower: float32, bfloat16, or auto: bfloat16 where it is fast.")
    ] = "float32",
    token_dtype: Annotated[
        str, Option("--token-dtype", help="How tokens are stored: float16, float32 or bfloat16.")
    ] = "float16",
    views: Annotated[
        str, Option("--views", help="Views of each frame, centre first: centre,flip,crop0,crop1.")
    ] = "centre",
    frame_token: Annotated[str, Option("--frame-token", help="cls: class token; gap: mean of the patches.")] = "cls",
    projection: Annotated[bool, Option(help="Frame tokens after CLIP's projection, or before it.")] = True,
    text_projection: Annotated[bool, Option(help="Text tokens after CLIP's projection, or before it.")] = True,
    last_k: Annotated[int, Option("--last-k", help="Concatenate the frame tokens of the last K layers.")] = 1,
    coverage: Annotated[
        float, Option("--coverage", min=0, max=1, help="Fail where a smaller share of the videos is cached.")
    ] = 1.0,
    timeout: Annotated[
        float, Option("--timeout", min=0.01, max=1e6, help="Seconds without progress after which a decoder is stopped.")
    ] = 600.0,
    memory: Annotated[
        float, Option("--memory", min=0.05, max=1e6, help="GiB of memory that decoding one video may take.")
    ] = 4.0,
    recycle_after: Annotated[
        int, Option("--recycle-after", min=1, help="Videos after which a decoder process is replaced.")
    ] = 500,
    recycle_growth: Annotated[
        float, Option("--recycle-growth", min=0, max=1e6, help="GiB of growth after which it is replaced.")
    ] = 1.0,
    shard_size: Annotated[int, Option("--shard-size", min=1, help="Videos per shard.")] = 512,
    allow_partial: Annotated[
        bool, Option("--allow-partial", help="Keep the readable part of truncated or damaged videos.")
    ] = False,
    retry_failed: Annotated[bool, Option("--retry-failed", help="Try videos again that failed before.")] = False,
    refresh: Annotated[
        list[str] | None,
        Option("--refresh", help="Extract this cached video again; changed: all whose file changed. Repeatable."),
    ] = None,
    prompts: Annotated[bool, Option(help="Also encode class names in the 28 CLIP prompts.")] = True,
    plan: Annotated[
        bool, Option("--plan", help="Try a few videos, estimate the whole job, and write nothing.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Print the summary or the plan as JSON.")] = False,
) -> None:
    """Decode videos, encode frames and texts with a frozen tower, write the tokens into a cache.

    Existing videos are skipped; the same command resumes a job that was interrupted.

    Example: unloc extract data/mr.jsonl --videos data/videos --cache data/cache --fps 4
    """
    from pipeline.decoding import Limits
    from pipeline.extract import ExtractOptions, require_coverage
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
    options = ExtractOptions(
        workers=workers,
        encoders=encoders,
        address=address,
        limits=Limits(
            timeout_seconds=timeout,
            memory_bytes=int(memory * GIB),
            recycle_videos=recycle_after,
            recycle_bytes=int(recycle_growth * GIB),
        ),
        shard_size=shard_size,
        coverage=coverage,
        retry_failed=retry_failed,
        refresh=tuple(refresh or ()),
    )
    selected = load_manifest(manifest).select(split)
    table, texts = selected.videos, manifest_texts(selected, prompts=prompts)
    files, missing = index_videos(videos, shards).locate(table)
    if limit:
        files, missing = dict(list(files.items())[:limit]), []
    if plan:
        durations = dict(zip(table["video_id"], table["duration_seconds"].astype(float), strict=True))
        planned = forecast(cache, config, options, files, missing, texts, durations)
        _print(planned, as_json, "the sample's ledger rows: --json")
    else:
        summary = _run(cache, config, options, files, missing, texts)
        _print(summary, as_json, f"{summary.cache}/ledger.jsonl")
        require_coverage(summary, options)


def _run(cache: str, config: "EncodeConfig", options: "ExtractOptions", *inputs: object) -> "Summary":
    from pipeline.extract import run_job

    started = time.perf_counter()
    with shown_warnings("pipeline"), progress("extracting", "videos") as report, sigterm_as_interrupt():

        def on_progress(done: int, due: int, frames: int, failed: int) -> None:
            rate = frames / (time.perf_counter() - started)
            report(done, due, frames_per_second=f"{rate:.1f}", failed=failed)

        return run_job(cache, config, options, *inputs, on_progress)


def _print(result: "Summary", as_json: bool, all_failures: str) -> None:
    """A summary or a forecast as a table or JSON, then its first failures."""
    table = "\n".join(f"{name:10} {value}" for name, value in result.lines())
    typer.echo(json.dumps(result.to_dict(), indent=1) if as_json else table)
    for row in result.failures[:SHOWN_FAILURES]:
        message = f"failed: {row['video_id']}: {row['reason']}: {row['message']}"
        typer.echo(" ".join(message.splitlines()), err=True)
    if len(result.failures) > SHOWN_FAILURES:
        typer.echo(f"and {len(result.failures) - SHOWN_FAILURES} more: {all_failures}", err=True)
