"""`unloc data`: render, convert and check datasets."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.errors import ManifestError

if TYPE_CHECKING:
    from unloc.data.schema import Manifest

data_app = typer.Typer(help="Render, convert and check datasets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to render into.")],
    videos: Annotated[int, typer.Option("--videos", min=1, help="How many videos.")] = 60,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The world's seed.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: one a core.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a world of another seed.")] = False,
) -> None:
    """Render the synthetic world: videos, and annotations in the official formats.

    Example: unloc data synth data/world --videos 60 --seed 0
    """
    import os

    from unloc.cli.progress import count_bar
    from unloc.synth.world import render_world

    with count_bar("video") as on_progress:
        render_world(
            out,
            num_videos=videos,
            seed=seed,
            workers=workers or len(os.sched_getaffinity(0)),
            overwrite=overwrite,
            on_progress=on_progress,
        )
    typer.echo(f"{out}: {videos} videos in {out / 'videos'}, annotations in {out / 'annotations'}")


@data_app.command(context_settings={"allow_extra_args": True})
def convert(
    context: typer.Context,
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT", help="activitynet, activitynet-captions, charades-sta, qvhighlights, coin or thumos14."
        ),
    ],
    annotations: Annotated[list[Path], typer.Option("--annotations", help="Official files or folders, one or more.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write.")],
    split: Annotated[str | None, typer.Option("--split", help="Keep or name this split.")] = None,
    bad_rows: Annotated[str, typer.Option("--bad-rows", help="keep, repair (cut to the video) or drop.")] = "keep",
) -> None:
    """Convert official annotations into a manifest.

    Example: unloc data convert charades-sta --annotations charades_sta_test.txt Charades_v1_test.csv --out test.jsonl
    """
    from unloc.data.check import apply_rule
    from unloc.data.converters import convert as convert_files
    from unloc.data.schema import save_manifest

    paths = [*annotations, *map(Path, context.args)]
    manifest = convert_files(format_name, paths, split)
    if manifest.videos.empty:
        raise ManifestError(f"{paths[0]}: no video{f' of split {split!r}' if split else ''} in these annotations")
    manifest, changed = apply_rule(manifest, bad_rows)
    save_manifest(manifest, out)
    print_counts(manifest)
    _print_findings(manifest)
    for kind, count in changed.items():
        typer.echo(f"--bad-rows {bad_rows}: {count} × {kind}")
    typer.echo(f"wrote {out}")


def print_counts(manifest: "Manifest") -> None:
    """Videos, queries, windows and instances of every split."""
    typer.echo(f"{manifest.name}: tasks {', '.join(manifest.tasks)}; {len(manifest.classes)} classes")
    for split in manifest.splits:
        part = manifest.select(split)
        windows = int(part.queries["segments"].map(len).sum()) if len(part.queries) else 0
        typer.echo(
            f"  {split}: {len(part.videos)} videos, {len(part.queries)} queries with {windows} windows, "
            f"{len(part.instances)} instances"
        )


def _print_findings(manifest: "Manifest") -> Counter:
    from unloc.data.check import findings

    found = findings(manifest)
    first = {}
    for item in found:
        first.setdefault(item.kind, item)
    kinds = Counter(item.kind for item in found)
    for kind, count in kinds.items():
        typer.echo(f"  {count} × {kind} (first: line {first[kind].line}: {first[kind].words})")
    return kinds


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check.")],
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder that should hold its videos.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every finding as JSON.")] = False,
) -> None:
    """Counts, bad rows with file and line, coverage of the video folder; exit code 1 where anything is wrong.

    Example: unloc data check data/mr.jsonl --videos data/videos
    """
    from unloc.data.check import findings
    from unloc.data.schema import load_manifest

    loaded = load_manifest(manifest)
    found = findings(loaded, videos)
    if as_json:
        typer.echo(json.dumps([{**vars(item), "file": str(manifest)} for item in found], indent=1, ensure_ascii=False))
    else:
        print_counts(loaded)
        for item in found:
            typer.echo(f"{manifest}:{item.line}: {item.kind}: {item.words}")
        counted = ", ".join(f"{count} × {kind}" for kind, count in Counter(item.kind for item in found).items())
        typer.echo(f"{len(found)} bad rows{': ' + counted if counted else ''}")
    if found:
        raise typer.Exit(1)
