"""`unloc cache`: describe, verify, merge and import caches."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from unloc.cli import TokenDtype, app
from unloc.cli.progress import SHOWN_FAILURES, echo_failures, progress
from unloc.errors import CacheError, InputError

Format = Literal["moment-detr", "univtg", "actionformer", "opentad", "hdf5", "clip-video-encode"]
CacheFolder = Annotated[str, Argument(help="Cache folder, or URL: s3://bucket/cache.")]

cache_app = typer.Typer(help="Describe, verify, merge and import caches.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")


@cache_app.command()
def info(cache: CacheFolder, as_json: Annotated[bool, Option("--json", help="Print JSON.")] = False) -> None:
    """What made the cache and how full it is.

    Example: unloc cache info data/cache
    """
    from unloc.cache.opening import describe

    described = describe(cache)
    if as_json:
        typer.echo(json.dumps(described, indent=1))
        return
    for section, values in described.items():
        typer.echo(section)
        for key, value in values.items():
            typer.echo(f"  {key:28} {value}")


@cache_app.command()
def verify(
    cache: CacheFolder,
    repair: Annotated[bool, Option("--repair", help="Extract damaged shards again.")] = False,
    videos: Annotated[Path | None, Option(help="Folder with the video files, for --repair.")] = None,
    shards: Annotated[str | None, Option(help="Tar files with the videos, for --repair.")] = None,
    manifest: Annotated[Path | None, Option(help="Which file, texts and other ids a video has, for --repair.")] = None,
    pretrained: Annotated[str | None, Option(help="The weights file, for --repair.")] = None,
    workers: Annotated[int, Option(help="Ray workers of --repair; 0: in this process.")] = 0,
) -> None:
    """Read every byte and compare checksums; exit code 2 where something is damaged.

    With --repair a damaged shard is written again: its intact videos are copied, the others extracted. What cannot be
    repaired is reported and stays as it is; lost texts and other ids of videos need --manifest.

    Example: unloc cache verify data/cache --repair --videos data/videos
    """
    if videos and shards:
        raise InputError("--repair: give one of --videos and --shards")
    from unloc.cache.opening import exact_copy
    from unloc.cache.reading import Cache
    from unloc.cache.shards import open_shards
    from unloc.cache.writing import audit_cache

    left, notes = [], []
    with exact_copy(cache) as home, progress("verifying", "shards") as on_progress:
        if repair:
            from pipeline.extract import ExtractOptions
            from pipeline.repair import Repair
            from unloc.annotations.schema import load_manifest
            from unloc.examples.sources import manifest_texts
            from unloc.video.locate import index_videos

            index, files, texts = index_videos(videos, shards), None, ()
            if manifest:
                loaded = load_manifest(manifest)
                files, texts = index.locate(loaded.videos)[0], manifest_texts(loaded, prompts=True)
            done = Repair(home, index.find, ExtractOptions(workers=workers), files, texts, pretrained).run(on_progress)
            found, audit, left, notes = done.before, done.after, done.left, done.notes
        else:
            found = audit = audit_cache(home.folder, on_progress)
        num_planned = 0 if audit.damages else sum(map(len, open_shards(Cache(home.folder)).values()))
    for damage in found.damages:
        for reason in (damage.reason, *(f"video {one}" for one in damage.broken)):
            typer.echo(f"damaged: {damage.place}: {reason}", err=True)
    for note in notes:
        typer.echo(note)
    if repair and (count := len(found.damages)):
        typer.echo(f"repaired {count - len(audit.damages)} of {count} places")
    for message in left[1:]:
        typer.echo(f"not repaired: {message}", err=True)
    if audit.damages or left:
        advice = f"not repaired: {left[0]}" if left else "repair it with --repair and --videos DIR or --shards TARS"
        raise CacheError(f"{cache}: {len(audit.damages) or len(left)} places are damaged; {advice}")
    typer.echo(f"{cache}: {audit.num_videos} videos and {audit.num_texts} texts, all checksums match")
    if num_planned:
        typer.echo(f"{cache}: {num_planned} videos are planned and not written; `unloc extract` continues with them")


@cache_app.command()
def merge(
    out: Annotated[str, Argument(help="Cache to create or extend; folder or URL.")],
    sources: Annotated[list[str], Argument(help="Caches to read, all of one fingerprint.")],
    shard_size: Annotated[int, Option("--shard-size", min=1, help="Videos per shard.")] = 512,
) -> None:
    """Join caches of the same tower and preprocessing; token bytes are copied, nothing is encoded again.

    Example: unloc cache merge data/all data/cache-machine1 data/cache-machine2
    """
    from unloc.cache.merge import merge as join

    with progress("merging", "videos") as on_progress:
        done = join(out, sources, shard_size=shard_size, on_progress=on_progress)
    counts = f"{done.videos} videos added, {done.cached_before} were cached before"
    typer.echo(f"{out}: {counts}, {len(done.failures)} failed in all sources, {done.texts} texts added")


@cache_app.command("import")
def import_command(
    format_name: Annotated[Format, Argument(metavar="FORMAT", help="Project or container of the files.")],
    source: Annotated[Path, Argument(help="Folder of files, or one file.")],
    cache: Annotated[str, Option("--cache", "-c", help="Cache to create or extend; folder or URL.")],
    origin: Annotated[str, Option(help="In words: who made the features, and with which tower.")],
    manifest: Annotated[Path | None, Option(help="Only its videos; checks the times.")] = None,
    clip_seconds: Annotated[float | None, Option(min=1e-6, help="Length of a clip; one token each.")] = None,
    fps: Annotated[float | None, Option(min=1e-6, help="Frame rate that --stride and --window refer to.")] = None,
    stride: Annotated[int | None, Option(min=1, help="Frames from one token to the next.")] = None,
    window: Annotated[int | None, Option(min=1, help="Frames that a token covers.")] = None,
    even: Annotated[bool, Option("--even", help="Tokens divide each video's duration evenly.")] = False,
    texts: Annotated[Path | None, Option(help="Folder of QID.npz with the queries' tokens.")] = None,
    dataset: Annotated[str | None, Option(help="Name of the array inside a file.")] = None,
    transposed: Annotated[bool, Option("--transposed", help="Files hold (channels, tokens).")] = False,
    token_dtype: TokenDtype = "float16",
) -> None:
    """Import features of other projects; options give their times, --origin identifies the cache.

    Example: unloc cache import actionformer i3d/ --cache data/i3d --origin "I3D" --fps 30 --stride 4 --window 16
    """
    from unloc.annotations.schema import load_manifest
    from unloc.cache.features import ImportConfig, import_features

    if (clip_seconds is not None) + (fps is not None) + even > 1:
        raise InputError("timing: give one of --clip-seconds, --fps (with --stride and --window) and --even")
    if clip_seconds is None and format_name in ("moment-detr", "univtg"):
        clip_seconds = 2.0  # their feature files have one token per clip of QVHighlights
    if fps is not None:
        if format_name in ("actionformer", "opentad") and not (stride and window):
            raise InputError(f"--fps: {format_name} features need --stride and --window too, in frames")
        timing = {"spacing_seconds": (stride or 1) / fps, "span_seconds": (window or 0) / fps}
    elif clip_seconds is not None and not even:
        timing = {"spacing_seconds": clip_seconds, "span_seconds": clip_seconds}
    elif even:
        timing = {}
    else:
        raise InputError(f"timing: {format_name} files state no times; give --clip-seconds, --fps or --even")
    arrays = {"dtype": token_dtype, "dataset": dataset, "transposed": transposed}
    config = ImportConfig(format=format_name, origin=origin, **timing, **arrays)
    if texts and not manifest:
        raise InputError("--texts: needs --manifest, which says which sentence each query id is")
    durations, queries = None, ()
    if manifest:
        loaded = load_manifest(manifest)
        queries = zip(loaded.queries["qid"].astype(str), loaded.queries["text"], strict=True)
        durations = loaded.stated_durations()
    given = {"durations": durations, "queries": queries, "texts": texts}
    with progress("importing", "videos") as on_progress:
        done = import_features(cache, source, config, **given, on_progress=on_progress)
    counts = f"{done.videos} videos imported, {done.cached_before} were cached before, {len(done.failures)} failed"
    typer.echo(f"{cache}: {counts}, {len(done.missing)} of the manifest are not in the source, {done.texts} texts")
    echo_failures(done.failures, f"unloc cache info {cache} counts them by reason")
    if done.missing:
        typer.echo(f"not in the source: {', '.join(done.missing[:SHOWN_FAILURES])}", err=True)
    if done.failures:
        raise InputError(f"{cache}: {len(done.failures)} files could not be imported; the others are in the cache")
