"""`unloc cache`: what is in a cache, and whether it is whole."""

import json
from pathlib import Path
from typing import Annotated

import typer

from unloc.cli import app
from unloc.errors import CacheError

cache_app = typer.Typer(help="Describe and audit a cache.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(cache_app, name="cache")


@cache_app.command()
def info(
    cache: Annotated[Path, typer.Argument(help="Cache folder.")],
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
def verify(cache: Annotated[Path, typer.Argument(help="Cache folder.")]) -> None:
    """Read every token again and compare checksums; exit code 2 where a video is broken.

    Example: unloc cache verify data/cache
    """
    from pipeline.verify import broken_videos

    broken, checked = broken_videos(cache)
    for video_id, reason in broken.items():
        typer.echo(f"broken: {video_id}: {reason}", err=True)
    if broken:
        raise CacheError(f"{cache}: {len(broken)} of {checked} videos are broken; extract them into a new cache")
    typer.echo(f"{cache}: {checked} videos, every checksum holds")
