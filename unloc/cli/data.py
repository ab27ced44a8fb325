"""`unloc data`: render, convert and check datasets."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unloc.cli import app
from unloc.errors import InputError

if TYPE_CHECKING:
    from unloc.annotations.check import Finding
    from unloc.annotations.official import Repairs
    from unloc.annotations.schema import Manifest, UnreadableLine
    from unloc.video.locate import Coverage

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

    Example: unloc data synth data/world --videos 20 --seed 0
    """
    import os

    from unloc.cli.progress import progress
    from unloc.synth.world import render_world

    with progress("rendering", "videos") as on_progress:
        render_world(
            out,
            num_videos=videos,
            seed=seed,
            workers=workers or len(os.sched_getaffinity(0)),
            overwrite=overwrite,
            on_progress=on_progress,
        )
    typer.echo(f"{out}: {videos} videos in {out / 'videos'}, annotations in {out / 'annotations'}")


BadRows = Annotated[str, typer.Option("--bad-rows", help="What becomes of bad rows: keep, repair or drop.")]


@data_app.command(context_settings={"allow_extra_args": True})
def convert(
    context: typer.Context,
    format_name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="activitynet, activitynet-captions, charades-sta, qvhighlights, coin, thumos14 or timelens.",
        ),
    ],
    annotations: Annotated[list[Path], typer.Option("--annotations", help="Official files or folders, one or more.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write.")],
    split: Annotated[str | None, typer.Option("--split", help="Keep or name this split.")] = None,
    bad_rows: BadRows = "keep",
    without: Annotated[
        list[Path] | None, typer.Option("--without", help="List of blocked videos to leave out.")
    ] = None,
    only: Annotated[list[Path] | None, typer.Option("--only", help="List of the only videos to keep.")] = None,
    changes: Annotated[Path | None, typer.Option("--changes", help="File for every change, with its place.")] = None,
) -> None:
    """Convert official annotations into a manifest.

    Example: unloc data convert charades-sta --annotations charades_sta_test.txt Charades_v1_test.csv --out test.jsonl
    """
    from unloc.annotations.check import findings
    from unloc.annotations.converters import convert as convert_files
    from unloc.annotations.official import Repairs
    from unloc.annotations.repair import apply_rule
    from unloc.annotations.schema import numbered, save_manifest

    paths, told = [*annotations, *map(Path, context.args)], Repairs()
    _refuse_overwriting(paths, out, changes)
    manifest = _apply_lists(convert_files(format_name, paths, split, told), without or [], only or [], told)
    manifest = numbered(apply_rule(manifest, bad_rows, told))
    save_manifest(manifest, out)
    if changes:
        _write_changes(told, changes)
    _print_counts(manifest)
    _print_lines(told.lines())
    _print_kinds(findings(manifest), out)
    typer.echo(f"wrote {out}; bad rows: {bad_rows}")


def _refuse_overwriting(inputs: list[Path], *outputs: Path | None) -> None:
    for path in filter(None, outputs):
        if path.is_dir():
            raise InputError(f"{path} is a folder; expected a file to write")
        if any(path.resolve() == one.resolve() for one in inputs):
            raise InputError(f"{path} is one of the files to read; name another file to write")


def _apply_lists(manifest: "Manifest", without: list[Path], only: list[Path], told: "Repairs") -> "Manifest":
    from unloc.annotations.video_lists import only_videos, read_video_list, without_videos

    for option, paths, restrict in (("--without", without, without_videos), ("--only", only, only_videos)):
        for path in paths:
            before = manifest.videos
            manifest = restrict(manifest, read_video_list(path))
            left_out = set(before["video_id"]) - set(manifest.videos["video_id"])
            for video_id in before["video_id"].drop_duplicates():
                if video_id in left_out:
                    told.add(f"video left out by {option} {path}", video_id)
            if manifest.videos.empty:
                raise InputError(f"{option} {path}: no video is left of {len(before)}; are its ids of this dataset?")
    return manifest


def _write_changes(told: "Repairs", path: Path) -> None:
    rows = [{"change": rule, "place": place} for rule, places in told.places.items() for place in places]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--changes {path} cannot be written: {error.strerror or error}") from None


def _print_lines(lines: Iterable[str], *, to_stderr: bool = False) -> None:
    for line in lines:
        typer.echo(f"  {line}", err=to_stderr)


def _print_counts(manifest: "Manifest") -> None:
    """Videos, queries, windows and instances of every split, and the videos that splits share."""
    from unloc.annotations.check import shared_between_splits

    typer.echo(f"{manifest.name}: tasks {', '.join(manifest.tasks)}; {len(manifest.classes)} classes")
    for split in manifest.splits:
        part = manifest.select(split)
        typer.echo(
            f"  {split}: {len(part.videos)} videos, {len(part.queries)} queries with "
            f"{sum(map(len, part.queries['segments']))} windows, {len(part.instances)} instances"
        )
    for (one, other), count in shared_between_splits(manifest).items():
        typer.echo(f"  {one} and {other} share {count} videos")


def _print_kinds(found: list["Finding"], path: Path) -> None:
    from unloc.annotations.check import count_kinds

    for kind, count, first in count_kinds(found):
        note = "note: " if first.is_note else ""
        typer.echo(f"  {note}{count} × {kind} (first: {path}:{first.line}: {first.words})")


@data_app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check.")],
    videos: Annotated[Path | None, typer.Option("--videos", help="Folder that should hold its videos.")] = None,
    bad_rows: BadRows = "keep",
    out: Annotated[Path | None, typer.Option("--out", help="Manifest to write after the rule for bad rows.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Every finding as JSON.")] = False,
) -> None:
    """Counts, bad rows with file and line, coverage of the video folder; exit code 1 where a bad row is left.

    With --videos, durations that the manifest does not state are measured from the files. Nothing is changed but into
    --out: measured durations, and what the rule that --bad-rows names changes, which is printed.

    Example: unloc data check data/mr.jsonl --videos data/videos --bad-rows repair --out data/mr.repaired.jsonl
    """
    from unloc.annotations.check import findings, unreadable_findings
    from unloc.annotations.durations import measured_durations
    from unloc.annotations.schema import load_manifest
    from unloc.video.locate import folder_coverage

    unreadable: list[UnreadableLine] = []
    loaded = load_manifest(manifest, unreadable)
    if out and bad_rows == "keep" and videos is None:
        raise InputError(
            "--out: give --bad-rows repair or drop, or --videos to measure durations; else nothing changes"
        )
    coverage, broken, measured = folder_coverage(loaded.videos, videos) if videos else None, {}, 0
    if coverage is not None:
        loaded, measured, broken = measured_durations(loaded, coverage.whole)
    settled, told = _settle(loaded, unreadable, bad_rows, out)
    found = [*unreadable_findings(unreadable), *findings(loaded, coverage, broken)]
    found = sorted(found, key=lambda item: item.line)
    if as_json:
        rows = [{"file": str(manifest), **vars(item), "note": item.is_note} for item in found]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        _print_counts(loaded)
        _print_findings(found, manifest)
        _print_coverage(coverage, videos)
    if measured:
        typer.echo(
            f"  {measured} unknown durations measured from the files{'' if out else ' (--out writes them)'}",
            err=as_json,
        )
    _print_lines((f"--bad-rows {bad_rows}: {line}" for line in told.lines()), to_stderr=as_json)
    if out:
        typer.echo(f"wrote {out}", err=as_json)
        found = findings(settled, coverage, broken)
    if any(not item.is_note for item in found):
        raise typer.Exit(1)


def _settle(
    manifest: "Manifest", unreadable: list["UnreadableLine"], bad_rows: str, out: Path | None
) -> tuple["Manifest", "Repairs"]:
    """The manifest after the rule, written where asked for, and what the rule changed."""
    from unloc.annotations.official import Repairs
    from unloc.annotations.repair import apply_rule
    from unloc.annotations.schema import numbered, save_manifest

    told = Repairs()
    settled = numbered(apply_rule(manifest, bad_rows, told))
    for item in unreadable if out or bad_rows != "keep" else ():
        told.add("unreadable row: dropped", f"line {item.line}")
    if out:
        _refuse_overwriting([], out)
        save_manifest(settled, out)
    return settled, told


def _print_findings(found: list["Finding"], path: Path) -> None:
    """Every bad row with its line, then every kind with its count; notes by kind only."""
    bad = [item for item in found if not item.is_note]
    for item in bad:
        typer.echo(f"{path}:{item.line}: {item.kind}: {item.words}")
    _print_kinds(found, path)
    typer.echo(f"{len(bad)} bad rows, {len(found) - len(bad)} notes" if found else "no bad rows")


def _print_coverage(coverage: "Coverage | None", folder: Path | None) -> None:
    if coverage is None:
        return
    total = len(coverage.found) + len(coverage.missing)
    extra = f" (first: {coverage.extra[0]})" if coverage.extra else ""
    typer.echo(
        f"{folder}: {len(coverage.found)} of {total} videos are there, {len(coverage.missing)} missing, "
        f"{len(coverage.empty)} empty; {len(coverage.extra)} video files that no row names{extra}"
    )


@data_app.command("zero-shot")
def zero_shot(
    manifest: Annotated[Path, typer.Argument(help="Manifest with all classes.")],
    lists: Annotated[Path, typer.Option("--lists", help="Folder of train/split_*.list and test/split_*.list.")],
    test_split: Annotated[str, typer.Option("--split", help="Split to test on.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for <split>/{seen,unseen,nonsense}.jsonl.")],
) -> None:
    """Manifests of every zero-shot class split: to train on seen classes, to test on unseen ones.

    nonsense.jsonl is unseen.jsonl with made-up class names: what a model scores on it, it does not owe to the names.

    Example: unloc data zero-shot anet.jsonl --lists train_50_test_50/ActivityNet --split validation --out data/zs50
    """
    from unloc.annotations.class_splits import read_class_splits, seen_manifest, unseen_manifest
    from unloc.annotations.nonsense import nonsense_manifest
    from unloc.annotations.schema import load_manifest, save_manifest

    loaded = load_manifest(manifest)
    for split in read_class_splits(lists):
        sides = {"seen": seen_manifest(loaded, split), "unseen": unseen_manifest(loaded, split, test_split)}
        for side, part in {**sides, "nonsense": nonsense_manifest(sides["unseen"])}.items():
            save_manifest(part, out / split.name / f"{side}.jsonl")
        counts = "; ".join(
            f"{side} {len(part.classes)} of {len(getattr(split, side))} listed classes, {len(part.videos)} videos, "
            f"{len(part.instances)} instances"
            for side, part in sides.items()
        )
        typer.echo(f"{out / split.name}: {counts}")
