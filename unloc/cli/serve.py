"""`unloc serve`: a page in the browser, for this machine only."""

import threading
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer
from typer import Option

from unloc.cli import app
from unloc.cli.progress import shown_warnings, sigterm_as_interrupt
from unloc.errors import MissingError

LEAST_GRADIO = (6, 17)  # earlier ones wait for other machines


@app.command()
def serve(
    checkpoint: Annotated[str, Option(help="Run, model folder, Hub name; toy: shipped; none: similarity (--tower).")],
    port: Annotated[int | None, Option(min=1, max=65535, help="Default: the first free one from 7860 on.")] = None,
    task: Annotated[str | None, Option(help="Of a checkpoint of several tasks, or of toy: mr, tal or as.")] = None,
    tower: Annotated[str | None, Option(help="With --checkpoint none: toy, or open_clip's name.")] = None,
    pretrained: Annotated[str | None, Option(help="The tower's weights: tag of open_clip, file, or run.")] = None,
    max_mb: Annotated[int, Option(min=1, help="Largest video that is taken.")] = 2000,
    max_minutes: Annotated[float, Option(min=0.01, help="Longest video that is taken.")] = 60.0,
    cache: Annotated[str | None, Option(help="Cache that keeps tokens (default: below ~/.cache/unloc).")] = None,
    device: Annotated[str, Option(help="auto (CUDA if there is one), cpu, cuda:1, …")] = "auto",
) -> None:
    """A page at 127.0.0.1: drop a video, type words, see the timeline of `unloc report`, download it; and a JSON API.

    Nothing leaves this machine. Ctrl-C stops it.

    Example: unloc serve --checkpoint toy
    """
    try:
        found = tuple(int(number) for number in version("gradio").split(".")[:2])
    except PackageNotFoundError:
        found = None
    if found is None or found < LEAST_GRADIO:
        has = "is not installed" if found is None else f"{version('gradio')} is too old"
        raise MissingError(f"unloc serve: needs gradio 6.17 or newer, which {has}: pip install 'unloc[serve]'")
    from unloc.inference.video_model import load
    from unloc.report.app import served

    with shown_warnings("unloc"):
        model = load(checkpoint, task=task, tower=tower, pretrained=pretrained, cache=cache, device=device)
        with served(model, port=port, max_mb=max_mb, max_minutes=max_minutes) as address, sigterm_as_interrupt():
            typer.echo(f"serving {checkpoint} at {address} (JSON API: docs/serve.md); Ctrl-C stops")
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
