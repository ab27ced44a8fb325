"""Makes metrics.json: small made-up annotations and predictions, and what plain loops say they score.

The loops are written from the description of the official procedures, prediction by prediction, in plain Python: slow,
easy to check by eye, and without a line of unloc. A test holds them against the official scorers' answers too, where
those are at hand (../shared).

    python tests/golden/make_metrics.py
"""

import json
import math
import random
from pathlib import Path

ACTIVITYNET = [0.5 + 0.05 * step for step in range(10)]
THUMOS = [0.3 + 0.1 * step for step in range(5)]
LEVELS = {"Fair": 2, "Good": 3, "VeryGood": 4}


def iou(one, other, *, hull=False):
    overlap = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    union = (one[1] - one[0]) + (other[1] - other[0]) - overlap
    if hull:
        union = max(one[1], other[1]) - min(one[0], other[0])
    return overlap / union if union else math.nan


def mean(values):
    return sum(values) / len(values)


# -- detection ------------------------------------------------------------------------------------------------------


def class_ap(found, truth, threshold):
    """AP of one class; found (video, start, end, score) in the file's order, truth {video: [(start, end)]}."""
    taken, hits = set(), []
    for video, *segment, _ in sorted(reversed(found), key=lambda row: -row[3]):
        overlaps = [(iou(segment, one), number) for number, one in enumerate(truth.get(video, []))]
        hits.append(False)
        for overlap, number in sorted(overlaps, reverse=True):
            if overlap >= threshold and (video, number) not in taken:
                taken.add((video, number))
                hits[-1] = True
                break
    return area(hits, sum(map(len, truth.values())))


def area(hits, num_truth):
    """Of the precision made monotone from the right, summed where recall rises."""
    precisions = [sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))]
    return sum(max(precisions[n:]) for n, hit in enumerate(hits) if hit) / num_truth


def by_class(rows):
    grouped = {}
    for video, items in rows.items():
        for label, *rest in items:
            grouped.setdefault(label, []).append((video, *rest))
    return grouped


def detection(found, truth, thresholds):
    """{class: [AP at each threshold]}."""
    predicted = by_class(found)
    result = {}
    for label, rows in by_class(truth).items():
        segments = {}
        for video, *segment in rows:
            segments.setdefault(video, []).append(segment)
        result[label] = [class_ap(predicted.get(label, []), segments, threshold) for threshold in thresholds]
    return result


def recall_at_kx(found, truth, threshold, k):
    shares = []
    predicted = by_class(found)
    for label, rows in by_class(truth).items():
        reached = []
        for video, *segment in rows:
            num_truth = sum(row[0] == video for row in rows)
            mine = sorted((row for row in predicted.get(label, []) if row[0] == video), key=lambda row: -row[3])
            reached.append(any(iou(row[1:3], segment) >= threshold for row in mine[: k * num_truth]))
        shares.append(mean(reached))
    return mean(shares)


# -- moments --------------------------------------------------------------------------------------------------------


def clamped(windows, duration):
    return [[min(max(start, 0.0), duration), min(max(end, 0.0), duration)] for start, end in windows]


def recall_at(queries, rank, threshold):
    """UnLoc: IoU >= threshold, best scores first, ground truth cut to the video."""
    hits = []
    for query in queries:
        best = sorted(query["predicted"], key=lambda window: -window[2])[:rank]
        truth = clamped(query["windows"], query["duration"])
        hits.append(any(iou(window, one) >= threshold for window in best for one in truth))
    return mean(hits)


def recall_2d_tan(queries, rank, threshold):
    """2D-TAN: IoU > threshold by the hull, the file's order, NMS at 0.5."""
    hits = []
    for query in queries:
        kept = []
        for window in query["predicted"]:
            if all(not iou(window, one) > 0.5 for one in kept):
                kept.append(window)
        truth = clamped(query["windows"], query["duration"])
        hits.append(any(iou(window, one, hull=True) > threshold for window in kept[:rank] for one in truth))
    return mean(hits)


def query_map(queries, threshold, shortest=-math.inf, longest=math.inf):
    """QVHighlights: the first ten entries, by score, per query; ground truth of a range of lengths."""
    values = []
    for query in queries:
        truth = [one for one in query["windows"] if shortest < one[1] - one[0] <= longest]
        if truth:
            found = [("v", *window) for window in query["predicted"][:10]]
            values.append(class_ap(list(reversed(found)), {"v": truth}, threshold))
    return mean(values)


def first_window(queries, threshold):
    hits = []
    for query in queries:
        ratios = [iou(query["predicted"][0], one, hull=True) for one in query["windows"]]
        hits.append(max(ratios) >= threshold)
    return mean(hits)


# -- highlights -----------------------------------------------------------------------------------------------------


def highlight(queries, level):
    """(mAP, Hit1): three raters apart; AP is the plain mean of monotone precision where recall changes."""
    precisions, hits = [], []
    for query in queries:
        clips = int(query["duration"] / 2)
        scores = (query["saliency"] + [0.0] * clips)[:clips]
        rated = dict(zip(query["clips"], query["ratings"], strict=True))
        positive = [[rating >= level for rating in rated.get(clip, [0, 0, 0])] for clip in range(clips)]
        precisions += [rater_ap([row[rater] for row in positive], scores) for rater in range(3)]
        hits.append(any(positive[scores.index(max(scores))]))
    return mean(precisions), mean(hits)


def rater_ap(positive, scores):
    steps = []
    for score in sorted(set(scores), reverse=True):
        kept = [one for one, value in zip(positive, scores, strict=True) if value >= score]
        steps.append((sum(kept), sum(kept) / len(kept)))
    if all(positive):
        return 1.0
    monotone = [max(precision for _, precision in steps[n:]) for n in range(len(steps))]
    rises = [n for n in range(len(steps)) if steps[n][0] > (steps[n - 1][0] if n else 0)]
    return mean([monotone[n] for n in rises]) if rises else 0.0


# -- frames ---------------------------------------------------------------------------------------------------------


def paint(segments, duration, fps, *, both_ends):
    """VideoCLIP: floor(start) up to before ceil(end), ceil(duration) rows. UnLoc: rounded, both ends included."""
    frames = [None] * (math.floor(duration * fps) if both_ends else math.ceil(duration * fps))
    for label, start, end in segments:
        first = round(start * fps) if both_ends else math.floor(start * fps)
        after = round(end * fps) + 1 if both_ends else math.ceil(end * fps)
        for frame in range(first, min(after, len(frames))):
            frames[frame] = label
    return frames


def frame_ap(truth, scores):
    total, found, precision = sum(truth), 0, 0.0
    for score in sorted(set(scores), reverse=True):
        kept = [one for one, value in zip(truth, scores, strict=True) if value >= score]
        precision += (sum(kept) - found) / total * sum(kept) / len(kept)
        found = sum(kept)
    return precision


def runs(frames):
    found = []
    for place, label in enumerate(frames):
        if place == 0 or label != frames[place - 1]:
            found.append([label, place, place])
        found[-1][2] = place + 1
    return [run for run in found if run[0] is not None]


def f1(videos, overlap):
    right = wrong = missed = 0
    for truth, predicted in videos:
        wanted, taken = runs(truth), set()
        for label, first, after in runs(predicted):
            ratios = [iou((first, after), one[1:], hull=True) if one[0] == label else 0.0 for one in wanted]
            best = ratios.index(max(ratios)) if ratios else -1
            if best >= 0 and ratios[best] >= overlap and best not in taken:
                taken.add(best)
                right += 1
            else:
                wrong += 1
        missed += len(wanted) - len(taken)
    return 2 * right / (2 * right + wrong + missed)


def edit(videos):
    scores = []
    for truth, predicted in videos:
        one, other = ([run[0] for run in runs(frames)] for frames in (truth, predicted))
        rows = [[i + j if i * j == 0 else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
        for i in range(1, len(one) + 1):
            for j in range(1, len(other) + 1):
                replaced = rows[i - 1][j - 1] + (one[i - 1] != other[j - 1])
                rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, replaced)
        scores.append(1 - rows[-1][-1] / max(len(one), len(other), 1))
    return mean(scores)


# -- the made-up data -----------------------------------------------------------------------------------------------


def segment(rng, duration):
    start = rng.uniform(0, 0.8 * duration)
    return [round(start, 3), round(rng.uniform(start + 0.02 * duration, duration), 3)]


def near(rng, one, duration):
    return sorted(round(min(max(place + rng.gauss(0, 0.06 * duration), 0), duration), 3) for place in one)


def make_detection(rng):
    labels, truth, found = ["Run", "Jump", "Swim", "Row"], {}, {}
    for number in range(8):
        items = [[rng.choice(labels), *segment(rng, 100)] for _ in range(rng.randint(1, 3))]
        truth[f"v{number}"] = items
        found[f"v{number}"] = [
            [rng.choice([item[0]] * 4 + labels), *near(rng, item[1:], 100), rng.random()]
            for item in items
            for _ in range(4)
        ]
    found["unknown"] = [["Run", 0, 10, rng.random()]]
    expected = {"activitynet": detection(found, truth, ACTIVITYNET), "thumos14": detection(found, truth, THUMOS)}
    recalls = {f"recall@{k}x@{t:.2f}": recall_at_kx(found, truth, t, k) for k in (1, 5) for t in THUMOS}
    return {"truth": truth, "found": found, "average_precision": expected, "recall": recalls}


def make_moments(rng):
    queries = []
    for number in range(12):
        windows = [segment(rng, 40) for _ in range(rng.randint(1, 3))]
        if number == 3:
            windows[0][1] = 46.0  # past the video
        predicted = [[*near(rng, rng.choice(windows), 40), rng.random()] for _ in range(12)]
        clips = sorted(rng.sample(range(20), 6))
        query = {"duration": 40.0, "windows": windows, "predicted": predicted, "clips": clips}
        query["ratings"] = [[rng.randint(0, 4) for _ in range(3)] for _ in clips]
        query["saliency"] = [rng.random() for _ in range(rng.choice([18, 20, 23]))]
        queries.append(query)
    default = {f"R{n}@{t}": recall_at(queries, n, t) for n in (1, 5, 10) for t in (0.3, 0.5, 0.7)}
    strict = {f"R{n}@{t}": recall_2d_tan(queries, n, t) for n in (1, 5, 10) for t in (0.3, 0.5, 0.7)}
    ranges = {"full": (-math.inf, math.inf), "short": (0, 10), "middle": (10, 30), "long": (30, 150)}
    official = {
        f"MR-{name}-mAP": mean([query_map(queries, round(t, 2), *ends) for t in ACTIVITYNET])
        for name, ends in ranges.items()
    }
    official |= {f"MR-full-R1@{round(t, 2)}": first_window(queries, round(t, 2)) for t in ACTIVITYNET}
    for name, level in LEVELS.items():
        ap, hit = highlight([{**query, "saliency": query["saliency"][:20]} for query in queries], level)
        official |= {f"HL-min-{name}-mAP": ap, f"HL-min-{name}-Hit1": hit}
    return {"queries": queries, "default": default, "2d-tan": strict, "moment_detr": official}


def make_frames(rng):
    labels, videos = ["crack", "stir", "fry"], {}
    for number in range(5):
        duration, place, segments = rng.choice([20.0, 23.7, 31.5]), 0.0, []
        while place < duration - 4:
            start = place + rng.uniform(0.5, 3)
            place = start + rng.uniform(1.5, 6)
            segments.append([rng.choice(labels), round(start, 1), round(min(place, duration), 1)])
        videos[f"v{number}"] = {"duration": duration, "segments": segments}
    expected = {}
    for fps in (1, 2, 10):
        for video in videos.values():
            truth = paint(video["segments"], video["duration"], fps, both_ends=False)
            shifted = [truth[max(0, place - fps)] for place in range(len(truth))]
            guesses = [rng.choice([*labels, None]) if rng.random() < 0.15 else label for label in shifted]
            scores = [[round(0.5 * (name == label) + rng.random(), 9) for name in labels] for label in guesses]
            video.setdefault("predicted", {})[str(fps)] = {"labels": guesses, "scores": scores}
        expected[str(fps)] = {
            name: frame_scores(videos, labels, fps, both_ends=ends) for name, ends in (("coin", False), ("unloc", True))
        }
    return {"classes": labels, "videos": videos, "expected": expected}


def frame_scores(videos, labels, fps, *, both_ends):
    pairs, scores = [], []
    for video in videos.values():
        truth = paint(video["segments"], video["duration"], fps, both_ends=both_ends)
        predicted = video["predicted"][str(fps)]
        pairs.append((truth, predicted["labels"][: len(truth)]))
        scores += predicted["scores"][: len(truth)]
    flat = [(one, other) for truth, predicted in pairs for one, other in zip(truth, predicted, strict=True)]
    columns = [[row[code] for row in scores] for code in range(len(labels))]
    precisions = [frame_ap([one == name for one, _ in flat], columns[code]) for code, name in enumerate(labels)]
    metrics = {"frame_accuracy": mean([one == other for one, other in flat]), "mAP": mean(precisions)}
    metrics |= {f"F1@{round(100 * overlap)}": f1(pairs, overlap) for overlap in (0.1, 0.25, 0.5)}
    return metrics | {"edit": edit(pairs)}


def main():
    rng = random.Random(20261121)
    made = {"detection": make_detection(rng), "moments": make_moments(rng), "frames": make_frames(rng)}
    Path(__file__).with_name("metrics.json").write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()
