"""`unloc data`: render, convert, check, split and pack datasets."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unloc.cli import app
from unloc.cli.progress import SHOWN_FAILURES, echo_failures, progress, sigterm_as_interrupt
from unloc.errors import InputError

if TYPE_CHECKING:
    from unloc.annotations.schema import Manifest

data_app = typer.Typer(help="Render, convert and check datasets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
FORMATS = (
    "activitynet, activitynet-captions, charades-sta, qvhighlights, coin, thumos14, timelens, gmr, na-vmr or kinetics; "
    "own data: csv, json, folder, mstcn, labelstudio or fiftyone; or a format that another package adds."
)
BadRows = Annotated[Literal["keep", "repair", "drop"], typer.Option(help="What to do with bad rows.")]


@data_app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="Folder to render into.")],
    videos: Annotated[int, typer.Option("--videos", min=1, help="Number of videos.")] = 60,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the world.")] = 0,
    style: Annotated[Literal["studio", "sketch"], typer.Option(help="sketch: unseen by what ships.")] = "studio",
    workers: Annotated[int, typer.Option("--workers", min=0, help="Processes; 0: one a core.")] = 0,
    clips: Annotated[bool, typer.Option("--clips", help="Also a clip of each labelled event, as in Kinetics.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a world of another seed.")] = False,
) -> None:
    """Render the synthetic world: videos, and annotations in the official formats.

    Example: unloc data synth data/world --videos 20 --seed 0
    """
    from unloc.synth.world import render_world

    workers = workers or len(os.sched_getaffinity(0))
    options = {"num_videos": videos, "seed": seed, "style": style, "workers": workers, "overwrite": overwrite}
    with progress("rendering", "videos") as on_progress:
        render_world(out, **options, clips=clips, on_progress=on_progress)
    also = f", clips in {out / 'clips'}" if clips else ""
    typer.echo(f"{out}: {videos} videos in {out / 'videos'}{also}, annotations in {out / 'annotations'}")


@data_app.command(context_settings={"allow_extra_args": True})
def convert(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="FORMAT", help=FORMATS)],
    annotations: Annotated[list[Path], typer.Option("--annotations", help="Files or folders, one or more.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write.")],
    split: Annotated[str | None, typer.Option("--split", help="Keep or name this split.")] = None,
    bad_rows: BadRows = "keep",
    without: Annotated[list[Path] | None, typer.Option("--without", help="List of videos to leave out.")] = None,
    only: Annotated[list[Path] | None, typer.Option("--only", help="List of the only videos to keep.")] = None,
    changes: Annotated[Path | None, typer.Option("--changes", help="File for every change, with its place.")] = None,
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder to measure unknown durations from.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Frame rate of labels that count frames.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of splits made where own data states none.")] = 0,
) -> None:
    """Convert official annotations, or own data, into a manifest.

    Example: unloc data convert csv --annotations labels.csv --videos data/videos --out own.jsonl

    Example: unloc data convert charades-sta --annotations charades_sta_test.txt Charades_v1_test.csv --out test.jsonl
    """
    from unloc.annotations.check import add_actions, check_manifest, counted_findings
    from unloc.annotations.converters import convert as convert_files
    from unloc.annotations.own import Media
    from unloc.annotations.reading import Problems
    from unloc.annotations.schema import apply_lists, load_manifest, save_manifest

    paths, problems = [*annotations, *map(Path, context.args)], Problems()
    _refuse_overwriting(paths, out, changes)
    with progress("measuring", "videos") as on_progress:
        media = Media(videos=videos, fps=fps, seed=seed)
        manifest = convert_files(name, paths, split, problems, media, on_progress)
    manifest = apply_lists(manifest, without or [], only or [], problems)
    manifest, found = check_manifest(manifest, bad_rows)
    add_actions(found, problems)
    save_manifest(manifest, out)
    if changes:
        problems.save(changes)
    _print_counts(manifest)
    left = check_manifest(load_manifest(out))[1]  # at the lines of the file
    for line in [*problems.lines(), *counted_findings(left, out).lines()]:
        typer.echo(f"  {line}")
    typer.echo(f"wrote {out}; bad rows: {bad_rows}")


@data_app.command()
def export(
    tool: Annotated[str, typer.Argument(metavar="FORMAT", help="csv, srt, vtt, labelstudio or fiftyone.")],
    source: Annotated[Path, typer.Argument(help="File of predictions, or a manifest: its annotations.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File or folder to write.")],
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder of the videos: names, frame rates.")] = None,
    fps: Annotated[float | None, typer.Option(min=0.01, help="Frame rate of all videos.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this split of a manifest.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Best predictions of a query, or of all labels of a video.")] = 5,
    min_score: Annotated[float, typer.Option(help="Least score of a prediction.")] = -float("inf"),
) -> None:
    """Write predictions or annotations as subtitles, chapters or csv, or for Label Studio or FiftyOne to correct them.

    `unloc data convert labelstudio` and `fiftyone` read what was corrected there.

    Example: unloc data export labelstudio predictions.json --videos data/videos --out for_label_studio
    """
    from unloc.annotations.own import Media
    from unloc.annotations.schema import load_manifest
    from unloc.predictions.exporting import best_spans, export_spans, spans_of
    from unloc.predictions.reading import is_manifest, read_predictions

    found = load_manifest(source).select(split) if is_manifest(source) else read_predictions(source, None).predictions
    media, spans = Media(videos=videos, fps=fps), best_spans(spans_of(found), top, min_score)
    for path in export_spans(tool, spans, out, media):
        typer.echo(f"wrote {path}")
    typer.echo(f"{len(spans)} segments of {spans['video'].nunique()} videos")
    for line in media.problems.lines():
        typer.echo(f"  {line}")


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check.")],
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder that should contain its videos.")] = None,
    bad_rows: BadRows = "keep",
    out: Annotated[Path | None, typer.Option("--out", help="Manifest to write, after the rule for bad rows.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every finding as JSON.")] = False,
) -> None:
    """Print counts, bad rows with file and line, and coverage of the video folder; exit code 1 where a bad row is left.

    With --videos, durations that the manifest does not state are measured from the files. Only --out writes: measured
    durations, and what --bad-rows changes, which is printed.

    Example: unloc data check data/mr.jsonl --videos data/videos --bad-rows repair --out data/mr.repaired.jsonl
    """
    from unloc.annotations.check import add_actions, check_file, counted_findings
    from unloc.annotations.reading import Problems
    from unloc.annotations.schema import save_manifest

    if out and bad_rows == "keep" and videos is None:
        raise InputError("--out: nothing changes without --bad-rows repair or drop, or --videos to measure durations")
    _refuse_overwriting([], out)
    with progress("measuring", "videos") as on_progress:
        options = {"rule": bad_rows, "drop_unreadable": out is not None, "on_progress": on_progress}
        checked, changes = check_file(manifest, videos=videos, **options), Problems()
    errors = [item for item in checked.findings if not item.is_note]
    if as_json:
        rows = [{"file": str(manifest), **vars(item), "note": item.is_note} for item in checked.findings]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print_counts(checked.manifest)
        for item in errors:
            typer.echo(f"{manifest}:{item.line}: {item.kind}: {item.message}")
        for line in counted_findings(checked.findings, manifest).lines():
            typer.echo(f"  {line}")
        num_notes = len(checked.findings) - len(errors)
        typer.echo(f"{len(errors)} bad rows, {num_notes} notes" if checked.findings else "no bad rows")
        if coverage := checked.coverage:
            found, missing, extra = len(coverage.found), len(coverage.missing), coverage.extra
            counts = f"{found} of {found + missing} videos found, {missing} missing, {len(coverage.empty)} empty"
            first = f" (first: {extra[0]})" if extra else ""
            typer.echo(f"{videos}: {counts}; {len(extra)} video files that no row names{first}")
    if checked.num_measured:
        hint = "" if out else " (--out writes them)"
        typer.echo(f"  {checked.num_measured} unknown durations measured from the files{hint}", err=as_json)
    add_actions(checked.findings, changes)
    for line in changes.lines():
        typer.echo(f"  --bad-rows {bad_rows}: {line}", err=as_json)
    if out:
        save_manifest(checked.result, out)
        typer.echo(f"wrote {out}", err=as_json)
    if any(not (out and item.action) for item in errors):
        raise typer.Exit(1)


@data_app.command("zero-shot")
def zero_shot(
    manifest: Annotated[Path, typer.Argument(help="Manifest with all classes.")],
    lists: Annotated[Path, typer.Option("--lists", help="Folder of train/split_*.list and test/split_*.list.")],
    test_split: Annotated[str, typer.Option("--split", help="Split to test on.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for <split>/{seen,unseen,nonsense}.jsonl.")],
) -> None:
    """Write manifests of every zero-shot class split: to train on seen classes, to test on unseen ones.

    nonsense.jsonl is unseen.jsonl with made-up class names: what a model scores on it does not come from the names.

    Example: unloc data zero-shot anet.jsonl --lists train_50_test_50/ActivityNet --split validation --out data/zs50
    """
    from unloc.annotations.schema import load_manifest, save_manifest
    from unloc.evaluation.zero_shot import nonsense_manifest, read_class_splits, zero_shot_sides

    loaded = load_manifest(manifest)
    for split in read_class_splits(lists):
        seen, unseen = zero_shot_sides(loaded, split, test_split)
        for side, part in {"seen": seen, "unseen": unseen, "nonsense": nonsense_manifest(unseen)}.items():
            save_manifest(part, out / split.name / f"{side}.jsonl")
        counts = [
            f"{side} {len(part.classes)} of {listed} listed classes, {len(part.videos)} videos, {len(part.instances)} "
            "instances"
            for side, part, listed in (("seen", seen, len(split.seen)), ("unseen", unseen, len(split.unseen)))
        ]
        typer.echo(f"{out / split.name}: {'; '.join(counts)}")


@data_app.command()
def pack(
    manifest: Annotated[Path, typer.Argument(help="Manifest whose videos are packed, in its order.")],
    videos: Annotated[Path, typer.Option("--videos", help="Folder with the video files.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for videos-000000.tar or frames-000000.tar and so on.")],
    shard_gib: Annotated[float, typer.Option(min=1e-6, max=1e6, help="Most GiB of videos in a shard.")] = 1.0,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    frames: Annotated[int | None, typer.Option(help="Pack decoded frames: so many of each video.")] = None,
    fps: Annotated[float | None, typer.Option(help="Pack decoded frames: so many per second.")] = None,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Short side of the frames.")] = 256,
    coverage: Annotated[float, typer.Option(min=0, max=1, help="Fail where fewer videos have frames.")] = 1.0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode; 0: one a core.")] = 0,
) -> None:
    """Pack videos into WebDataset tar shards, which `unloc extract --shards` reads in place.

    With --frames or --fps, pack their frames as JPEGs instead, for training an image tower. Existing shards are
    skipped; the same command resumes a packing that was interrupted.

    Example: unloc data pack data/mr.jsonl --videos data/videos --out data/frames --frames 128 --size 256
    """
    from unloc.annotations.schema import load_manifest
    from unloc.video.locate import index_videos
    from unloc.video.packing import pack_videos

    selected = load_manifest(manifest).select(split)
    files, missing = index_videos(videos).locate(selected.videos)
    if frames is not None or fps is not None:
        from unloc.video.frame_shards import FrameSpec, pack_frames, require_coverage
        from unloc.video.reading import FrameSampling

        video_ids, workers = selected.videos["video_id"].unique().tolist(), workers or len(os.sched_getaffinity(0))
        spec = FrameSpec(sampling=FrameSampling(fps=fps, num_frames=frames), size=size)
        with progress("packing frames", "videos") as on_progress, sigterm_as_interrupt():
            rows = pack_frames(video_ids, files, out, spec, workers=workers, on_progress=on_progress)
        failed, sizes = [row for row in rows if "reason" in row], [row.get("frame_bytes", []) for row in rows]
        packed = f"{sum(map(len, sizes))} frames of {len(rows) - len(failed)} videos"
        typer.echo(f"{out}: {packed}, {sum(map(sum, sizes)) / 1e6:.1f} MB; {len(failed)} failed")
        echo_failures(failed, f"{out}/frames-*.jsonl")
        require_coverage(rows, coverage)
        return
    with progress("packing", "shards") as on_progress:
        done = pack_videos(selected.videos, files, out, shard_bytes=int(shard_gib * 2**30), on_progress=on_progress)
    counts = f"{done.videos} videos, {done.bytes / 1e6:.1f} MB, in {done.shards} shards"
    typer.echo(f"{out}: {counts} ({done.written_now} written now); {len(missing)} videos of the manifest have no file")
    typer.echo(f"extract them with --shards '{done.pattern}'")
    for video_id in missing[:SHOWN_FAILURES]:
        typer.echo(f"missing: {video_id}", err=True)


def _refuse_overwriting(inputs: list[Path], *outputs: Path | None) -> None:
    for path in filter(None, outputs):
        if path.is_dir():
            raise InputError(f"{path} is a folder; expected a file to write")
        if any(path.resolve() == one.resolve() for one in inputs):
            raise InputError(f"{path} is one of the files to read; name another file to write")


def _print_counts(manifest: "Manifest") -> None:
    """Videos, queries, windows and instances of every split, and the videos that splits share."""
    from unloc.annotations.check import shared_between_splits

    typer.echo(f"{manifest.name}: tasks {', '.join(manifest.tasks)}; {len(manifest.classes)} classes")
    for split in manifest.splits:
        part = manifest.select(split)
        queries = f"{len(part.queries)} queries with {sum(map(len, part.queries['segments']))} windows"
        typer.echo(f"  {split}: {len(part.videos)} videos, {queries}, {len(part.instances)} instances")
    for (one, other), count in shared_between_splits(manifest).items():
        typer.echo(f"  {one} and {other} share {count} videos")
