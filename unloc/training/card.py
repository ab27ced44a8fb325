"""The card of a model folder: how to use it, what it is, what it scored. It names no path of this machine."""

import json
import re
from pathlib import Path

import open_clip
import pandas as pd
from open_clip.pretrained import get_pretrained_cfg

from unloc.errors import UnlocError
from unloc.evaluation.evaluator import bootstrap_intervals
from unloc.evaluation.reopening import read_report, reopen
from unloc.evaluation.tables import is_shown, metric_table
from unloc.inference.existence import read_calibration
from unloc.inference.load import CheckpointInfo
from unloc.model.clip import RANDOM
from unloc.plugins import added_by
from unloc.tasks import task_named
from unloc.training.curves import read_rows

UNKNOWN = "unknown"


def card(info: CheckpointInfo, folder: Path, run: Path, name: str) -> tuple[str, list[str]]:
    """README.md of a model folder, which is called `name`, and notes on what it lacks.

    `run`: the run folder with env.json, metrics.jsonl and evaluations, as far as it has them.
    """
    by_task, notes = {task: info.of_task([task]) for task in info.tasks} or {info.recipe.task: info}, []
    first, titles = next(iter(by_task.values())), [task_named(task).title for task in by_task]
    weights, licence, is_missing = _tower(first, folder)
    if is_missing:
        notes.append(f"the tower's weights are not in the folder ({weights}); --with-tower puts them in")
    facts = _facts(first, folder) | _training(info, run, notes)
    facts |= {"weights of the tower": weights, "licence of the tower": licence}
    scores = _scores(info, run)
    if not scores:
        notes.append(
            "this checkpoint was not evaluated: `unloc eval` first gives the card metrics, floors and intervals"
        )
    stated = f"{first.step} steps" + "".join(f", {key} {value:.2f}" for key, value in [*info.metrics.items()][:1])
    lines = [
        "---",
        "library_name: unloc",
        "tags:",
        "- video",
        *(f"- {title.replace(' ', '-')}" for title in titles),
        "---",
    ]
    lines += [f"# {plain(info.recipe.name)}: {', '.join(titles)}", "", "It finds when something happens in a video."]
    lines += ["", "```python", *_usage(first, name, is_missing), "```", "", "## What it is", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items() if value]
    lines += ["", "## Metrics", "", *(scores or [f"Not evaluated. In training, on validation: {stated}."])]
    for task, one in by_task.items():
        if one.classes:
            of_task = f" of {task}" if info.tasks else ""
            lines += ["", f"## Classes{of_task}", "", "```text", *map(repr, one.classes), "```"]
    return "\n".join(lines) + "\n", notes


def plain(text: object) -> str:
    """Text of others in one line of Markdown, in which nothing of it is markup."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", printable)


def _usage(info: CheckpointInfo, name: str, is_missing: bool) -> list[str]:
    quoted = json.dumps(name)
    if info.recipe.task == "cls" or not info.fingerprint.get("tower.pretrained"):
        load = f"loaded = unloc.load_model({quoted})  # this folder, or its name on the Hub"
        return [
            "import unloc",
            load,
            "print(loaded.info.classes)  # unloc eval, fit --init and extract --tower take it",
        ]
    option = ', pretrained="WEIGHTS"' if is_missing else ""
    texts = ', ["words to look for"]' if task_named(info.recipe.task).text_kind == "query" else ""
    load = f"model = unloc.load({quoted}{option})  # this folder, or its name on the Hub"
    return ["import unloc", load, f'print(model.predict("video.mp4"{texts}).to_pandas())']


def _facts(info: CheckpointInfo, folder: Path) -> dict[str, str]:
    stated, recipe = info.fingerprint, info.recipe
    found = {"recipe": plain(recipe.name), "tower": plain(stated.get("tower.name", f"of {stated.get('origin')}"))}
    if info.live_towers:
        found["tower"] += f"; in the model: {' and '.join(info.live_towers)} tower"
    rate, count = stated.get("sampling.fps"), stated.get("sampling.num_frames")
    found["frames"] = f"{rate:g} per second" if rate else f"{count} per video" if count else ""
    if "preprocess.image_size" in stated:
        found["frames"] += f", {stated['preprocess.image_size']} pixels"
    calibration = read_calibration(folder, recipe.task)
    if calibration is not None:
        found["not in the video"] = f"below an existence score of {calibration.threshold:.2f}"
    added = [added_by("heads", recipe.model.head), added_by("towers", stated.get("tower.name", ""))]
    return found | {"needs": ", ".join(f"`pip install {one}`" for one in dict.fromkeys(added) if one)}


def _tower(info: CheckpointInfo, folder: Path) -> tuple[str, str, bool]:
    """Where the weights of the tower are, their licence, and whether they must be brought."""
    stated = info.fingerprint
    name, weights = stated.get("tower.name"), stated.get("tower.pretrained") or ""
    base, plus, run = weights.partition("+")
    tags = open_clip.list_pretrained_tags_by_model(name) if name in open_clip.list_models() else []
    licence = f"{UNKNOWN}, see where {plain(base)} came from"
    if name == "toy":
        licence = "Apache-2.0, as unloc"
    elif base == "openai" and base in tags:
        licence = "MIT, see https://github.com/openai/CLIP"
    elif base in tags:
        licence = (
            f"{UNKNOWN}, see https://huggingface.co/{get_pretrained_cfg(name, base).get('hf_hub', '').rstrip('/')}"
        )
    elif base == RANDOM:
        licence = "none: random"
    elif added_by("towers", name or ""):
        licence = f"{UNKNOWN}, see its package"
    if (folder / "tower").is_dir():
        return "in this folder", licence, False
    if not base:
        return "not known", f"{UNKNOWN}, see the project that made the features", False
    if base == RANDOM:
        return "random", licence, False
    if plus and "image" not in info.live_towers:
        return f"those of run {plain(run)}, to be given as pretrained", licence, True
    if name == "toy" or added_by("towers", name):
        return "ship with unloc" if name == "toy" else "come with its package", licence, False
    if base in tags:
        return f"open_clip downloads its tag {plain(base)} at the first use", licence, False
    return f"the file {plain(base)}, to be given as pretrained", licence, True


def _training(info: CheckpointInfo, run: Path, notes: list[str]) -> dict[str, str]:
    """Steps, data and versions of a run; what it does not state is left out."""
    found, env, recipe = {"trained": f"{info.step} steps"}, {}, info.recipe
    rows = [row for row in read_rows(run) if row["kind"] == "train"] if (run / "metrics.jsonl").is_file() else []
    if rows:
        done, total = rows[-1]["step"], round(recipe.train.epochs * rows[-1]["step"] / rows[-1]["epoch"])
        if done < total:
            found["trained"] += f" (training stopped after {done} of {total})"
            notes.append(f"the training is not finished: {done} of {total} steps are done")
    if (run / "env.json").is_file():
        env = json.loads((run / "env.json").read_text(encoding="utf-8"))
    if env.get("init"):
        found["started from"] = plain(Path(env["init"]).name)
    splits = {"splits": recipe.data.train_split, "validation": recipe.data.val_split} if not info.tasks else {}
    found["trained on"] = ", ".join(f"{key} {plain(value)}" for key, value in splits.items() if value)
    for key, value in env.get("data", {}).items():
        found[f"sha256 of its {'annotations' if key.startswith('manifest') else 'videos'}"] = plain(value)
    versions = {key: value for key, value in env.get("versions", {}).items() if key in ("unloc", "torch")}
    found["made with"] = plain(", ".join(f"{key} {value}" for key, value in versions.items()))
    return found


def _scores(info: CheckpointInfo, run: Path) -> list[str]:
    """A table of each evaluation of this checkpoint, with floors, and intervals where they are there or can be had."""
    lines = []
    for path in sorted(run.glob("eval/**/metrics.json")):
        report = read_report(path)
        if report.get("recipe", {}).get("checkpoint_step") != info.step or "metrics" not in report:
            continue  # of another checkpoint of the run
        if not report.get("intervals"):
            try:
                scores = reopen(path).scores()
                report["intervals"] = bootstrap_intervals(scores, scores.metrics(), seed=0)
            except UnlocError:  # its annotations are elsewhere now
                report["intervals"] = {}
        table = metric_table(report)
        table = table.loc[[metric for metric in table.index if is_shown(metric)]]
        floors = [name for name in table.columns if name not in ("ours", "low", "high")]
        rows = [["metric", "this model", "95 % interval", *map(plain, floors)], ["---", *["--:"] * (len(floors) + 2)]]
        for metric, row in table.iterrows():
            ends = f"{row['low']:.2f} to {row['high']:.2f}" if pd.notna(row.get("low")) else ""
            values = ("" if pd.isna(row[name]) else f"{row[name]:.2f}" for name in ("ours", *floors))
            rows.append([plain(metric), next(values), ends, *values])
        of = f"{plain(report['manifest'])}, split {plain(report['split'])}, {report['task']}"
        hashed = f"annotations sha256 {report['annotations_sha256']}"
        lines += [
            f"### {of}",
            "",
            f"Percent, by protocol {plain(report['protocol'])}; {report['num_videos']} videos; {hashed}.",
        ]
        lines += ["The last columns are blind constants, which see no video and read no text.", ""]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    return lines[:-1]
