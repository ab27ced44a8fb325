"""`unloc predict`: moments in any video files."""

import json
from contextlib import ExitStack
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from unloc.cli import app
from unloc.cli.progress import progress, shown_warnings
from unloc.errors import InputError, UnlocError, VideoError, one_line

if TYPE_CHECKING:
    from unloc.inference.video_model import VideoModel
    from unloc.inference.video_prediction import VideoPrediction
    from unloc.video.video_file import VideoFile

NOTHING_FOUND = 3
FORMATS = "json, csv, srt, vtt, html, labelstudio, fiftyone"


@app.command()
def predict(
    videos: Annotated[list[str], Argument(help="Video files, folders of videos, URLs.")],
    checkpoint: Annotated[str, Option(help="Run, model folder, Hub name; toy: shipped; none: similarity (--tower).")],
    query: Annotated[list[str] | None, Option("--query", "-q", help="What to find, in words; repeatable.")] = None,
    queries: Annotated[Path | None, Option(help="File with a query a line.")] = None,
    labels: Annotated[Path | None, Option(help="Class names, one a line (TAL, AS); default: the checkpoint's.")] = None,
    task: Annotated[str | None, Option(help="Of a checkpoint of several tasks, or of toy: mr, tal or as.")] = None,
    tower: Annotated[str | None, Option(help="With --checkpoint none: toy, or open_clip's name.")] = None,
    pretrained: Annotated[str | None, Option(help="The tower's weights: tag of open_clip, file, or run.")] = None,
    top: Annotated[int, Option(min=1, help="Most moments of each query, or of all labels of a video.")] = 5,
    min_score: Annotated[float | None, Option(help="Least score of a moment.")] = None,
    out: Annotated[Path | None, Option("--out", "-o", help="File to write, or a folder for one file a video.")] = None,
    file_format: Annotated[str | None, Option("--format", help=f"{FORMATS}; default: by --out's ending.")] = None,
    clips: Annotated[Path | None, Option(help="Folder for the moments as MP4 files.")] = None,
    cache: Annotated[str | None, Option(help="Cache that keeps tokens (default: below ~/.cache/unloc).")] = None,
    device: Annotated[str, Option(help="auto (CUDA if there is one), cpu, cuda:1, …")] = "auto",
    json_output: Annotated[bool, Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find when sentences or classes happen in video files of any length; exit code 3 where nothing is found.

    Each video is decoded once: its tokens are kept, so that a second query does not read it again. Videos from ten
    minutes on are searched by similarity first.

    Example: unloc predict data/videos/v_synth5_00003.mp4 -q "a purple triangle swings" --checkpoint toy
    """
    from unloc.annotations.own import video_id_of
    from unloc.annotations.reading import read_names
    from unloc.inference.answers import as_json, cut_clips, format_of, table_lines, write_predictions
    from unloc.inference.video_model import load
    from unloc.video.locate import own_videos

    texts, names = [*(query or []), *(read_names(queries) if queries else ())], read_names(labels) if labels else ()
    kind = format_of(out, file_format) if out else None
    if file_format and not out:
        raise InputError(f"--format {file_format}: is of a file to write; give --out, or --json to print JSON")
    if clips and clips.exists() and not clips.is_dir():
        raise InputError(f"--clips {clips}: is a file; name a folder")
    if min_score is not None and not isfinite(min_score):
        raise InputError(f"--min-score {min_score}: give a number")
    files, found, failed = own_videos(videos), [], []
    if out is not None and any(isinstance(file, Path) and file.resolve() == out.resolve() for file in files):
        raise InputError(f"--out {out}: is a video to read; name another file")
    with shown_warnings("unloc"):
        options = {"kind": "query" if texts else "class", "tower": tower, "pretrained": pretrained}
        model = load(checkpoint, task=task, cache=cache, device=device, **options)
        model.require_texts(texts, names)
        for file in files:
            try:
                one = predicted(model, file, texts, names).best(top, min_score)
                written = cut_clips(one, file, clips) if clips else []
            except (VideoError, OSError) as error:
                failed.append(one_line(error))
                typer.echo(f"error: {failed[-1]}", err=True)
                continue
            found.append(one)
            if not json_output:
                typer.echo("\n".join(table_lines(one)))
            for path in written:
                typer.echo(f"wrote {path}", err=json_output)
    if json_output:
        typer.echo(json.dumps([as_json(one) for one in found], indent=1, ensure_ascii=False))
    moments = sum(map(len, found))
    if kind and found and (moments or kind in ("json", "html")):
        answered = [file for file in files if video_id_of(file.name) in {one.video_id for one in found}]
        for path in write_predictions(found, answered, out, kind) if kind != "html" else _page(found, answered, out):
            typer.echo(f"wrote {path}", err=json_output)
    if failed:
        is_partial = any("--allow-partial" in reason for reason in failed)
        advice = "; `unloc extract --allow-partial --cache C` keeps what decodes of damaged ones, for --cache C here"
        raise UnlocError(f"{len(failed)} of {len(files)} videos cannot be read" + advice * is_partial)
    if not moments:
        raise typer.Exit(NOTHING_FOUND)


def _page(found: list["VideoPrediction"], files: list["VideoFile"], out: Path) -> list[Path]:
    """Write the page of `unloc report`."""
    from unloc.annotations.own import video_id_of
    from unloc.files import write_file
    from unloc.report.content import content_of, material_of
    from unloc.report.page import render

    local = {video_id_of(file.name): file for file in files if isinstance(file, Path)}
    most = max(1, *map(len, found))  # all: --top has chosen
    write_file(out, render(content_of(material_of(found), out, local, limit=len(found), top=most)))
    return [out]


def predicted(model: "VideoModel", file: "VideoFile", texts: list[str], labels: tuple[str, ...]) -> "VideoPrediction":
    """The prediction of a file, with a display of progress for each thing done."""
    with ExitStack() as stack:
        reports = {}

        def on_progress(action: str, done: int, total: int) -> None:
            if action not in reports:
                units = {"encoding": "frames", "finding": "windows"}[action]
                reports[action] = stack.enter_context(progress(f"{action} {file.name}", units))
            reports[action](done, total)

        return model.predict(file, texts, labels=labels, on_progress=on_progress)
