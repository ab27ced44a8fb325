"""`unloc data synth`: the rendered world."""

import os
from pathlib import Path
from typing import Annotated

import typer

from unloc.cli.data import data_app


@data_app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to write: videos/*.mp4 and annotations/ in official formats.")],
    videos: Annotated[int, typer.Option("--videos", help="Number of videos, 20-90 seconds each.")] = 60,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the world: the same seed gives the same files.")] = 0,
    workers: Annotated[int, typer.Option("--workers", help="Processes that render; -1: one a core.")] = -1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete another world that is there.")] = False,
) -> None:
    """Render the synthetic world: real H.264 videos and annotations of all four tasks.

    Finished videos are kept: the same command goes on where a killed one stopped.

    Example: unloc data synth data/world --videos 200 --seed 7
    """
    from unloc.cli.progress import video_bar
    from unloc.synth.world import render_world

    if workers < 0:
        workers = os.cpu_count() or 1
    with video_bar() as on_progress:
        render_world(out, num_videos=videos, seed=seed, workers=workers, overwrite=overwrite, on_progress=on_progress)
    typer.echo(f"{videos} videos in {out / 'videos'}, annotations in {out / 'annotations'}")
