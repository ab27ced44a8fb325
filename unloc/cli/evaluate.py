"""`unloc eval`: run a model on a split, or score a file of predictions without one."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unloc.cli import app
from unloc.cli import evaluate_options as options
from unloc.cli.evaluate_output import plot_paths, print_report, report_path, write_report
from unloc.errors import InputError

if TYPE_CHECKING:
    from unloc.annotations.schema import Manifest
    from unloc.cache.reading import Cache
    from unloc.evaluation.evaluator import Predictions
    from unloc.evaluation.outputs import Outputs
    from unloc.inference.load import LoadedModel

TOKEN_KEYS = ("tower.name", "tower.pretrained", "tower.weights_sha256", "sampling.num_frames", "sampling.fps")


@app.command("eval")
def evaluate_command(
    run: options.Run = None,
    manifest: options.ManifestFile = None,
    cache: options.CacheFolder = None,
    split: options.Split = "test",
    train_split: options.TrainSplit = None,
    predictions: options.Predictions = None,
    baseline: options.Baseline = False,
    floors_only: options.FloorsOnly = False,
    task: options.TaskName = None,
    protocol: options.Protocol = None,
    strict: options.Strict = False,
    intervals: options.Intervals = False,
    seed: options.Seed = 0,
    external_labels: options.ExternalLabels = False,
    without: options.Without = None,
    only: options.Only = None,
    export: options.Export = None,
    analyse: options.Analyse = False,
    zero_shot: options.ZeroShot = None,
    vocabulary: options.Vocabulary = None,
    control: options.Control = None,
    out: options.Out = None,
    device: options.Device = "auto",
) -> None:
    """Metrics of a split in metrics.json and as a table, beside what blind constants score.

    Example: unloc eval --predictions predictions.json --manifest anet.jsonl --task tal --split validation --intervals
    """
    from unloc.evaluation.files import provenance
    from unloc.evaluation.outputs import Outputs

    _require_one_source(run, predictions, baseline, floors_only, cache)
    if export is not None and (floors_only or zero_shot is not None):
        raise InputError("unloc eval: --export writes predictions; with --floors-only and --zero-shot there are none")
    if run is not None:
        out = out or _run_folder(run) / "eval" / split
    lists = [*(without or []), *(only or [])]
    outputs = Outputs(filter(None, [manifest, predictions, control, *(vocabulary or []), *lists]))
    if out is not None:
        outputs.claim(report_path(out), "--out")
        for plot in plot_paths(out) if analyse else ():
            outputs.claim(plot, "--analyse")
    loaded, scoring, keep = _annotations(manifest, cache, split, train_split, protocol, without or [], only or [])
    asked = _Asked(manifest=loaded, task=task, cache=cache, out=out, export=export, outputs=outputs)
    scored = scoring | {"interval_seed": seed if intervals else None, "external_labels": external_labels}
    if predictions is not None:
        zero = {"lists": zero_shot, "vocabularies": vocabulary or [], "control": control}
        report, found = _score_file(predictions, asked, scored, strict, keep, zero)
    elif zero_shot is not None or vocabulary or control:
        raise InputError("unloc eval --zero-shot: it scores --predictions of --task tal")
    elif floors_only:
        report, found = _floors_only(asked, scoring), None
    elif baseline:
        report, found = _evaluate_baseline(asked, scored)
    else:
        report, found = _evaluate_run(run, asked, scored | {"train_split": train_split}, device)
    if report is None:
        typer.echo(f"split {split!r} has no annotations to score {task or loaded.tasks[0]} with: nothing is scored")
        return
    report |= provenance(manifest, lists)
    if analyse:
        report["analysis"] = _analysis(report["task"], found, loaded.select(split))
    if out is not None:
        with outputs.writing():
            write_report(report, out)
    print_report(report)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What the command line asks for, whatever the predictions come from."""

    manifest: "Manifest"
    task: str | None
    cache: str | None
    out: Path | None
    export: Path | None
    outputs: "Outputs"


def _require_one_source(
    run: Path | None, predictions: Path | None, baseline: bool, floors_only: bool, cache: Path | None
) -> None:
    if (run is not None) + (predictions is not None) + baseline + floors_only != 1:
        raise InputError("unloc eval: give one of RUN, --predictions FILE or --baseline, or --floors-only")
    if cache is None and (run is not None or baseline):
        raise InputError("unloc eval: --cache is needed with RUN and with --baseline")


def _annotations(
    path: Path | None,
    cache: Path | None,
    split: str,
    train_split: str | None,
    protocol: str | None,
    without: list[Path],
    only: list[Path],
) -> tuple["Manifest", dict, Callable[[str], bool]]:
    """The manifest without the videos left out of the split, the options that say by what to score, and which videos
    are scored. Durations that the manifest does not state are taken from the cache.
    """
    from unloc.annotations.durations import cached_durations
    from unloc.annotations.schema import load_manifest
    from unloc.annotations.subsets import listed_filter, restricted
    from unloc.cache.reading import open_cache
    from unloc.evaluation.evaluator import default_train_split

    if path is None:
        raise InputError("unloc eval: --manifest is needed: it holds the annotations")
    manifest = load_manifest(path)
    if cache is not None:
        manifest = cached_durations(manifest, open_cache(cache))
    manifest.select(train_split)
    before, keep = len(manifest.select(split).videos), listed_filter(without, only)
    if without or only:
        manifest = restricted(manifest, keep, split)
        if split not in manifest.splits:
            raise InputError(f"--without, --only: no video of split {split!r} is left of {before}; are these its ids?")
        typer.echo(f"{before - len(manifest.select(split).videos)} of {before} videos are left out on both sides")
    train_split = train_split or default_train_split(manifest, split)
    return manifest, {"split": split, "train_split": train_split, "protocol": protocol}, keep


def _analysis(task: str, predictions: "Predictions | None", selected: "Manifest") -> dict:
    from unloc.evaluation.analysis import analyse

    if predictions is None:
        raise InputError("unloc eval: --analyse needs one file of predictions, RUN or --baseline")
    return analyse(task, predictions, selected)


def _needed_task(task: str | None, option: str) -> str:
    from unloc.tasks import task_named

    if task is None:
        raise InputError(f"unloc eval {option}: --task is needed: mr, tal, as or hd")
    return task_named(task).name


def _can_be_scored(asked: _Asked, task: str, split: str) -> bool:
    """Whether the split has annotations for the task. Raises InputError where not and nothing is exported either."""
    from unloc.evaluation.evaluator import has_annotations, require_annotations

    if asked.export is None:
        require_annotations(task, asked.manifest.select(split), split)
    return has_annotations(task, asked.manifest.select(split))


def _floors_only(asked: _Asked, scoring: dict) -> dict:
    from unloc.evaluation.evaluator import floors_report

    task = _needed_task(asked.task, "--floors-only")
    _can_be_scored(asked, task, scoring["split"])
    return floors_report(task, asked.manifest, **scoring)


def _score_file(
    path: Path, asked: _Asked, scoring: dict, strict: bool, keep: Callable[[str], bool], zero: dict
) -> tuple[dict | None, "Predictions | None"]:
    from unloc.evaluation.files import PredictionFiles, refuse_bad, score_file, score_zero_shot

    task, split = _needed_task(asked.task, "--predictions"), scoring["split"]
    files = PredictionFiles(task=task, manifest=asked.manifest, split=split, keep=keep)
    if zero["lists"] is None and any(zero.values()):
        raise InputError("unloc eval: --vocabulary and --control belong to --zero-shot")
    if zero["lists"] is not None and task != "tal":
        raise InputError("unloc eval --zero-shot: it scores --predictions of --task tal")
    scored = _can_be_scored(asked, task, split)
    paths = _claim_predictions(asked, task, beside_report=False)
    given = report = None
    if zero["lists"] is not None:
        report, found = score_zero_shot(path, files, scoring, **zero)
    else:
        given, found = files.read(path)
        if scored:
            report = score_file(path, found, files, scoring)
    if strict:
        refuse_bad(path, files.problems)
    typer.echo(f"{path}: {', '.join(dict.fromkeys(file.format for file in files.held.values()))}")
    for line in files.problems.lines():
        typer.echo(f"  bad predictions: {line}")
    if asked.export is not None:
        external = scoring["external_labels"] or bool(files.external_labels())
        _write(asked, paths, task, given, split, external)
    return report, found


def _write(
    asked: _Asked, paths: list[Path], task: str, found: "Predictions", split: str, external_labels: bool
) -> None:
    """Write the predictions of a split into claimed files."""
    from unloc.predictions.writing import export_predictions, missing_submissions

    with asked.outputs.writing():
        for path in paths:
            export_predictions(path, task, found, split, external_labels=external_labels)
    for path in paths:
        typer.echo(f"  wrote {path}")
        if path.suffix.lower() == ".zip":
            for name in missing_submissions(path):
                typer.echo(f"    lacks {name}, which the server takes too: export that split to the same file")


def _claim_predictions(asked: _Asked, task: str, *, beside_report: bool = True) -> list[Path]:
    """The files that predictions go to: beside metrics.json, and the one that --export names."""
    paths = []
    if asked.out is not None and beside_report:
        name = "predictions.json" if task == "tal" else "predictions.jsonl"
        paths.append(asked.outputs.claim(report_path(asked.out).with_name(name), "--out"))
    if asked.export is not None:
        paths.append(asked.outputs.claim(asked.export, "--export"))
    for path in paths if task == "as" else ():
        asked.outputs.claim(path.with_name(f"{path.stem}_scores.npz"), "class scores beside")
    return paths


def _evaluate_baseline(asked: _Asked, scoring: dict) -> tuple[dict | None, "Predictions"]:
    from unloc.cache.reading import open_cache
    from unloc.evaluation.evaluator import evaluate
    from unloc.inference.baseline import baseline_detections, baseline_frames, baseline_moments, require_embeddings

    task, split = _needed_task(asked.task or asked.manifest.tasks[0], "--baseline"), scoring["split"]
    scored, paths = _can_be_scored(asked, task, split), _claim_predictions(asked, task)
    predict = {"tal": baseline_detections, "as": baseline_frames}.get(task, baseline_moments)
    opened = open_cache(asked.cache)
    require_embeddings(opened)
    found = predict(asked.manifest.select(split), opened)
    told = _told_note(opened)
    _write(asked, paths, task, found, split, scoring["external_labels"])
    return evaluate(task, found, asked.manifest, **scoring) | _written(paths) | told if scored else None, found


def _told_note(cache: "Cache") -> dict:
    if cache.note:
        typer.echo(f"note: {cache.note}", err=True)
    return {"note": cache.note} if cache.note else {}


def _written(paths: list[Path]) -> dict:
    from unloc.files import file_sha256

    return {"predictions_sha256": file_sha256(paths[0])} if paths else {}


def _evaluate_run(run: Path, asked: _Asked, scoring: dict, device: str) -> tuple[dict | None, "Predictions"]:
    """The report of a run; of a split whose annotations are hidden only the predictions, where they are exported."""
    from unloc.annotations.subsets import names_in_vocabulary
    from unloc.cache.reading import open_cache
    from unloc.evaluation.evaluator import default_train_split, evaluate, require_seconds
    from unloc.examples.sources import CachedTokens
    from unloc.inference.device import described, resolve_device
    from unloc.inference.load import load_model, require_same_cache, require_task
    from unloc.inference.predict import predict_split
    from unloc.predictions.writing import SUBMITTED_SPLITS

    where = resolve_device(device)
    loaded, manifest, split = load_model(run, where), asked.manifest, scoring["split"]
    recipe = loaded.info.recipe
    if asked.task not in (None, recipe.task):
        raise InputError(f"unloc eval: --task {asked.task}, but {run} was trained for {recipe.task}; leave --task out")
    require_task(manifest, recipe.task)
    opened = open_cache(asked.cache)
    scored, paths = _can_be_scored(asked, recipe.task, split), _claim_predictions(asked, recipe.task)
    selected = manifest.select(split)
    require_seconds(recipe.task, selected, split, opened.durations_of(selected.videos["video_id"]))
    require_same_cache(loaded.info.fingerprint, opened.fingerprint, asked.cache)
    told = _told_note(opened)
    model = _asked_for(loaded, manifest.classes)
    found = predict_split(model, manifest.select(split), CachedTokens(opened))
    _write(asked, paths, recipe.task, found, split, scoring["external_labels"])
    if asked.export is not None and asked.export.suffix.lower() == ".zip":
        for other in SUBMITTED_SPLITS:
            part = manifest.select(other) if other in manifest.splits and other != split else None
            if part is not None and all(video_id in opened for video_id in part.videos["video_id"]):
                more = predict_split(model, part, CachedTokens(opened))
                _write(asked, [asked.export], recipe.task, more, other, scoring["external_labels"])
    if not scored:
        return None, found
    train_split = scoring["train_split"] or recipe.data.train_split
    if train_split not in manifest.splits:
        train_split = default_train_split(manifest, split)
    report = evaluate(recipe.task, found, manifest, **scoring | {"train_split": train_split}) | _written(paths)
    report |= described(where, recipe.train.precision) | told
    fingerprint = loaded.info.fingerprint
    report["recipe"] = {
        "name": recipe.name,
        "towers": asdict(recipe.towers),
        "tokens": {key: fingerprint.get(key) for key in TOKEN_KEYS},
        "checkpoint_selected_on": recipe.data.val_split or None,
    }
    if model is not loaded:
        report["classes_seen_in_training"] = names_in_vocabulary(manifest.classes, loaded.info.classes)["same"]
    return report, found


def _asked_for(loaded: "LoadedModel", classes: tuple[str, ...]) -> "LoadedModel":
    """The model asked for the classes of the manifest, where they are not those it was trained on (zero-shot).

    Raises InputError for a model whose head knows its own classes only.
    """
    if not loaded.info.classes or loaded.info.classes == classes:
        return loaded
    if loaded.info.recipe.model.fusion == "none":
        raise InputError(f"--manifest has {len(classes)} other classes than the {len(loaded.info.classes)} trained on")
    return replace(loaded, info=replace(loaded.info, classes=classes))


def _run_folder(run: Path) -> Path:
    """The run that a run folder, one of its checkpoints or a file of that belongs to."""
    folder = run.parent if run.is_file() else run
    is_run = (folder / "recipe.yaml").is_file() or folder.parent.name != "checkpoints"
    return folder if is_run else folder.parent.parent
