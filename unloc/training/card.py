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
from unloc.model.clip import RANDOM, SHIPPED
from unloc.plugins import added_by
from unloc.tasks import task_named
from unloc.training.curves import read_rows
from unloc.training.folder import read_json

CARD = """---
library_name: unloc
tags: [video, {tags}]
---
# {recipe}: {titles}

It finds when something happens in a video.

```python
import unloc
{use}
```

## What it is

| | |
|---|---|
{facts}

## Metrics

{scores}
{classes}"""


def card(info: CheckpointInfo, folder: Path, run: Path, name: str) -> tuple[str, list[str]]:
    """README.md of a model folder, which is called `name`, and notes on what it lacks.

    `run`: the run folder with env.json, metrics.jsonl and evaluations, as far as it has them.
    """
    by_task, notes = {task: info.of_task([task]) for task in info.tasks} or {info.recipe.task: info}, []
    first, titles = next(iter(by_task.values())), [task_named(task).title for task in by_task]
    facts, option, scores = _facts(first, folder), "", _scores(info, run)
    facts["weights of the tower"], facts["licence of the tower"], is_missing = _tower(first, folder)
    if is_missing:
        notes.append(f"{facts['weights of the tower']}: not in the folder; --with-tower puts it in")
        option = ', pretrained="WEIGHTS"'
    facts |= _training(info, run, notes)
    if not scores:
        notes.append("this checkpoint was not evaluated: after `unloc eval` the card has metrics, floors and intervals")
    use = f"model = unloc.load({json.dumps(name)}{option})  # this folder, or its name on the Hub\n"
    texts = ', ["words to look for"]' if task_named(first.recipe.task).text_kind == "query" else ""
    use += f'print(model.predict("video.mp4"{texts}).to_pandas())'
    if first.recipe.task == "cls" or not first.fingerprint.get("tower.pretrained"):  # `predict` does not take these
        use = f"print(unloc.load_model({json.dumps(name)}).info)  # `unloc eval` and `fit --init` take it"
    classes = {f" of {task}" if info.tasks else "": one.classes for task, one in by_task.items() if one.classes}
    lists = {title: "".join(f"{one!r}\n" for one in names) for title, names in classes.items()}
    filled = {"recipe": plain(info.recipe.name), "titles": ", ".join(titles), "use": use}
    filled["tags"] = ", ".join(title.replace(" ", "-") for title in titles)
    filled["facts"] = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value)
    filled["classes"] = "".join(f"\n## Classes{title}\n\n```text\n{text}```\n" for title, text in lists.items())
    return CARD.format(**filled, scores=scores or "Not evaluated."), notes


def plain(text: object) -> str:
    """Text of others in one line of Markdown, in which nothing of it is markup."""
    printable = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return re.sub(r"([\\`*_{}\[\]<>|#&~$])", r"\\\1", printable)


def _facts(info: CheckpointInfo, folder: Path) -> dict[str, str]:
    stated, recipe = info.fingerprint, info.recipe
    live = f"; in the model: {' and '.join(info.live_towers)} tower" if info.live_towers else ""
    rate, count = stated.get("sampling.fps"), stated.get("sampling.num_frames")
    size = f", {stated['preprocess.image_size']} pixels" if "preprocess.image_size" in stated else ""
    calibration = read_calibration(folder, recipe.task)
    packages = {added_by("heads", recipe.model.head), added_by("towers", stated.get("tower.name") or "")} - {None}
    return {
        "recipe": plain(recipe.name),
        "tower": plain(stated.get("tower.name") or stated.get("origin")) + live,
        "frames": (f"{rate:g} per second" if rate else f"{count} per video") + size,
        "not in the video": calibration and f"below an existence score of {calibration.threshold:.2f}",
        "needs": ", ".join(f"`pip install {one}`" for one in sorted(packages)),
    }


def _tower(info: CheckpointInfo, folder: Path) -> tuple[str, str, bool]:
    """Where the weights are that the towers had before this training, their licence, and whether they must be given."""
    name, weights = info.fingerprint.get("tower.name") or "", info.fingerprint.get("tower.pretrained") or ""
    base, plus, run = weights.partition("+")
    tags = open_clip.list_pretrained_tags_by_model(name) if name in open_clip.list_models() else []
    if name == "toy":
        where, licence, is_missing = "ship with unloc", "Apache-2.0, as unloc", False
    elif (package := added_by("towers", name)) and base == SHIPPED:
        where, licence, is_missing = f"come with {package}", f"unknown, see {package}", False
    elif base in tags:
        page = f"unknown, see https://huggingface.co/{get_pretrained_cfg(name, base).get('hf_hub', '').rstrip('/')}"
        licence = "MIT, see https://github.com/openai/CLIP" if base == "openai" else page
        where, is_missing = f"tag {plain(base)}, which open_clip downloads at the first use", False
    elif base in ("", RANDOM):
        where, licence, is_missing = base and "random", base and "none", False
    else:
        where, licence, is_missing = f"weights file {plain(base)}", f"unknown, see where {plain(base)} came from", True
    if plus and "image" not in info.live_towers:
        where, is_missing = f"those of run {plain(run)}", True
    if (folder / "tower").is_dir():
        where, is_missing = "in this folder", False
    return where, licence or "unknown, see the project that made the features", is_missing


def _training(info: CheckpointInfo, run: Path, notes: list[str]) -> dict[str, str]:
    env = read_json(run / "env.json") if (run / "env.json").is_file() else {}
    rows = [row for row in read_rows(run) if row["kind"] == "train"] if (run / "metrics.jsonl").is_file() else []
    data, versions, stopped = env.get("data", {}), env.get("versions", {}), ""
    if rows:
        done, total = rows[-1]["step"], round(info.recipe.train.epochs * rows[-1]["step"] / rows[-1]["epoch"])
        if done < total:
            stopped = f"; training stopped after {done} of {total}"
            notes.append(f"the training is not finished: {done} of {total} steps are done")
    return {
        "trained": f"{info.step} steps{stopped}",
        "started from": env.get("init") and plain(Path(env["init"]).name),
        "sha256 of annotations": plain(data.get("manifest_sha256", "")),
        "sha256 of videos": plain(data.get("videos_sha256", "")),
        "made with": plain(", ".join(f"{key} {versions[key]}" for key in ("unloc", "torch") if key in versions)),
    }


def _scores(info: CheckpointInfo, run: Path) -> str:
    """A table of each evaluation of this checkpoint, with floors, and intervals where they are there or can be had."""
    tables = []
    for path in sorted(run.glob("eval/**/metrics.json")):
        report = read_report(path)
        if report.get("recipe", {}).get("checkpoint_step") != info.step:
            continue  # of another checkpoint of the run
        if not report.get("intervals"):
            try:
                scores = reopen(path).scores()
                report["intervals"] = bootstrap_intervals(scores, scores.metrics(), seed=0)
            except UnlocError:  # its annotations are elsewhere now
                report["intervals"] = {}
        table, floors = metric_table(report), list(report.get("floors", {}))
        rows = [["metric", "this model", "95 % interval", *map(plain, floors)], ["---", *["--:"] * (len(floors) + 2)]]
        for metric, row in table.loc[[metric for metric in table.index if is_shown(metric)]].iterrows():
            ends = f"{row['low']:.2f} to {row['high']:.2f}" if pd.notna(row.get("low")) else ""
            values = ["" if pd.isna(row[name]) else f"{row[name]:.2f}" for name in ("ours", *floors)]
            rows.append([plain(metric), values[0], ends, *values[1:]])
        of = f"{plain(report['manifest'])}, split {plain(report['split'])}, {report['task']}"
        how = f"Percent, by protocol {plain(report['protocol'])}; {report['num_videos']} videos. The last columns are "
        how += f"blind constants. Annotations: sha256 {report['annotations_sha256']}."
        tables.append(f"### {of}\n\n{how}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    return "\n".join(tables)
