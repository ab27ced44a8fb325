"""`unloc cache import`: other projects' features into a cache."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli.cache import cache_app
from unloc.errors import InputError

if TYPE_CHECKING:
    from unloc.cache.features import ImportSummary, Timing

CLIP_SECONDS = {"moment-detr": 2.0, "univtg": 2.0}  # QVHighlights' clips, which their feature files follow
WINDOWED = ("actionformer", "opentad")


@cache_app.command("import")
def import_command(
    format_name: Annotated[
        str,
        typer.Argument(metavar="FORMAT", help="moment-detr univtg actionformer opentad hdf5 or clip-video-encode."),
    ],
    source: Annotated[Path, typer.Argument(help="Folder of files, or one file.")],
    cache: Annotated[str, typer.Option("--cache", "-c", help="Cache to create or extend; folder or URL.")],
    origin: Annotated[str, typer.Option("--origin", help="Who made them with which tower, in words.")],
    manifest: Annotated[Path | None, typer.Option("--manifest", help="Only its videos; checks the times.")] = None,
    clip_seconds: Annotated[float | None, typer.Option("--clip-seconds", help="One token per clip this long.")] = None,
    fps: Annotated[float | None, typer.Option("--fps", help="Frame rate that --stride and --window count in.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="Frames from token to token.")] = None,
    window: Annotated[int | None, typer.Option("--window", min=1, help="Frames that a token looks at.")] = None,
    even: Annotated[bool, typer.Option("--even", help="Tokens share each video's duration evenly.")] = False,
    texts: Annotated[Path | None, typer.Option("--texts", help="Folder of QID.npz with the queries' tokens.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Name of the array inside a file.")] = None,
    transposed: Annotated[bool, typer.Option("--transposed", help="Files hold (channels, tokens).")] = False,
    token_dtype: Annotated[str, typer.Option("--token-dtype", help="float16, float32 or bfloat16.")] = "float16",
) -> None:
    """Read features of other projects; their times are stated here, their origin identifies the cache.

    Example: unloc cache import actionformer i3d/ --cache data/i3d --origin "I3D" --fps 30 --stride 4 --window 16
    """
    from unloc.annotations.schema import load_manifest
    from unloc.cache.features import ImportConfig, import_features

    timing = _timing(format_name, clip_seconds, fps, stride, window, even)
    config = ImportConfig(
        format=format_name, origin=origin, timing=timing, dtype=token_dtype, dataset=dataset, transposed=transposed
    )
    if texts and not manifest:
        raise InputError("--texts: needs --manifest, which says which sentence each query id is")
    durations, queries = None, ()
    if manifest:
        loaded = load_manifest(manifest)
        videos = loaded.videos.drop_duplicates("video_id")
        queries = zip(loaded.queries["qid"].astype(str), loaded.queries["text"], strict=True)
        durations = dict(zip(videos["video_id"], videos["duration_seconds"].astype(float), strict=True))
    summary = import_features(cache, source, config, durations=durations, queries=queries, texts=texts)
    _print_summary(summary, cache)


def _timing(
    format_name: str, clip_seconds: float | None, fps: float | None, stride: int | None, window: int | None, even: bool
) -> "Timing":
    from unloc.cache.features import FORMATS, Timing

    if format_name not in FORMATS:
        raise InputError(f"FORMAT: got {format_name!r}, expected one of {', '.join(FORMATS)}")
    if (clip_seconds is not None) + (fps is not None) + even > 1:
        raise InputError("timing: give one of --clip-seconds, --fps (with --stride and --window) and --even")
    if even:
        return Timing()
    if fps is not None:
        if not fps > 0:
            raise InputError(f"--fps: got {fps}, expected a positive number of frames per second")
        if format_name in WINDOWED and not (stride and window):
            raise InputError(f"--fps: {format_name} features need --stride and --window too, in frames")
        return Timing(spacing_seconds=(stride or 1) / fps, span_seconds=(window or 0) / fps)
    clip_seconds = CLIP_SECONDS.get(format_name) if clip_seconds is None else clip_seconds
    if clip_seconds is None:
        raise InputError(f"timing: {format_name} files state no times; give --clip-seconds, --fps or --even")
    return Timing(spacing_seconds=clip_seconds, span_seconds=clip_seconds)


def _print_summary(summary: "ImportSummary", cache: str) -> None:
    typer.echo(
        f"{cache}: {summary.videos} videos imported, {summary.cached_before} were cached before, "
        f"{len(summary.failures)} failed, {len(summary.missing)} of the manifest are not in the source, "
        f"{summary.texts} texts"
    )
    for row in summary.failures[:20]:
        typer.echo(f"failed: {row['video_id']}: {row['reason']}: {row['message']}", err=True)
    if summary.missing:
        typer.echo(f"not in the source: {', '.join(summary.missing[:20])}", err=True)
    if summary.failures:
        raise InputError(f"{cache}: {len(summary.failures)} files could not be imported; the others are in the cache")
