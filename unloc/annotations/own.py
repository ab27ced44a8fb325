"""Own data: labelled events of own videos as rows of a manifest, with ids, durations, frame rates and splits."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from unloc.annotations.reading import Problems
from unloc.annotations.schema import InstanceRow, Manifest, QueryRow, Rows, VideoRow, fill_durations
from unloc.callbacks import OnProgress
from unloc.errors import ManifestError, VideoError
from unloc.files import url_of
from unloc.video.facts import scan
from unloc.video.locate import EXTENSIONS, VideoIndex, index_videos
from unloc.video.video_file import on_disk

HELD_OUT = 0.15  # of the videos, for val and for test each, where no split is stated


@dataclass(frozen=True, kw_only=True)
class Event:
    """A row of someone's labels: a labelled or described segment, or a video without any."""

    place: str  # file and line
    video: str  # its file's name, path or URL, or its id
    split: str = ""
    segment: list[float] | None = None  # seconds; None: a label is of the whole video, a query is nowhere in it
    label: str = ""
    query: str = ""
    duration_seconds: float | None = None


class Measured(NamedTuple):
    """Of a video's file; a few numbers, as there may be many videos."""

    num_frames: int
    first_seconds: float
    end_seconds: float


@dataclass
class Media:
    """The videos of own data and what is measured from them once; what is asked for is found by id or file."""

    videos: Path | None = None
    fps: float | None = None  # stated frames per second of all videos
    seed: int = 0  # of the splits
    problems: Problems = field(default_factory=Problems)
    known: dict[str, Measured | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # why a file cannot be read

    @cached_property
    def index(self) -> VideoIndex | None:
        """The files of the folder. Raises MissingError."""
        return None if self.videos is None else index_videos(self.videos)

    def facts(self, video_id: str, file: str | None = None) -> Measured | None:
        """What is measured of a video's file; None without a folder, such a file (reported) or a video in it."""
        if self.index is not None and video_id not in self.known:
            path = self.index.find(video_id, file)
            self.problems.add("video without a file in --videos", video_id, path is None)
            self.known[video_id] = None
            try:
                if path:
                    with on_disk(path) as local:
                        facts = scan(local)
                    self.known[video_id] = Measured(len(facts.packet_times), facts.first_seconds, facts.end_seconds)
            except VideoError as error:
                self.failed[video_id] = str(error)
                self.problems.add("unreadable video file", f"{video_id}: {error}")
        return self.known.get(video_id)

    def rate(self, video_id: str, place: str) -> float:
        """Stated frames per second, else those measured. Raises ManifestError where both are unknown."""
        if self.fps:
            return self.fps
        if (facts := self.facts(video_id)) is None:
            advice = "give --fps, or --videos to measure it"
            raise ManifestError(f"{place}: the frame rate of {video_id} is unknown; {advice}")
        return facts.num_frames / (facts.end_seconds - facts.first_seconds)

    def fiftyone_frames(self, video_id: str, place: str) -> tuple[float, float]:
        """(frames per second, last frame) as FiftyOne counts: frame f of N is at (f - 1) / (N - 1) of the video."""
        rate, facts = self.rate(video_id, place), self.known.get(video_id)
        count = facts.num_frames if facts else np.inf
        return (count - 1) / facts.end_seconds if facts and count > 1 else rate, count

    def measure(self, manifest: Manifest, on_progress: OnProgress) -> Manifest:
        """The manifest with the durations of its files where it states none, the last frame included."""
        videos, measured = manifest.videos[manifest.videos["duration_seconds"].isna()], {}
        videos = videos.drop_duplicates("video_id")
        for done, (name, file) in enumerate(zip(videos["video_id"], videos["file"], strict=True), start=1):
            if facts := self.facts(name, file):
                measured[name] = facts.end_seconds
            on_progress(done, len(videos))
        return fill_durations(manifest, measured)


def video_id_of(name: str) -> str:
    """The id of a video by its file's name, path or URL: without folder and ending; other dots stay."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def rows_of(events: Sequence[Event], split: str | None, media: Media) -> Rows:
    """Rows of a manifest; rows with one sentence in one video are one query. Of videos with one name in several folders
    the ids have the folders. Splits are those stated, else all `split`, else by `split_videos`. Raises ManifestError
    where only some rows state a split.
    """
    problems, names = media.problems, dict.fromkeys(event.video for event in events)
    shared = Counter(map(video_id_of, names))
    for name in names:
        video_id, file = video_id_of(name), name if url_of(name) else None
        if shared[video_id] > 1:
            *folders, _ = PurePosixPath(name.replace("\\", "/")).parts
            video_id, file = "_".join([*(part for part in folders if part not in ("/", "..")), video_id]), name
        elif video_id != name and media.index is not None and media.index.find(video_id, name):
            file = name
        names[name] = (video_id, file)
    without = [event for event in events if not event.split]
    if 0 < len(without) < len(events):
        raise ManifestError(f"{without[0].place}: no split in this row, although other rows state one")
    labels: dict[str, set[str]] = {video_id: set() for video_id, _ in names.values()}
    for event in events:
        labels[names[event.video][0]] |= {event.label} - {""}
    made: Mapping[str, str] = dict.fromkeys(labels, split)
    if without and not split:
        made = split_videos(labels, media.seed)
        counts = ", ".join(f"{name} {count}" for name, count in Counter(made.values()).items())
        kind = f"video without a split: made by video, stratified by label, seed {media.seed} ({counts})"
        problems.add(kind, without[0].place, len(labels))
    videos, queries, instances = {}, {}, []
    for event in events:
        video_id, file = names[event.video]
        of_row = event.split or made[video_id]
        videos.setdefault((video_id, of_row), VideoRow(video_id, of_row, event.duration_seconds, file))
        kind = "segment that does not end after its start"
        problems.add(kind, event.place, event.segment is not None and not event.segment[0] < event.segment[1])
        if event.label:
            instances.append(InstanceRow(video_id, of_row, event.label, event.segment or [0.0, np.nan]))
        if event.query:
            key, text = (video_id, of_row, event.query), " ".join(event.query.split())
            kind = "sentence in several rows of a video: one query with all windows"
            problems.add(kind, event.place, key in queries)
            row = queries.setdefault(key, QueryRow(video_id, of_row, str(len(queries)), text, []))
            row.segments.extend([event.segment] if event.segment else [])
    return [*videos.values(), *queries.values(), *instances], sorted({row.label for row in instances})


def own_tasks(rows: Iterable[object]) -> list[str]:
    """The tasks that rows serve: sentences mr, labelled segments tal and as, labels of whole videos cls."""
    labelled = [row for row in rows if isinstance(row, InstanceRow)]
    whole = bool(labelled) and all(np.isnan(row.segment[1]) for row in labelled)
    tasks = ["mr"] if any(isinstance(row, QueryRow) for row in rows) else []
    return tasks + (["cls"] if whole else ["tal", "as"] if labelled else [])


def split_videos(labels: Mapping[str, Iterable[str]], seed: int) -> dict[str, str]:
    """train, val or test of every video, by its labels: 15 % each for val and test, at least one of three videos.

    Iterative stratification (Sechidis et al., ECML 2011): videos of the rarest label first, each to the split with room
    that lacks the label most; the first of a label to train, which else could not learn it. Random by the seed.
    """
    order = np.random.default_rng(seed).permutation(sorted(labels)).tolist()
    held = max(1, round(HELD_OUT * len(order))) if len(order) > 2 else 0
    sizes = {"train": len(order) - 2 * held, "val": held, "test": held}
    room, found, given = dict(sizes), {}, defaultdict(Counter)
    counts = Counter(label for name in order for label in {*labels[name], None})
    for label in sorted(counts, key=lambda name: (name is None, counts[name], name)):
        for name in order:
            if name in found or not (label is None or label in labels[name]):
                continue

            def need(split: str, label: str | None = label) -> tuple:
                lacks = counts[label] * sizes[split] / len(order) - given[label][split]
                return split == "train" and not given[label][split], lacks, room[split]

            found[name] = max((split for split in room if room[split]), key=need)
            room[found[name]] -= 1
            for own in {*labels[name], None}:
                given[own][found[name]] += 1
    return {name: found[name] for name in labels}
