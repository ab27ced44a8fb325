"""`unloc data pack`: a folder of videos into tar shards."""

from pathlib import Path
from typing import Annotated

import typer

from unloc.cli.data import data_app


@data_app.command()
def pack(
    manifest: Annotated[Path, typer.Argument(help="Manifest whose videos are packed, in its order.")],
    videos: Annotated[Path, typer.Option("--videos", help="Folder with the video files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for videos-000000.tar and so on.")],
    shard_gib: Annotated[
        float, typer.Option("--shard-gib", min=1e-6, max=1e6, help="Most GiB of videos in a shard.")
    ] = 1.0,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
) -> None:
    """Pack videos into WebDataset tar shards, which `unloc extract --shards` reads in place.

    Example: unloc data pack data/mr.jsonl --videos data/videos --out data/shards
    """
    from unloc.annotations.schema import load_manifest
    from unloc.cli.progress import progress
    from unloc.video.locate import locate_videos
    from unloc.video.packing import pack_videos

    selected = load_manifest(manifest).select(split)
    files, missing = locate_videos(selected.videos, videos)
    with progress("packing", "shards") as on_progress:
        done = pack_videos(selected.videos, files, out, shard_bytes=int(shard_gib * 2**30), on_progress=on_progress)
    typer.echo(
        f"{out}: {done.videos} videos, {done.bytes / 1e6:.1f} MB, in {done.shards} shards ({done.written_now} written "
        f"now); {len(missing)} videos of the manifest have no file\nextract them with --shards '{done.pattern}'"
    )
    for video_id in missing[:20]:
        typer.echo(f"missing: {video_id}", err=True)
