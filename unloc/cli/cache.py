"""`unloc cache`: what is in a cache, and whether it is whole."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.errors import CacheError, InputError

if TYPE_CHECKING:
    from pipeline.repair import FindFile
    from unloc.data.audit import Audit

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
    manifest: Annotated[Path | None, typer.Option("--manifest", help="Where it names the files, for --repair.")] = None,
    pretrained: Annotated[str | None, typer.Option("--pretrained", help="The weights file, for --repair.")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Ray workers of --repair; 0: in this process.")] = 0,
) -> None:
    """Read every byte again and compare checksums; exit code 2 where something is broken.

    With --repair only what is broken is extracted again; the mended cache has the bytes it had before.

    Example: unloc cache verify data/cache --repair --videos data/videos
    """
    if videos and shards:
        raise InputError("--repair: give one of --videos and --shards")
    from unloc.data.remote import exact_copy

    with exact_copy(cache) as home:
        if repair:
            with home.lease():
                audit = _repaired(home.folder, cache, _finder(videos, shards, manifest), pretrained, workers)
                home.publish()
        else:
            audit = _audited(home.folder)
        num_waiting = 0 if audit.damages else _num_waiting(home.folder)
    if audit.damages:
        way = "what is left cannot be mended" if repair else "mend it with --repair and --videos DIR or --shards TARS"
        raise CacheError(f"{cache}: {len(audit.damages)} places are broken; {way}")
    typer.echo(f"{cache}: {audit.num_videos} videos and {audit.num_texts} texts, every checksum holds")
    if num_waiting:
        typer.echo(f"{cache}: {num_waiting} videos are planned and not written; `unloc extract` goes on with them")


def _num_waiting(folder: Path) -> int:
    from pipeline.ledger import Plan
    from unloc.data.cache import open_cache

    return sum(map(len, Plan(folder).open_shards(open_cache(folder)).values()))


def _audited(folder: Path) -> "Audit":
    """What an audit finds, every damage told."""
    from unloc.data.audit import audit_cache

    audit = audit_cache(folder)
    for damage in audit.damages:
        typer.echo(f"broken: {damage.place}: {damage.reason}", err=True)
        for video_id in damage.broken:
            typer.echo(f"broken: {damage.place}: video {video_id}", err=True)
    return audit


def _repaired(folder: Path, name: str, find_file: "FindFile", pretrained: str | None, workers: int) -> "Audit":
    """What an audit finds after all that can be mended was."""
    from pipeline.extract import ExtractOptions
    from pipeline.repair import mend_array_metadata, mend_root, repair, waiting_files

    if mend_root(folder):
        typer.echo("broken: zarr.json: mended from its copy", err=True)
    if count := mend_array_metadata(folder):
        typer.echo(f"broken: frames/zarr.json of {count} shards: mended, no token of them was lost", err=True)
    before = _audited(folder)
    if not before.damages and not waiting_files(folder, find_file):
        return before
    repair(folder, before, find_file, ExtractOptions(workers=workers), pretrained=pretrained)
    audit = _audited(folder)
    typer.echo(f"{name}: mended {len(before.damages) - len(audit.damages)} of {len(before.damages)} places")
    return audit


def _finder(videos: Path | None, shards: str | None, manifest: Path | None) -> "FindFile":
    """Where a video's file is looked for: by the manifest, then by its id and the name that the cache knows."""
    from unloc.data.locate import VideoIndex, find_video_file, index_folder, index_shards, locate_files
    from unloc.data.schema import load_manifest

    index = index_folder(videos) if videos else index_shards(shards) if shards else VideoIndex([])
    named = locate_files(load_manifest(manifest), index)[0] if manifest else {}
    return lambda video_id, file: named.get(video_id) or find_video_file(index, video_id, file)


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
    from unloc.data.remote import local_copy, writable

    with writable(out) as folder:
        done = join(folder, [local_copy(source) for source in sources], shard_size=shard_size)
    typer.echo(
        f"{out}: {done.videos} videos added, {done.there_before} were there, {done.failed} failed in all sources, "
        f"{done.texts} texts added"
    )
