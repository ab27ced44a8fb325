"""The world's annotations in the official formats of six datasets, exactly as those are released.

Deviations: the test splits have annotations, COIN has a validation subset, the Charades csv has only the columns `id`
and `length`, and `version` says that the world is synthetic (files without such a key show it by the ids of their
videos, `v_synth…`).
"""

import json
import math
from collections.abc import Sequence

import numpy as np

from unloc.synth.events import Event, VideoPlan, video_generator
from unloc.synth.sentences import class_query, event_query
from unloc.synth.vocabulary import CLASS_ACTIONS, MOTIONS, STEP_ACTIONS, TASKS

SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
SYNTHETIC = "synthetic world rendered by unloc"
CLIP_SECONDS = 2


def all_annotations(plans: Sequence[VideoPlan], seed: int) -> dict[str, str]:
    """Every annotation file of a world: path below `annotations/` to text.

    ActivityNet has the events whose actions are classes, COIN the steps of each video's task in order, ActivityNet
    Captions and Charades-STA a sentence per event, QVHighlights a query per action of a video with all its moments.
    """
    anet, coin, captions, num_queries = {}, {}, {split: {} for split in SUBSETS}, 0
    texts = {"charades_sta_{}.txt": "", "Charades_v1_{}.csv": "id,length\n"}
    files = {f"charades_sta/{name.format(split)}": text for split in SUBSETS for name, text in texts.items()}
    files |= {f"qvhighlights/highlight_{split}_release.jsonl": "" for split in SUBSETS}
    step_ids = {action: str(number) for number, action in enumerate(STEP_ACTIONS, start=1)}
    for plan in plans:
        duration, url = round(plan.duration_seconds, 3), f"videos/{plan.video_id}.mp4"
        segments = [[event.start_seconds, event.end_seconds] for event in plan.events]
        labelled = [(event, {"segment": segment}) for event, segment in zip(plan.events, segments, strict=True)]
        anet[plan.video_id] = {
            "duration": duration,
            "subset": SUBSETS[plan.split],
            "resolution": f"{plan.width}x{plan.height}",
            "url": url,
            "annotations": [s | {"label": e.action.name} for e, s in labelled if e.action in CLASS_ACTIONS],
        }
        steps = [{"id": step_ids[e.action], **s, "label": e.action.name} for e, s in labelled if e.is_step]
        coin[plan.video_id] = {
            "recipe_type": list(TASKS).index(plan.task),
            "annotation": steps,
            "video_url": url,
            "start": 0,
            "end": duration,
            "duration": duration,
            "class": plan.task,
            "subset": SUBSETS[plan.split],
        }
        rng = video_generator(seed, plan.index, 2)
        captions[plan.split][plan.video_id] = {
            "duration": round(plan.duration_seconds, 2),
            "timestamps": segments,
            "sentences": [event_query(event, plan, rng) for event in plan.events],
        }
        rng = video_generator(seed, plan.index, 4)
        files[f"charades_sta/Charades_v1_{plan.split}.csv"] += f"{plan.video_id},{plan.duration_seconds:.2f}\n"
        for event in plan.events:
            line = f"{plan.video_id} {event.start_seconds:.1f} {event.end_seconds:.1f}"
            line += f"##{event_query(event, plan, rng).lower()}\n"
            files[f"charades_sta/charades_sta_{plan.split}.txt"] += line
        rng, raters = video_generator(seed, plan.index, 5), video_generator(seed, plan.index, 3)
        for action in dict.fromkeys(event.action for event in plan.events):
            events = [event for event in plan.events if event.action == action]
            grades = relevant_clips(events, int(plan.duration_seconds // CLIP_SECONDS))
            runs = np.split(list(grades), np.flatnonzero(np.diff(list(grades)) > 1) + 1)
            row = {
                "qid": num_queries,
                "query": class_query(events[0], rng),
                "duration": int(plan.duration_seconds),
                "vid": plan.video_id,
                "relevant_windows": [[CLIP_SECONDS * int(run[0]), CLIP_SECONDS * int(run[-1] + 1)] for run in runs],
                "relevant_clip_ids": list(grades),
                "saliency_scores": rate_clips(grades, raters),
            }
            files[f"qvhighlights/highlight_{plan.split}_release.jsonl"] += json.dumps(row) + "\n"
            num_queries += 1
    nodes = [(None, None, "Root"), *((0, "Root", motion.capitalize()) for motion in MOTIONS)]
    nodes += [(1 + MOTIONS.index(a.motion), a.motion.capitalize(), a.name) for a in CLASS_ACTIONS]
    keys = ("parentId", "parentName", "nodeName", "nodeId")
    taxonomy = [dict(zip(keys, (*node, number), strict=True)) for number, node in enumerate(nodes)]
    contents = {f"activitynet_captions/{split}.json": content for split, content in captions.items()}
    contents["activitynet.json"] = {"database": anet, "taxonomy": taxonomy, "version": SYNTHETIC}
    contents["coin.json"] = {"database": coin, "version": SYNTHETIC}
    jsons = {path: json.dumps(content, ensure_ascii=False, indent=1) + "\n" for path, content in contents.items()}
    return files | jsons | class_splits()


def labelled_clips(plan: VideoPlan) -> dict[str, tuple[str, int, int]]:
    """Of each event that shows a class a clip, cut at whole seconds: its id (Kinetics' names) to label, start, end."""
    clips = {}
    for event in plan.events:
        start, end = math.floor(event.start_seconds), math.ceil(event.end_seconds)
        if event.action in CLASS_ACTIONS:
            clips.setdefault(f"{plan.video_id}_{start:06d}_{end:06d}", (event.action.name, start, end))
    return clips


def clip_annotations(plans: Sequence[VideoPlan]) -> dict[str, str]:
    """Kinetics' csv of all clips: path below `annotations/` to text."""
    lines = ["label,youtube_id,time_start,time_end,split"]
    for plan in plans:
        rows = labelled_clips(plan).values()
        lines += [f"{label},{plan.video_id},{start},{end},{plan.split}" for label, start, end in rows]
    return {"kinetics.csv": "\n".join(lines) + "\n"}


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
    moods = rng.choice([-1, 0, 1], size=(len(grades), 3), p=[0.15, 0.75, 0.1])
    return np.clip(np.array(list(grades.values()))[:, None] + moods, 0, 4).tolist()


def class_splits() -> dict[str, str]:
    """`zero_shot/{train_50_test_50,train_75_test_25}/{train,test}/split_{0..9}.list`, one class name per line.

    Every word of an unseen class (its colour, its shape, its motion) occurs in seen classes; the class itself does not.
    """
    files, rng = {}, np.random.default_rng(20)  # they are part of the benchmark: the same for every world
    for folder, share in {"train_50_test_50": 0.5, "train_75_test_25": 0.75}.items():
        num_seen = round(share * len(CLASS_ACTIONS))
        for number in range(10):
            while True:
                order = [CLASS_ACTIONS[index].name for index in rng.permutation(len(CLASS_ACTIONS))]
                seen, unseen = order[:num_seen], order[num_seen:]
                if set(" ".join(unseen).split()) <= set(" ".join(seen).split()):
                    break
            for side, names in {"train": seen, "test": unseen}.items():
                files[f"zero_shot/{folder}/{side}/split_{number}.list"] = "\n".join(sorted(names)) + "\n"
    return files
