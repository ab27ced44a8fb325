"""What differs by task, one frozen record each: the kind of text, how texts pair with videos, the head, the metric."""

from dataclasses import dataclass

from unloc.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Everything the shared code asks about a task."""

    name: str
    title: str
    text_kind: str
    """'query': sentences of the videos; 'class': one fixed list of class names for all videos."""
    sampling: str
    """'linspace': T steps evenly over the whole video (paper §4.2); 'window': T consecutive cached tokens (AS)."""
    localizes: bool
    """True where segments are decoded from displacements; False where level-0 steps are labelled (AS)."""
    saliency: bool
    """True where a saliency score per clip is trained and predicted beside the segments (HD)."""
    headline: str
    """The metric that selects the best checkpoint."""


TASKS = {
    task.name: task
    for task in (
        Task(
            name="mr",
            title="moment retrieval",
            text_kind="query",
            sampling="linspace",
            localizes=True,
            saliency=False,
            headline="R1@0.5",
        ),
        Task(
            name="tal",
            title="temporal action localization",
            text_kind="class",
            sampling="linspace",
            localizes=True,
            saliency=False,
            headline="mAP@0.50",
        ),
        Task(
            name="as",
            title="action segmentation",
            text_kind="class",
            sampling="window",
            localizes=False,
            saliency=False,
            headline="frame_accuracy",
        ),
        Task(
            name="hd",
            title="highlight detection",
            text_kind="query",
            sampling="linspace",
            localizes=True,
            saliency=True,
            headline="HL-min-VeryGood-Hit1",
        ),
    )
}


def task_named(name: str) -> Task:
    """The task of that short name. Raises InputError naming the four there are."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]
