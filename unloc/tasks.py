"""What differs by task: the kind of text, the head, the metric."""

from dataclasses import dataclass

from unloc.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One of the four tasks."""

    name: str
    text_kind: str
    """'query': sentences of the videos; 'class': one fixed list of class names for all videos."""
    localizes: bool = True
    """True where segments are decoded from displacements; False where level-0 steps are labelled (AS)."""
    headline: str
    """The metric that selects the best checkpoint."""


MR = Task(name="mr", text_kind="query", headline="R1@0.5")
TAL = Task(name="tal", text_kind="class", headline="mAP@0.50")
AS = Task(name="as", text_kind="class", localizes=False, headline="frame_accuracy")
HD = Task(name="hd", text_kind="query", headline="HL-min-VeryGood-Hit1")
TASKS = {task.name: task for task in (MR, TAL, AS, HD)}
"""Moment retrieval, temporal action localization, action segmentation, highlight detection."""


def task_named(name: str) -> Task:
    """The task of that short name. Raises InputError naming the four there are."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
