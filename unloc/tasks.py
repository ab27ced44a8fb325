"""What differs by task: the kind of text, the head, the metric."""

from dataclasses import dataclass

from unloc.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One of the five tasks."""

    name: str
    title: str
    text_kind: str  # 'query': sentences of the videos; 'class': one fixed list of class names for all videos
    labelled: str = "segments"  # what a label is of; or 'steps' of level 0 (AS), or whole 'videos' (CLS)
    headline: str  # the metric that selects the best checkpoint

    @property
    def localizes(self) -> bool:
        """Whether the model has displacements."""
        return self.labelled == "segments"


MR = Task(name="mr", title="moment retrieval", text_kind="query", headline="R1@0.5")
TAL = Task(name="tal", title="temporal action localization", text_kind="class", headline="mAP@0.50")
AS = Task(name="as", title="action segmentation", text_kind="class", labelled="steps", headline="frame_accuracy")
HD = Task(name="hd", title="highlight detection", text_kind="query", headline="HL-min-VeryGood-Hit1")
CLS = Task(name="cls", title="classification", text_kind="class", labelled="videos", headline="top1_accuracy")
TASKS = {task.name: task for task in (MR, TAL, AS, HD, CLS)}
"""Moment retrieval, temporal action localization, action segmentation, highlight detection, video classification."""


def task_named(name: str) -> Task:
    """The task of that short name. Raises InputError naming those there are."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
