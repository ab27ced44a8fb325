"""Scoring against a plain loop of the official procedure: the full ActivityNet validation case, and QVHighlights val.

Claim: 492,600 predictions, 200 classes and 10 thresholds are scored in at most 1.5 s on one core with at most 1 GB of
memory; QVHighlights' 1,550 queries in at most 1 s. Every part runs in its own process to measure its memory; the loop
scores the same predictions, and both must give the same figures.

With ../shared the case is golden/metrics/perf, else a synthetic one of the same size.

    taskset -c 2 python benchmarks/evaluation.py [--repeats 3] [--no-loop] [--json OUT]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.converters import convert
from unloc.annotations.schema import (
    InstanceRow,
    Manifest,
    QueryRow,
    VideoRow,
    build_manifest,
    load_manifest,
    save_manifest,
)
from unloc.evaluation.detection import detection
from unloc.evaluation.evaluator import score
from unloc.evaluation.protocols import ACTIVITYNET_THRESHOLDS
from unloc.predictions.reading import read_predictions
from unloc.predictions.records import DETECTION_COLUMNS, MomentPrediction
from unloc.predictions.writing import write_detections, write_moments

SHARED = Path(__file__).resolve().parents[1].parent / "shared"
PARTS = ("ours", "loop", "qvhighlights")
VIDEOS, PER_VIDEO, CLASSES, QUERIES = 4926, 100, 200, 1550


def official_loop(detections: pd.DataFrame, instances: pd.DataFrame) -> float:
    """Average mAP in percent, class by class and prediction by prediction, as in ActivityNet's scorer."""
    truth: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in instances.itertuples(index=False):
        truth[row.label][row.video_id].append((row.start_seconds, row.end_seconds))
    columns = [detections[name].tolist() for name in ("label", "video_id", "start_seconds", "end_seconds", "score")]
    predicted: dict[str, list] = defaultdict(list)
    for label, *rest in zip(*columns, strict=True):
        predicted[label].append(rest)
    return 100.0 * float(np.mean([class_loop(predicted[label], videos) for label, videos in truth.items()]))


def class_loop(predicted: list[tuple[str, float, float, float]], truth: dict[str, list]) -> np.ndarray:
    """(thresholds,) average precision of one class."""
    order = np.argsort([row[3] for row in predicted], kind="stable")[::-1]
    segments = {video: np.array(rows) for video, rows in truth.items()}
    taken = {video: np.zeros((len(ACTIVITYNET_THRESHOLDS), len(rows)), dtype=bool) for video, rows in segments.items()}
    hits = np.zeros((len(order), len(ACTIVITYNET_THRESHOLDS)))
    for place, number in enumerate(order):
        video, start, end, _ = predicted[number]
        if video not in segments:
            continue
        starts, ends = segments[video].T
        overlap = np.maximum(np.minimum(ends, end) - np.maximum(starts, start), 0.0)
        with np.errstate(invalid="ignore"):
            ratio = overlap / ((ends - starts) + (end - start) - overlap)
        for best in ratio.argsort()[::-1]:
            for column, threshold in enumerate(ACTIVITYNET_THRESHOLDS):
                if not ratio[best] < threshold and not taken[video][column, best] and not hits[place, column]:
                    taken[video][column, best] = True
                    hits[place, column] = 1
    return interpolated(hits, sum(map(len, truth.values())))


def interpolated(hits: np.ndarray, num_truth: int) -> np.ndarray:
    """(thresholds,) area under the monotone precision."""
    true = np.cumsum(hits, axis=0)
    precision = true / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    return (precision * hits).sum(axis=0) / num_truth


# -- the cases ------------------------------------------------------------------------------------------------------


def make_cases(folder: Path) -> dict[str, Path]:
    """Predictions and manifests of both cases: the real annotations if ../shared exists, else synthetic ones."""
    names = {key: folder / f"{key}.jsonl" for key in ("tal_manifest", "mr_manifest", "mr")} | {
        "tal": folder / "tal.json"
    }
    if SHARED.is_dir():
        annotations, perf = SHARED / "annotations", SHARED / "golden" / "metrics" / "perf"
        tal = convert("activitynet", [annotations / "activitynet_1.3" / "activity_net.v1-3.rebuilt.json"])
        mr = convert("qvhighlights", [annotations / "qvhighlights" / "highlight_val_release.jsonl"])
        names["tal"] = perf / "activitynet13_val_4926x100_predictions.json.gz"
        names["mr"] = perf / "qvhighlights_val_1550_predictions.jsonl.gz"
        tal, mr = tal.select("validation"), mr.select("val")
    else:
        tal, mr = made_up_detections(names["tal"]), made_up_moments(names["mr"])
    save_manifest(tal, names["tal_manifest"])
    save_manifest(mr, names["mr_manifest"])
    return names


def made_up_detections(path: Path) -> Manifest:
    rng = np.random.default_rng(0)
    classes, rows, tables = [f"class {number}" for number in range(CLASSES)], [], []
    for number in range(VIDEOS):
        video, label = f"v{number}", classes[number % CLASSES]
        ends = np.sort(rng.uniform(0, 120, 2 * rng.integers(1, 4))).reshape(-1, 2)
        rows += [VideoRow(video, "validation", 120.0)]
        rows += [InstanceRow(video, "validation", label, segment) for segment in ends]
        near = ends[rng.integers(0, len(ends), PER_VIDEO)] + rng.normal(0, 5, (PER_VIDEO, 2))
        labels = np.where(rng.random(PER_VIDEO) < 0.8, label, rng.choice(classes, PER_VIDEO))
        table = {"video_id": video, "label": labels, "start_seconds": near[:, 0], "end_seconds": near[:, 1]}
        tables.append(pd.DataFrame(table | {"score": rng.random(PER_VIDEO)}))
    write_detections(path, pd.concat(tables)[DETECTION_COLUMNS])
    return build_manifest(name="made up", tasks=("tal",), rows=rows, classes=classes)


def made_up_moments(path: Path) -> Manifest:
    rng = np.random.default_rng(0)
    rows, predictions, clips = [], [], list(range(20, 40))
    for number in range(QUERIES):
        ratings = rng.integers(0, 5, (len(clips), 3)).tolist()
        rows += [VideoRow(f"v{number}", "val", 150.0)]
        rows += [QueryRow(f"v{number}", "val", str(number), "a cat", [[40, 80]], clips, ratings)]
        windows = np.sort(rng.uniform(0, 150, (10, 2)), axis=1)
        scored = np.concatenate([windows, rng.random((10, 1))], axis=1)
        names = {"qid": str(number), "video_id": f"v{number}", "query": "a cat"}
        predictions.append(MomentPrediction(**names, windows=scored, saliency=rng.random(75)))
    write_moments(path, predictions)
    return build_manifest(name="made up", tasks=("mr", "hd"), rows=rows)


# -- measuring ------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], object]) -> tuple[object, float, float]:
    """(result, seconds, CPU seconds): they differ if other processes share the core."""
    started, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, time.perf_counter() - started, time.process_time() - cpu


def run_part(part: str, names: dict[str, str], repeats: int) -> dict:
    """Seconds of loading and of each scoring, the main metric, and the memory of this process."""
    task, key = ("hd", "mr") if part == "qvhighlights" else ("tal", "tal")
    manifest = load_manifest(Path(names[f"{key}_manifest"]))
    held, load_seconds, load_cpu = timed(lambda: read_predictions(Path(names[key]), task).predictions)
    calls = {
        "ours": lambda: detection(held, manifest)["mAP@avg"],
        "loop": lambda: official_loop(held, manifest.instances),
        "qvhighlights": lambda: score("hd", held, manifest, "moment_detr")["MR-full-mAP"],
    }
    results, seconds, cpu = zip(*(timed(calls[part]) for _ in range(1 if part == "loop" else repeats)), strict=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    times = {"load_s": load_seconds, "load_cpu_s": load_cpu, "score_s": list(seconds), "score_cpu_s": list(cpu)}
    return {"figure": results[0], "rows": len(held), "peak_mib": peak, **times}


def in_own_process(part: str, names: dict[str, Path], repeats: int) -> dict:
    command = [sys.executable, __file__, "--part", part, "--repeats", str(repeats)]
    command += ["--names", json.dumps({key: str(path) for key, path in names.items()})]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_table(found: dict[str, dict]) -> None:
    heads = ("predictions", "load s", "(CPU)", "score s", "(CPU)", "peak MiB", "figure")
    print(f"{'':14}" + "".join(f"{head:>12}" for head in heads))
    for part, row in found.items():
        seconds = (row["load_s"], row["load_cpu_s"], np.median(row["score_s"]), np.median(row["score_cpu_s"]))
        cells = "".join(f"{value:12.2f}" for value in seconds)
        print(f"{part:14}{row['rows']:12,}{cells}{row['peak_mib']:12.0f}{row['figure']:12.6f}")
    if "loop" in found:
        loop, ours = (np.median(found[part]["score_cpu_s"]) for part in ("loop", "ours"))
        print(f"loop / ours, CPU: {loop / ours:.1f}")
    print("aims: ours <= 1.5 s and 1024 MiB, qvhighlights <= 1 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-loop", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--names", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_part(options.part, options.names, options.repeats)))
        return
    with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        names = make_cases(Path(folder))
        parts = [part for part in PARTS if part != "loop" or not options.no_loop]
        found = {part: in_own_process(part, names, options.repeats) for part in parts}
    print_table(found)
    if "loop" in found:
        assert abs(found["loop"]["figure"] - found["ours"]["figure"]) < 1e-7, "both must give the same average mAP"
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
