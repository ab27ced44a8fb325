"""The world's annotations in the official formats of six datasets, exactly as those are released.

Every function takes the plans and returns files: relative path to text. Deviations: the test splits have annotations,
COIN has a validation subset, the Charades csv has only the columns `id` and `length`, and `version` says that the world
is synthetic (files without such a key show it by the ids of their videos, `v_synth…`).
"""

import json
from collections.abc import Sequence

import numpy as np

from unloc.synth.events import Event, VideoPlan, video_generator
from unloc.synth.sentences import class_query, event_query
from unloc.synth.vocabulary import CLASS_ACTIONS, MOTIONS, STEP_ACTIONS, TASKS

SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
SYNTHETIC = "synthetic world rendered by unloc"
CLIP_SECONDS = 2
NUM_RATERS = 3
CLASS_SPLIT_SEED = 20  # class splits are part of the benchmark: the same for every world
NUM_CLASS_SPLITS = 10
CLASS_SPLITS = {"train_50_test_50": 0.5, "train_75_test_25": 0.75}
Files = dict[str, str]


def all_annotations(plans: Sequence[VideoPlan], seed: int) -> Files:
    """Every annotation file of a world: path below `annotations/` to text."""
    files = activitynet(plans) | activitynet_captions(plans, seed) | charades_sta(plans, seed)
    return files | qvhighlights(plans, seed) | coin(plans) | class_splits()


def activitynet(plans: Sequence[VideoPlan]) -> Files:
    """`activitynet.json`, the schema of ActivityNet 1.3: every event whose action is a class."""
    database = {
        plan.video_id: {
            "duration": round(plan.duration_seconds, 3),
            "subset": SUBSETS[plan.split],
            "resolution": f"{plan.width}x{plan.height}",
            "url": f"videos/{plan.video_id}.mp4",
            "annotations": [
                {"segment": [event.start_seconds, event.end_seconds], "label": event.action.name}
                for event in plan.events
                if event.action in CLASS_ACTIONS
            ],
        }
        for plan in plans
    }
    nodes = [(None, None, "Root"), *((0, "Root", motion.capitalize()) for motion in MOTIONS)]
    nodes += [(1 + MOTIONS.index(a.motion), a.motion.capitalize(), a.name) for a in CLASS_ACTIONS]
    taxonomy = [
        {"parentId": parent, "parentName": parent_name, "nodeName": name, "nodeId": number}
        for number, (parent, parent_name, name) in enumerate(nodes)
    ]
    return {"activitynet.json": _json({"database": database, "taxonomy": taxonomy, "version": SYNTHETIC})}


def activitynet_captions(plans: Sequence[VideoPlan], seed: int) -> Files:
    """`activitynet_captions/{train,val,test}.json`: one sentence per event."""
    contents: dict[str, dict] = {split: {} for split in SUBSETS}
    for plan in plans:
        rng = video_generator(seed, plan.index, 2)
        contents[plan.split][plan.video_id] = {
            "duration": round(plan.duration_seconds, 2),
            "timestamps": [[event.start_seconds, event.end_seconds] for event in plan.events],
            "sentences": [event_query(event, plan, rng) for event in plan.events],
        }
    return {f"activitynet_captions/{split}.json": _json(content) for split, content in contents.items()}


def charades_sta(plans: Sequence[VideoPlan], seed: int) -> Files:
    """`charades_sta/charades_sta_{split}.txt`, one line per event, and `Charades_v1_{split}.csv` with the lengths."""
    files = {f"charades_sta/charades_sta_{split}.txt": "" for split in SUBSETS}
    files |= {f"charades_sta/Charades_v1_{split}.csv": "id,length\n" for split in SUBSETS}
    for plan in plans:
        rng = video_generator(seed, plan.index, 4)
        files[f"charades_sta/Charades_v1_{plan.split}.csv"] += f"{plan.video_id},{plan.duration_seconds:.2f}\n"
        for event in plan.events:
            place = f"{plan.video_id} {event.start_seconds:.1f} {event.end_seconds:.1f}"
            line = f"{place}##{event_query(event, plan, rng).lower()}\n"
            files[f"charades_sta/charades_sta_{plan.split}.txt"] += line
    return files


def qvhighlights(plans: Sequence[VideoPlan], seed: int) -> Files:
    """`qvhighlights/highlight_{split}_release.jsonl`: one query per action of a video, with all its moments."""
    files, qid = {f"qvhighlights/highlight_{split}_release.jsonl": "" for split in SUBSETS}, 0
    for plan in plans:
        sentences, raters = video_generator(seed, plan.index, 5), video_generator(seed, plan.index, 3)
        for action in dict.fromkeys(event.action for event in plan.events):
            events = [event for event in plan.events if event.action == action]
            grades = relevant_clips(events, int(plan.duration_seconds // CLIP_SECONDS))
            clips = list(grades)
            windows = np.split(clips, np.flatnonzero(np.diff(clips) > 1) + 1)
            row = {
                "qid": qid,
                "query": class_query(events[0], sentences),
                "duration": int(plan.duration_seconds),
                "vid": plan.video_id,
                "relevant_windows": [[CLIP_SECONDS * int(run[0]), CLIP_SECONDS * int(run[-1] + 1)] for run in windows],
                "relevant_clip_ids": clips,
                "saliency_scores": rate_clips(grades, raters),
            }
            files[f"qvhighlights/highlight_{plan.split}_release.jsonl"] += json.dumps(row) + "\n"
            qid += 1
    return files


def relevant_clips(events: Sequence[Event], num_clips: int) -> dict[int, int]:
    """The 2 s clips that show the events, in order, with their grade as highlights, 1-4.

    A clip is relevant where events fill half of it, and a better highlight the longer its object glows. The best clip
    is always relevant, with grade 4.
    """
    grades, quality = {}, {}
    for clip in range(num_clips):
        start, end = clip * CLIP_SECONDS, (clip + 1) * CLIP_SECONDS
        shown = sum(event.overlap_seconds(start, end) for event in events)
        glow = sum(max(0.0, min(e.peak_end_seconds, end) - max(e.peak_start_seconds, start)) for e in events)
        quality[clip] = (glow + 0.5 * shown, shown)
        if shown >= 0.5 * CLIP_SECONDS:
            grades[clip] = 1 + int(shown >= 1.5) + int(glow >= 0.5) + int(glow >= 1.2)
    grades[max(quality, key=quality.__getitem__)] = 4
    return dict(sorted(grades.items()))


def rate_clips(grades: dict[int, int], rng: np.random.Generator) -> list[list[int]]:
    """Three raters' scores (0-4) per clip: the grade, sometimes one lower or higher."""
    moods = rng.choice([-1, 0, 1], size=(len(grades), NUM_RATERS), p=[0.15, 0.75, 0.1])
    return np.clip(np.array(list(grades.values()))[:, None] + moods, 0, 4).tolist()


def coin(plans: Sequence[VideoPlan]) -> Files:
    """`coin.json`, the schema of COIN: the steps of each video's task, in order."""
    step_ids = {action: str(number) for number, action in enumerate(STEP_ACTIONS, start=1)}
    database = {}
    for plan in plans:
        steps = [(e.action, [e.start_seconds, e.end_seconds]) for e in plan.events if e.is_step]
        database[plan.video_id] = {
            "recipe_type": list(TASKS).index(plan.task),
            "annotation": [{"id": step_ids[a], "segment": segment, "label": a.name} for a, segment in steps],
            "video_url": f"videos/{plan.video_id}.mp4",
            "start": 0,
            "end": round(plan.duration_seconds, 3),
            "duration": round(plan.duration_seconds, 3),
            "class": plan.task,
            "subset": SUBSETS[plan.split],
        }
    return {"coin.json": _json({"database": database, "version": SYNTHETIC})}


def class_splits() -> Files:
    """`zero_shot/{train_50_test_50,train_75_test_25}/{train,test}/split_{0..9}.list`, one class name per line.

    Every word of an unseen class (its colour, its shape, its motion) occurs in seen classes; the class itself does not.
    """
    files: Files = {}
    rng = np.random.default_rng(CLASS_SPLIT_SEED)
    for folder, share in CLASS_SPLITS.items():
        num_seen = round(share * len(CLASS_ACTIONS))
        for number in range(NUM_CLASS_SPLITS):
            while True:
                order = [CLASS_ACTIONS[index].name for index in rng.permutation(len(CLASS_ACTIONS))]
                seen, unseen = order[:num_seen], order[num_seen:]
                if set(" ".join(unseen).split()) <= set(" ".join(seen).split()):
                    break
            for side, names in {"train": seen, "test": unseen}.items():
                files[f"zero_shot/{folder}/{side}/split_{number}.list"] = "\n".join(sorted(names)) + "\n"
    return files


def _json(content: dict) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"
