"""`unloc extract`: videos and texts into a cache."""

import json
import time
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from unloc.cli import TokenDtype, app
from unloc.cli.progress import echo_failures, progress, shown_warnings, sigterm_as_interrupt
from unloc.errors import InputError

if TYPE_CHECKING:
    from pipeline.cluster import ExtractOptions
    from unloc.inference.encode import EncodeConfig


@app.command()
def extract(
    manifest: Annotated[Path, Argument(help="Manifest of `unloc data convert`: a file or a URL.")],
    cache: Annotated[str, Option("--cache", "-c", help="Cache to write or extend: a folder, or s3://bucket/cache.")],
    videos: Annotated[Path | None, Option(help="Folder with the video files, or a URL: s3://bucket/videos.")] = None,
    shards: Annotated[str | None, Option(help="Tar files of `unloc data pack`: 'videos-{000..127}.tar'.")] = None,
    tower: Annotated[str, Option(help="toy, open_clip's (ViT-B-16), a package's, a run whose tower trained.")] = "toy",
    pretrained: Annotated[str | None, Option(help="Tag of open_clip, weights file, or none: random weights.")] = None,
    like: Annotated[str | None, Option(help="Tag whose activation and preprocessing a weights file has.")] = None,
    fps: Annotated[float | None, Option(help="Frames per second of video; 2 where --frames is not given.")] = None,
    num_frames: Annotated[int | None, Option("--frames", help="Number of frames, evenly over each video.")] = None,
    workers: Annotated[int, Option(min=-1, help="Ray workers that decode; 0: no Ray; -1: one per core.")] = -1,
    encoders: Annotated[int | None, Option(min=0, help="Ray workers that only encode (default: one per GPU).")] = None,
    address: Annotated[str | None, Option(help="Ray cluster to use: auto, or host:port.")] = None,
    split: Annotated[str | None, Option(help="Only this split.")] = None,
    limit: Annotated[int, Option(min=0, help="Only the first N videos; 0: all.")] = 0,
    decoder: Annotated[Literal["auto", "decord", "pyav"], Option(help="What decodes; auto: pyav.")] = "auto",
    tower_dtype: Annotated[str, Option("--dtype", help="Precision of the tower: float32, bfloat16, auto.")] = "float32",
    dtype: TokenDtype = "float16",
    views: Annotated[str, Option(help="Views of each frame, centre first: centre,flip,crop0,crop1.")] = "centre",
    frame_token: Annotated[str, Option(help="cls: class token; gap: mean of the patches.")] = "cls",
    projection: Annotated[bool, Option(help="Frame tokens after CLIP's projection, or before it.")] = True,
    text_projection: Annotated[bool, Option(help="Text tokens after CLIP's projection, or before it.")] = True,
    num_layers: Annotated[int, Option("--last-k", help="Concatenate the frame tokens of the last K layers.")] = 1,
    coverage: Annotated[float, Option(min=0, max=1, help="Fail where a smaller share of videos is cached.")] = 1.0,
    timeout: Annotated[float, Option(min=0.01, max=1e6, help="Seconds without progress that stop a decoder.")] = 600.0,
    memory: Annotated[float, Option(min=0.05, max=1e6, help="GiB that decoding one video may take.")] = 4.0,
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
    options = dict(locals())
    from pipeline.extract import extract as extract_into
    from pipeline.forecast import TABLE, forecast
    from unloc.annotations.schema import load_manifest
    from unloc.examples.sources import manifest_texts
    from unloc.video.locate import index_videos

    if (videos is None) == (shards is None):
        raise InputError("unloc extract: give one of --videos DIR and --shards 'videos-{000..127}.tar'")
    if plan and refresh:
        raise InputError("--plan: does not count what --refresh extracts again; give one of them")
    settings = _settings(options)
    selected = load_manifest(manifest).select(split)
    files, missing = index_videos(videos, shards).locate(selected.videos)
    if limit:
        files, missing = dict(islice(files.items(), limit)), []
    job = (cache, *settings, files, missing, manifest_texts(selected, prompts=prompts))
    if plan:
        values = forecast(*job, selected.stated_durations())
        table = {name: text.format(**values) for name, text in TABLE.items()}
        _print(values, table, as_json, "--plan --json")
        return
    started = time.perf_counter()

    def on_progress(done: int, due: int, frames: int, failed: int) -> None:
        report(done, due, frames_per_second=f"{frames / (time.perf_counter() - started):.1f}", failed=failed)

    with shown_warnings("pipeline"), progress("extracting", "videos") as report, sigterm_as_interrupt():
        summary = extract_into(*job, on_progress)
    _print(summary.to_dict(), summary.table(), as_json, f"{summary.cache}/ledger.jsonl")
    summary.require_coverage(coverage)


def _settings(options: dict) -> tuple["EncodeConfig", "ExtractOptions"]:
    """An option sets the field of its name; the others are converted here. The device decides the batch size."""
    from pipeline.cluster import ExtractOptions
    from pipeline.decoding import Limits
    from unloc.inference.encode import EncodeConfig

    def filled(kind: type) -> Any:
        return kind(**{field.name: values[field.name] for field in fields(kind)})

    fps = 2.0 if options["fps"] is None and options["num_frames"] is None else options["fps"]
    values = options | {"fps": fps, "views": tuple(options["views"].split(",")), "batch": None}
    values |= {"projected": options["projection"], "texts_projected": options["text_projection"]}
    limits = Limits(timeout_seconds=options["timeout"], memory_bytes=int(options["memory"] * (1 << 30)))
    values |= {"refresh": tuple(options["refresh"] or ()), "limits": limits}
    return filled(EncodeConfig), filled(ExtractOptions)


def _print(values: dict, table: dict, as_json: bool, all_failures: str) -> None:
    lines = [f"{name:10} {text}" for name, text in table.items()]
    typer.echo(json.dumps(values, indent=1) if as_json else "\n".join(lines))
    echo_failures(values["failures"], all_failures)
