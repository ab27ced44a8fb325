"""Sentences about events: paraphrased queries of 5-20 words, some naming another event ("after the blue square …")."""

from collections.abc import Sequence

import numpy as np

from unloc.synth.events import Event, VideoPlan
from unloc.synth.vocabulary import MOTION_PHRASES, SHAPE_WORDS

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


def class_query(event: Event, rng: np.random.Generator) -> str:
    """A sentence that is true of every event of that action in the video."""
    return _finish(_clause(event, rng), rng)


def event_query(event: Event, plan: VideoPlan, rng: np.random.Generator) -> str:
    """A sentence that is true of this event alone.

    Where the video repeats the action the sentence says which one, by another event or by number; some other sentences
    name another event without need.
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


def leaves_view(event: Event, plan: VideoPlan) -> bool:
    """True where the object is gone at the event's end, and nothing else of its look is in view around then."""
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
