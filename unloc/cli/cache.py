"""`unloc cache`: what is in a cache, and whether it is whole."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.errors import CacheError, InputError

if TYPE_CHECKING:
    from pipeline.restore import Repair
    from unloc.cache.audit import Audit
    from unloc.cache.mirror import Home
    from unloc.video.video_file import VideoFile

cache_app = typer.Typer(help="Describe and audit a cache.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")


@cache_app.command()
def info(
    cache: Annotated[str, typer.Argument(help="Cache folder, or URL: s3://bucket/cache.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
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
    cache: Annotated[str, typer.Argument(help="Cache folder, or URL: s3://bucket/cache.")],
    repair: Annotated[bool, typer.Option("--repair", help="Extract again what is damaged.")] = False,
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder with the video files, for --repair.")] = None,
    shards: Annotated[str | None, typer.Option("--shards", help="Tar files with the videos, for --repair.")] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Names files, texts and other ids, for --repair.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option("--pretrained", help="The weights file, for --repair.")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Ray workers of --repair; 0: in this process.")] = 0,
) -> None:
    """Read every byte again and compare checksums; exit code 2 where something is damaged.

    With --repair a damaged shard is written again: its intact videos are copied, the others extracted. What cannot be
    repaired is reported and stays as it is; lost texts and other ids of videos need --manifest.

    Example: unloc cache verify data/cache --repair --videos data/videos
    """
    if videos and shards:
        raise InputError("--repair: give one of --videos and --shards")
    from unloc.cache.audit import audit_cache
    from unloc.cache.opening import exact_copy
    from unloc.cache.reading import Cache
    from unloc.cache.shards import open_shards

    left = ()
    with exact_copy(cache) as home:
        if repair:
            done = _repair(home, videos, shards, manifest, pretrained, workers)
            audit, left = done.after, done.left
        else:
            audit = audit_cache(home.folder)
            _print_damages(audit)
        num_planned = 0 if audit.damages else sum(map(len, open_shards(Cache(home.folder)).values()))
    for message in left[1:]:
        typer.echo(f"not repaired: {message}", err=True)
    if audit.damages or left:
        advice = f"not repaired: {left[0]}" if left else "repair it with --repair and --videos DIR or --shards TARS"
        raise CacheError(f"{cache}: {len(audit.damages) or len(left)} places are damaged; {advice}")
    typer.echo(f"{cache}: {audit.num_videos} videos and {audit.num_texts} texts, all checksums match")
    if num_planned:
        typer.echo(f"{cache}: {num_planned} videos are planned and not written; `unloc extract` continues with them")


def _print_damages(audit: "Audit") -> None:
    for damage in audit.damages:
        typer.echo(f"damaged: {damage.place}: {damage.reason}", err=True)
        for video_id in damage.broken:
            typer.echo(f"damaged: {damage.place}: video {video_id}", err=True)


def _repair(
    home: "Home", videos: Path | None, shards: str | None, manifest: Path | None, pretrained: str | None, workers: int
) -> "Repair":
    from pipeline.extract import ExtractOptions
    from pipeline.restore import ManifestContent, repair
    from unloc.annotations.schema import load_manifest
    from unloc.examples.texts import manifest_texts
    from unloc.video.locate import VideoIndex, index_folder, index_shards

    index = index_folder(videos) if videos else index_shards(shards) if shards else VideoIndex()
    content, named = None, {}
    if manifest:
        loaded = load_manifest(manifest)
        named = index.locate(loaded.videos)[0]
        content = ManifestContent(named, manifest_texts(loaded, prompts=True))

    def find(video_id: str, file: str | None) -> "VideoFile | None":
        return named.get(video_id) or index.find(video_id, file)

    done = repair(home, find, ExtractOptions(workers=workers), manifest=content, pretrained=pretrained)
    _print_damages(done.before)
    for note in done.notes:
        typer.echo(note)
    if count := len(done.before.damages):
        typer.echo(f"repaired {count - len(done.after.damages)} of {count} places")
    return done


@cache_app.command()
def merge(
    out: Annotated[str, typer.Argument(help="Cache to create or extend; folder or URL.")],
    sources: Annotated[list[str], typer.Argument(help="Caches to read, all of one fingerprint.")],
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Videos per shard.")] = 512,
) -> None:
    """Join caches of the same tower and preprocessing; token bytes are copied, nothing is encoded again.

    Example: unloc cache merge data/all data/cache-machine1 data/cache-machine2
    """
    from unloc.cache.merge import merge as join

    done = join(out, sources, shard_size=shard_size)
    typer.echo(
        f"{out}: {done.videos} videos added, {done.cached_before} were cached before, {done.failed} failed in all "
        f"sources, {done.texts} texts added"
    )
