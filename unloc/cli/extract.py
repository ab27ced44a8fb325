"""`unloc extract`: videos and texts into a cache."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.errors import InputError

if TYPE_CHECKING:
    from pipeline.extract import Summary


@app.command()
def extract(
    manifest: Annotated[Path, typer.Argument(help="Manifest of `unloc data convert`.")],
    videos: Annotated[Path, typer.Option("--videos", help="Folder with the video files.")],
    cache: Annotated[Path, typer.Option("--cache", "-c", help="Cache folder to write or to add to.")],
    tower: Annotated[str, typer.Option("--tower", help="toy, or a model of open_clip: ViT-B-16.")] = "toy",
    pretrained: Annotated[
        str | None, typer.Option("--pretrained", help="open_clip's tag (openai) or a weights file.")
    ] = None,
    fps: Annotated[float | None, typer.Option("--fps", help="Frames per second of video.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames evenly over each video.")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Ray workers; 0: in this process; -1: one a core.")] = -1,
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster to use (auto, or host:port).")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only the first N videos; 0: all.")] = 0,
    decoder: Annotated[str, typer.Option("--decoder", help="auto, decord or pyav.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="float16 or float32 tokens.")] = "float16",
    coverage: Annotated[float, typer.Option("--coverage", min=0, max=1, help="Smallest share to be cached.")] = 1.0,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Longest seconds for one video.")] = 600.0,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Videos per shard.")] = 512,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Take what decodes of broken files.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed videos again.")] = False,
    prompts: Annotated[bool, typer.Option(help="Class names also in the 28 CLIP prompts.")] = True,
) -> None:
    """Decode videos, encode frames and texts with a frozen tower, write the tokens into a cache.

    What is there already is skipped; the same command goes on where a killed one stopped.

    Example: unloc extract data/mr.jsonl --videos data/videos --cache data/cache --fps 4
    """
    from unloc.data.locate import locate_videos
    from unloc.data.schema import load_manifest
    from unloc.data.texts import manifest_texts

    if fps is None and frames is None:
        fps = 2.0
    if workers < -1:
        raise InputError(f"--workers: got {workers}, expected -1 (one a core), 0 (in this process) or more")
    selected = load_manifest(manifest).select(split)
    files, missing = locate_videos(selected, videos)
    if limit:
        files, missing = dict(list(files.items())[:limit]), []
    texts = manifest_texts(selected, prompts=prompts)

    from pipeline.decoding import Limits
    from pipeline.extract import ExtractOptions
    from pipeline.extract import extract as run
    from unloc.cli.progress import video_bar
    from unloc.inference.encode import EncodeConfig

    config = EncodeConfig(
        tower=tower,
        pretrained=pretrained,
        fps=fps,
        num_frames=frames,
        dtype=dtype,
        decoder=decoder,
        allow_partial=allow_partial,
    )
    options = ExtractOptions(
        workers=_cores() if workers == -1 else workers,
        address=address,
        limits=Limits(timeout_seconds=timeout),
        shard_size=shard_size,
        coverage=coverage,
        retry_failed=retry_failed,
    )
    with video_bar() as on_progress:
        summary = run(cache, config, options, files, missing, texts, on_progress)
    _print_summary(summary, cache)


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0))


def _print_summary(summary: "Summary", cache: Path) -> None:
    rate = summary.frames / summary.seconds_wall if summary.seconds_wall else 0.0
    typer.echo(
        f"{cache}: {summary.cached_before + summary.cached_now} of {summary.videos} videos cached "
        f"({summary.cached_now} now, {summary.frames} frames, {rate:.0f} frames/s), {summary.texts_now} texts now; "
        f"{summary.seconds_wall:.1f} s wall, {summary.seconds_decode:.1f} s decode and resize, "
        f"{summary.seconds_encode:.1f} s encode"
    )
    for row in summary.failures[:20]:
        typer.echo(f"failed: {row['video_id']}: {row['reason']}: {row['message']}", err=True)
    if len(summary.failures) > 20:
        typer.echo(f"… and {len(summary.failures) - 20} more in {cache / 'ledger.jsonl'}", err=True)
    sys.stdout.flush()
