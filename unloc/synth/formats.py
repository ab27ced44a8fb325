"""The world's annotations in the official formats of seven datasets, exactly as released, and their sentences.

A query has 5-20 words; some name another event ("after the blue square …"). Deviations: the test splits have
annotations, COIN has a validation subset, the Charades csv has only the columns `id` and `length`, and `version` says
that the world is synthetic (files without such a key show it by the ids of their videos, `v_synth…`).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unloc.synth.events import Event, VideoPlan, video_generator
from unloc.synth.vocabulary import (
    CLASS_ACTIONS,
    MOTION_PHRASES,
    MOTIONS,
    SHAPE_WORDS,
    STEP_ACTIONS,
    TASKS,
    opposite_motion,
)

SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
SYNTHETIC = "synthetic world rendered by unloc"
CLIP_SECONDS = 2
OPENINGS = ("", "", "", "we see that ", "the camera shows how ", "at some point ", "in this part ", "watch how ")
CLOSINGS = ("", "", "", " on the screen", " in the picture", " for a while", " in front of the background")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
MIN_WORDS, MAX_WORDS = 5, 20
RELATIONS = {
    "after": lambda event, other: event.start_seconds >= other.end_seconds,
    "before": lambda event, other: event.end_seconds <= other.start_seconds,
    "while": lambda event, other: (
        event.overlap_seconds(other.start_seconds, other.end_seconds) > 0.5 * event.length_seconds
    ),
}


def all_annotations(plans: Sequence[VideoPlan], seed: int) -> dict[str, str]:
    """Every annotation file of a world: path below `annotations/` to text. ActivityNet has the events whose actions are
    classes, COIN the steps of each video's task in order, ActivityNet Captions and Charades-STA a sentence per event,
    QVHighlights a query per action of a video with all its moments, GMR a sentence per event and as many null ones.
    """
    anet, coin, captions, num_queries = {}, {}, {split: {} for split in SUBSETS}, 0
    texts = {"charades_sta_{}.txt": "", "Charades_v1_{}.csv": "id,length\n"}
    files = {f"charades_sta/{name.format(split)}": text for split in SUBSETS for name, text in texts.items()}
    files |= {f"qvhighlights/highlight_{split}_release.jsonl": "" for split in SUBSETS}
    files |= {f"gmr/{split}.jsonl": "" for split in SUBSETS}
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
        files[f"gmr/{plan.split}.jsonl"] += "".join(json.dumps(row) + "\n" for row in gmr_rows(plan, seed))
    nodes = [(None, None, "Root"), *((0, "Root", motion.capitalize()) for motion in MOTIONS)]
    nodes += [(1 + MOTIONS.index(a.motion), a.motion.capitalize(), a.name) for a in CLASS_ACTIONS]
    keys = ("parentId", "parentName", "nodeName", "nodeId")
    taxonomy = [dict(zip(keys, (*node, number), strict=True)) for number, node in enumerate(nodes)]
    contents = {f"activitynet_captions/{split}.json": content for split, content in captions.items()}
    contents["activitynet.json"] = {"database": anet, "taxonomy": taxonomy, "version": SYNTHETIC}
    contents["coin.json"] = {"database": coin, "version": SYNTHETIC}
    jsons = {path: json.dumps(content, ensure_ascii=False, indent=1) + "\n" for path, content in contents.items()}
    return files | jsons | class_splits()


def gmr_rows(plan: VideoPlan, seed: int) -> list[dict]:
    """Queries of generalized moment retrieval: a sentence of each event, and one of what its object does not do."""
    rows, rng = [], video_generator(seed, plan.index, 6)
    for number, event in enumerate(plan.events):
        name, window = f"{plan.video_id}_{number}", [event.start_seconds, event.end_seconds]
        video = {"vid": plan.video_id, "duration": plan.duration_seconds}
        rows.append({"qid": name, **video, "query": event_query(event, plan, rng), "relevant_windows": [window]})
        rows.append({"qid": f"{name}_null", **video, "query": null_query(event, plan, rng), "relevant_windows": []})
    return rows


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
    """The 2 s clips that events fill by half, in order, with their grade as highlights, 1-4: better the longer an
    object glows. The best clip is always relevant, with grade 4.
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
    """`zero_shot/{train_50_test_50,train_75_test_25}/{train,test}/split_{0..9}.list`, one class name per line. Every
    word of an unseen class (its colour, its shape, its motion) occurs in seen classes; the class itself does not.
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


def class_query(event: Event, rng: np.random.Generator) -> str:
    """A sentence that is true of every event of that action in the video."""
    return _finish(_clause(event, rng), rng)


def event_query(event: Event, plan: VideoPlan, rng: np.random.Generator) -> str:
    """A sentence that is true of this event alone: where the video repeats the action it says which one, by another
    event or by number; some other sentences name another event without need.
    """
    body = _clause(event, rng)
    same = [other for other in plan.events if other.action == event.action]
    relations = _relations(event, same, plan, rng)
    if relations and (len(same) > 1 or rng.random() < 0.15):
        relation = relations[rng.integers(len(relations))]
        return _finish(f"{relation}, {body}" if rng.random() < 0.5 else f"{body} {relation}", rng)
    if len(same) > 1:
        body += f" for the {ORDINALS[same.index(event)]} time"
    return _finish(body, rng)


def null_query(event: Event, plan: VideoPlan, rng: np.random.Generator) -> str:
    """The sentence of an event, but with a motion that no object of its look has in the video: in half of the cases the
    opposite one, if that is not there.
    """
    shown = {other.action.motion for other in plan.events if other.action.look == event.action.look}
    absent, opposite = [motion for motion in MOTIONS if motion not in shown], opposite_motion(event.action.motion)
    motion = opposite if opposite in absent and rng.random() < 0.5 else absent[rng.integers(len(absent))]
    twin = replace(event, action=replace(event.action, motion=motion))
    return event_query(twin, replace(plan, events=tuple(twin if e is event else e for e in plan.events)), rng)


def leaves_view(event: Event, plan: VideoPlan) -> bool:
    """Whether the object is gone at the event's end, and nothing else of its look is in view around then."""
    return event.still_after_seconds == 0.0 and not _has_look_alike(event, plan, event.end_seconds)


def _clause(event: Event, rng: np.random.Generator, article: str = "", verb: str = "") -> str:
    """'a red disc climbs upward'; a random article or verb where none is given."""
    words, phrases = SHAPE_WORDS[event.action.shape], MOTION_PHRASES[event.action.motion]
    article = article or ("a" if rng.random() < 0.6 else "the")
    noun = words[rng.integers(len(words))]
    return f"{article} {event.action.colour} {noun} {verb or phrases[rng.integers(len(phrases))]}"


def _finish(body: str, rng: np.random.Generator) -> str:
    """The sentence with an opening and a closing if that is not too long, between 5 and 20 words."""
    sentence = OPENINGS[rng.integers(len(OPENINGS))] + body + CLOSINGS[rng.integers(len(CLOSINGS))]
    if len(sentence.split()) > MAX_WORDS:
        sentence = body
    if len(sentence.split()) < MIN_WORDS:
        sentence += " in the video"
    return sentence[0].upper() + sentence[1:] + ("." if rng.random() < 0.7 else "")


def _relations(event: Event, same: Sequence[Event], plan: VideoPlan, rng: np.random.Generator) -> list[str]:
    """'after the blue square leaves', … relating it to an event of another look, not true of its repetitions."""
    phrases, looks = [], [item.action.look for item in plan.events]
    for other in plan.events:
        if other is event or looks.count(other.action.look) > 1:
            continue
        for relation, holds in RELATIONS.items():
            if holds(event, other) and not any(holds(third, other) for third in same if third is not event):
                verb = ""
                if relation == "after" and leaves_view(other, plan):
                    verb = "leaves"
                elif relation == "before" and other.still_before_seconds == 0.0:
                    verb = "" if _has_look_alike(other, plan, other.start_seconds) else "appears"
                phrases.append(f"{relation} {_clause(other, rng, 'the', verb)}")
    return phrases


def _has_look_alike(event: Event, plan: VideoPlan, seconds: float) -> bool:
    """Is another object of the event's look in view within 2 s of this time?"""
    look = event.action.look
    items = (item for item in (*plan.events, *plan.distractors) if item is not event and item.action.look == look)
    spans = (item.visible_seconds for item in items)
    return any(start < seconds + 2.0 and end > seconds - 2.0 for start, end in spans)
