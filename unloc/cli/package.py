"""`unloc package`: a run as a model folder that travels."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from unloc.cli import app
from unloc.cli.progress import shown_warnings


@app.command()
def package(
    run: Annotated[str, Argument(help="Run folder, or one of its checkpoints.")],
    out: Annotated[Path, Option("--out", "-o", help="Model folder to write.")],
    with_tower: Annotated[bool, Option("--with-tower", help="Put the weights of its tower in, too.")] = False,
    pretrained: Annotated[
        str | None,
        Option(help="These weights, where the recipe does not name them: a file, or the run that made them."),
    ] = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace a model folder.")] = False,
) -> None:
    """Write a model folder, which needs neither the run nor its cache: weights, recipe, classes, calibration, a card.

    Whatever takes a run takes it: predict, serve, eval, fit --init, extract --tower, unloc.load; from the Hugging Face
    Hub by its name there, owner/name. Without --with-tower, a tower from a weights file must be given again.

    Example: unloc package runs/one --out model
    """
    from unloc.training.package import package as write_package

    with shown_warnings("unloc"):
        write_package(run, out, with_tower=with_tower, pretrained=pretrained, overwrite=overwrite)
    files = [file for file in out.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files) / 1e6
    typer.echo(f"wrote {out}: {len(files)} files, {size:.1f} MB; its card is {out / 'README.md'}")
