"""`unloc compare` and `unloc report`: is one run better than another, and a page that shows a run or predictions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.cli.progress import progress, shown_warnings
from unloc.errors import InputError

if TYPE_CHECKING:
    from unloc.report.content import Material as PageMaterial

Argument, Option = typer.Argument, typer.Option
MOST_MOMENTS = 100  # of a video in all, of which a page shows the --top of each query or class
Manifest = Annotated[Path | None, Option("--manifest", "-m", help="Manifest; by default the one that was scored.")]
Cache = Annotated[Path | None, Option("--cache", "-c", help="Cache with durations that the manifest does not state.")]
Split = Annotated[str | None, Option(help="Split, where a run has several evaluations, or of a file.")]
Task = Annotated[str | None, Option(help="mr, tal, as, hd or cls, where a run has several, or of a file.")]


@app.command()
def compare(
    run_a: Annotated[Path, Argument(help="Run, its metrics.json, or a file of predictions.")],
    run_b: Annotated[Path, Argument(help="The same of another model on the same split.")],
    manifest: Manifest = None,
    split: Split = None,
    task: Task = None,
    cache: Cache = None,
    draws: Annotated[int, Option(min=100, max=100_000, help="Resamples of the videos.")] = 1000,
    seed: Annotated[int, Option(min=0, help="Seed of the resamples.")] = 0,
    out: Annotated[Path | None, Option("--out", "-o", help="File to write the comparison to, as JSON.")] = None,
) -> None:
    """Which of two runs is better: B - A of every metric, with a 95 % interval by paired bootstrap over videos.

    A difference whose interval contains 0 is not resolved: this split is too small to tell.

    Example: unloc compare runs/one runs/other --seed 1
    """
    from unloc.evaluation.comparison import compare as compared
    from unloc.evaluation.job import Outputs
    from unloc.evaluation.reopening import reopen
    from unloc.files import write_file

    a, b = (reopen(run, manifest=manifest, split=split, task=task, cache=cache) for run in (run_a, run_b))
    outputs = Outputs([one.path for one in (a, b)] + [one.evaluation.manifest_path for one in (a, b)])
    if out:
        outputs.add(out, "--out")
    with progress("resampling", "draws") as on_progress:
        found = compared(a, b, draws=draws, seed=seed, on_progress=on_progress)
    if out:
        with outputs.writing():
            write_file(out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    typer.echo(f"{found['manifest']} {found['split']}: {found['task']} by protocol {found['protocol']}")
    typer.echo(f"  A {found['a']}\n  B {found['b']}")
    typer.echo(f"  {draws} paired resamples of {found['num_videos']} videos, seed {seed}; percent")
    typer.echo(_comparison_table(found["metrics"]))


def _comparison_table(metrics: dict[str, dict]) -> str:
    import pandas as pd

    from unloc.evaluation.tables import is_shown

    rows = {}
    for name, one in metrics.items():
        if not is_shown(name):
            continue
        low, high = one["interval"]
        better = ("B is better" if one["difference"] > 0 else "A is better") if one["resolved"] else "not resolved"
        rows[name] = {"A": one["a"], "B": one["b"], "B - A": one["difference"]}
        rows[name] |= {"95 % of draws": f"{low:+.2f} to {high:+.2f}", "": better}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(columns="metric")
    return table.to_string(float_format="{:.2f}".format)


@app.command()
def report(
    source: Annotated[Path, Argument(help="Run, folder or metrics.json of `unloc eval`, predictions, or video.")],
    checkpoint: Annotated[str | None, Option(help="For a video: run, toy or none, as for `unloc predict`.")] = None,
    query: Annotated[list[str] | None, Option("--query", "-q", help="What to find in a video; repeatable.")] = None,
    labels: Annotated[Path | None, Option(help="Class names to find in a video, one a line.")] = None,
    tower: Annotated[str | None, Option(help="With --checkpoint none: toy, or open_clip's name.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="Page to write; default: report.html next to it.")] = None,
    videos: Annotated[Path | None, Option(help="Folder of the videos: players, and frames of examples.")] = None,
    embed: Annotated[bool, Option("--embed", help="Put videos of up to 8 MB into the page, link others.")] = False,
    manifest: Manifest = None,
    split: Split = None,
    task: Task = None,
    cache: Cache = None,
    limit: Annotated[int, Option(min=1, help="Most videos with a timeline.")] = 100,
    top: Annotated[int, Option(min=1, help="Most predictions of a query or class that are shown.")] = 5,
) -> None:
    """One HTML page, with no request to anywhere: timelines of predictions, metrics, errors, curves, examples.

    Example: unloc report runs/one --videos videos

    Example: unloc report videos/v_synth5_00003.mp4 -q "a purple triangle swings" --checkpoint toy
    """
    from unloc.evaluation.job import Outputs
    from unloc.files import write_file
    from unloc.report.content import content_of, gather
    from unloc.report.page import render
    from unloc.video.locate import EXTENSIONS

    if source.suffix.lower() in EXTENSIONS:
        if manifest or split or cache or videos:
            others = "--manifest, --split, --cache, --videos"
            raise InputError(f"unloc report: {source} is a video, which goes without {others}")
        material, files = _material_of_video(source, checkpoint, query or [], labels, task, tower)
    elif checkpoint or query or labels or tower:
        raise InputError(f"unloc report: {source} is no video, and --checkpoint, -q, --labels, --tower belong to one")
    else:
        material = gather(source, manifest=manifest, split=split, task=task, cache=cache)
        files = {} if videos is None else material.files(videos)
    out = out or material.folder / "report.html"
    outputs = Outputs([source, *files.values()])
    outputs.add(out, "--out")
    with progress("reporting", "videos") as on_progress:
        content = content_of(material, out, files, embed=embed, limit=limit, top=top, on_progress=on_progress)
    page = render(content)
    with outputs.writing():
        write_file(out, page)
    typer.echo(f"wrote {out}: {len(content['videos'])} videos, {len(page) / 1e6:.1f} MB")
    for note in content["notes"]:
        typer.echo(f"  {note}")


def _material_of_video(
    video: Path, checkpoint: str | None, queries: list[str], labels: Path | None, task: str | None, tower: str | None
) -> tuple["PageMaterial", dict[str, Path]]:
    """What a model finds in a video, and its file by its id. Raises as `unloc predict`."""
    from unloc.annotations.reading import read_names
    from unloc.cli.predict import predicted
    from unloc.inference.video_model import load
    from unloc.report.content import material_of
    from unloc.video.locate import own_videos

    if checkpoint is None:
        raise InputError(f"unloc report: {video} is a video: give --checkpoint, and -q or --labels, as to predict")
    names = read_names(labels) if labels else ()
    (file,) = own_videos([str(video)])
    with shown_warnings("unloc"):
        model = load(checkpoint, task=task, kind="query" if queries else "class", tower=tower)
        model.require_texts(queries, names)
        one = predicted(model, file, queries, names).best(MOST_MOMENTS)
    return material_of([one]), {one.video_id: file} if isinstance(file, Path) else {}
