"""Manifests for three tasks, files of predictions for them, and the commands that score these."""

import json

from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, save_manifest

TAL = "eval --manifest tal.jsonl --task tal --split test"
MR = "eval --manifest mr.jsonl --task mr --split val"
HD, AS = MR.replace("mr --", "hd --"), TAL.replace("tal --", "as --")
TRUTH = {"v1": ("Run", 10, 20), "v2": ("Jump", 0, 50), "v3": ("Run", 30, 90)}


def make_scored(folder):
    """Manifests for three tasks, perfect predictions for each, and class lists."""
    rows = [VideoRow("t1", "train", 100.0), InstanceRow("t1", "train", "Run", [0, 50])]
    rows += [VideoRow(video, "test", 100.0) for video in TRUTH]
    rows += [InstanceRow(video, "test", label, segment) for video, (label, *segment) in TRUTH.items()]
    classes = ("Run", "Jump")
    save_manifest(build_manifest(name="small", tasks=("tal", "as"), rows=rows, classes=classes), folder / "tal.jsonl")
    write_tal(folder / "tal.json", TRUTH)
    ratings = [[4, 4, 4]] * 5  # a rater without any good clip scores 0 officially
    rows = [row for n in (1, 2) for row in (VideoRow(f"v{n}", "val", 20.0), VideoRow(f"w{n}", "train", 20.0))]
    for n in (1, 2):
        for video, split in ((f"v{n}", "val"), (f"w{n}", "train")):
            rows.append(QueryRow(video, split, f"{n}", f"query {n}", [[0, 10]], [0, 1, 2, 3, 4], ratings))
    save_manifest(build_manifest(name="rated", tasks=("mr", "hd"), rows=rows), folder / "mr.jsonl")
    write_mr(folder / "mr.json", [answer(1), answer(2)])
    frames = [{"video_id": v, "fps": 2, "labels": painted(*item)} for v, item in TRUTH.items()]
    (folder / "as.jsonl").write_text("\n".join(map(json.dumps, frames)))
    for side, names in (("train", ("Run", "Jump")), ("test", ("Jump", "Run"))):
        (folder / "lists" / side).mkdir(parents=True)
        for number, name in enumerate(names):
            (folder / "lists" / side / f"split_{number}.list").write_text(f"{name}\n")
    return folder


def painted(label, start, end):
    return [label if start <= frame / 2 < end else None for frame in range(200)]


def answer(number, **changes):
    windows, saliency = [[0, 10, 0.9], [10, 20, 0.1]], [1.0] * 5 + [0.0] * 5
    row = {"qid": number, "query": f"query {number}", "vid": f"v{number}"}
    return row | {"pred_relevant_windows": windows, "pred_saliency_scores": saliency} | changes


def write_mr(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


def write_tal(path, found, extra=()):
    results = {v: [{"label": label, "score": 0.9, "segment": [a, b]}] for v, (label, a, b) in found.items()}
    for video, *rest in extra:
        results.setdefault(video, []).extend(rest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "VERSION 1.3", "results": results, "external_data": {"used": False}}))


def metrics_of(path):
    return json.loads(path.read_text())["metrics"]
