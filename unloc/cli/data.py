"""`unloc data`: render a world, convert official annotations, check a manifest."""

import typer

from unloc.cli import app

data_app = typer.Typer(
    help="Render a world, convert official annotations, check a manifest.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")
