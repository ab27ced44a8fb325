"""`unloc cache`: what is in a cache, and whether it is whole."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.errors import CacheError, InputError

if TYPE_CHECKING:
    from pipeline.repair import FindFile, ManifestContent
    from unloc.cache.audit import Audit
    from unloc.cache.mirror import Home

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
    from pipeline.verify import describe

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
    repair: Annotated[bool, typer.Option("--repair", help="Extract what is broken again.")] = False,
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder with the video files, for --repair.")] = None,
    shards: Annotated[str | None, typer.Option("--shards", help="Tar files with the videos, for --repair.")] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="Names files, texts and other ids, for --repair.")
    ] = None,
    pretrained: Annotated[str | None, typer.Option("--pretrained", help="The weights file, for --repair.")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Ray workers of --repair; 0: in this process.")] = 0,
) -> None:
    """Read every byte again and compare checksums; exit code 2 where something is broken.

    With --repair a broken shard is written again: its intact videos are copied, the others extracted. What cannot be
    mended is named and stays as it is; lost texts and other ids of videos need --manifest.

    Example: unloc cache verify data/cache --repair --videos data/videos
    """
    if videos and shards:
        raise InputError("--repair: give one of --videos and --shards")
    from unloc.cache.remote import exact_copy

    with exact_copy(cache) as home:
        if repair:
            audit, left = _repaired(home, _Videos.read(videos, shards, manifest), pretrained, workers)
        else:
            audit, left = _audited(home.folder), ()
        num_waiting = 0 if audit.damages else _num_waiting(home.folder)
    for words in left[1:]:
        typer.echo(f"not mended: {words}", err=True)
    if audit.damages or left:
        way = f"not mended: {left[0]}" if left else "mend it with --repair and --videos DIR or --shards TARS"
        raise CacheError(f"{cache}: {len(audit.damages) or len(left)} places are broken; {way}")
    typer.echo(f"{cache}: {audit.num_videos} videos and {audit.num_texts} texts, every checksum holds")
    if num_waiting:
        typer.echo(f"{cache}: {num_waiting} videos are planned and not written; `unloc extract` goes on with them")


def _num_waiting(folder: Path) -> int:
    from pipeline.ledger import Plan
    from unloc.cache.reading import open_cache

    return sum(map(len, Plan(folder).open_shards(open_cache(folder)).values()))


def _audited(folder: Path) -> "Audit":
    """What an audit finds, every damage told."""
    from unloc.cache.audit import audit_cache

    audit = audit_cache(folder)
    _tell_damages(audit)
    return audit


def _tell_damages(audit: "Audit") -> None:
    for damage in audit.damages:
        typer.echo(f"broken: {damage.place}: {damage.reason}", err=True)
        for video_id in damage.broken:
            typer.echo(f"broken: {damage.place}: video {video_id}", err=True)


def _repaired(home: "Home", videos: "_Videos", pretrained: str | None, workers: int) -> tuple["Audit", tuple[str, ...]]:
    """What an audit finds after all that can be mended was, and what was not."""
    from pipeline.extract import ExtractOptions
    from pipeline.repair import repair

    options = ExtractOptions(workers=workers)
    done = repair(home, videos.find, options, manifest=videos.manifest, pretrained=pretrained)
    _tell_damages(done.before)
    for words in done.told:
        typer.echo(words)
    if count := len(done.before.damages):
        typer.echo(f"mended {count - len(done.after.damages)} of {count} places")
    return done.after, done.left


@dataclass(frozen=True)
class _Videos:
    """Where a repair finds the files of videos."""

    find: "FindFile"
    """By the manifest, then by the id and the name that the cache knows."""
    manifest: "ManifestContent | None"

    @classmethod
    def read(cls, videos: Path | None, shards: str | None, manifest: Path | None) -> "_Videos":
        from pipeline.repair import ManifestContent
        from unloc.annotations.schema import load_manifest
        from unloc.examples.texts import manifest_texts
        from unloc.video.locate import VideoIndex, index_folder, index_shards

        index = index_folder(videos) if videos else index_shards(shards) if shards else VideoIndex()
        content = None
        if manifest:
            loaded = load_manifest(manifest)
            content = ManifestContent(index.locate(loaded.videos)[0], manifest_texts(loaded, prompts=True))
        named = content.files if content else {}
        return cls(lambda video_id, file: named.get(video_id) or index.find(video_id, file), content)


@cache_app.command()
def merge(
    out: Annotated[str, typer.Argument(help="Cache to write or to add to; folder or URL.")],
    sources: Annotated[list[str], typer.Argument(help="Caches to read, all of one fingerprint.")],
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Videos per shard.")] = 512,
) -> None:
    """Join caches of the same tower and preprocessing; token bytes are copied, nothing is encoded again.

    Example: unloc cache merge data/all data/cache-machine1 data/cache-machine2
    """
    from pipeline.merge import merge as join
    from unloc.cache.remote import local_copy, writable

    with writable(out) as folder:
        done = join(folder, [local_copy(source) for source in sources], shard_size=shard_size)
    typer.echo(
        f"{out}: {done.videos} videos added, {done.there_before} were there, {done.failed} failed in all sources, "
        f"{done.texts} texts added"
    )
