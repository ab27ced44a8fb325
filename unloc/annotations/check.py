"""Bad rows of a manifest: every kind that is known, with its line. Nothing is changed here (`repair` does that).

A finding is an *error* (the row cannot mean what it says) or a *note* (worth knowing, common in official files). Ends
that pass the video by at most `END_TOLERANCE_SECONDS` are notes: official durations are rounded to 10 ms.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from types import MappingProxyType

from unloc.annotations.schema import CLIP_SECONDS, Manifest, UnreadableLine
from unloc.video.locate import Coverage

END_TOLERANCE_SECONDS = 0.01
NEAR_ZERO_SECONDS = 0.1
_ROUNDING = 1e-6  # seconds; what sums of decimals in double precision may be off
NOTES = frozenset(
    {
        "segment past the video by rounding",
        "unknown duration",
        "class without instances",
        "two ids with one file",
        "windows and clips differ",
        "segment of at most 0.1 s",
        "duration contradicts the name",
    }
)
_CUT_NAME = re.compile(r"_(\d+\.\d+)_(\d+\.\d+)$")  # QVHighlights: <youtube>_<start>_<end>
VideoKey = tuple[str, str]
"""(video_id, split)"""


@dataclass(frozen=True)
class Finding:
    """One bad row."""

    kind: str
    line: int
    """Line of the manifest file."""
    words: str

    @property
    def is_note(self) -> bool:
        """True where the row is worth a word, but not bad."""
        return self.kind in NOTES


def findings(
    manifest: Manifest, coverage: Coverage | None = None, broken: Mapping[str, str] = MappingProxyType({})
) -> list[Finding]:
    """Everything wrong with a manifest, in the order of its lines; with a folder's coverage also what it lacks.

    `broken` says why the files of some videos could not be measured.
    """
    found = [
        *_header_findings(manifest),
        *_video_findings(manifest),
        *_query_findings(manifest),
        *_instance_findings(manifest),
        *(_coverage_findings(manifest, coverage, broken) if coverage else ()),
    ]
    return sorted(found, key=lambda item: item.line)


def unreadable_findings(lines: Iterable[UnreadableLine]) -> list[Finding]:
    """Lines of the file that are no rows."""
    return [Finding("unreadable row", item.line, item.reason) for item in lines]


def count_kinds(found: Iterable[Finding]) -> list[tuple[str, int, Finding]]:
    """(kind, count, first finding), in order of appearance."""
    first: dict[str, Finding] = {}
    counts: Counter[str] = Counter()
    for item in found:
        first.setdefault(item.kind, item)
        counts[item.kind] += 1
    return [(kind, count, first[kind]) for kind, count in counts.items()]


def shared_between_splits(manifest: Manifest) -> dict[tuple[str, str], int]:
    """How many videos every pair of splits has in common, pairs without any left out."""
    members: dict[str, set[str]] = defaultdict(set)
    for video_id, split in zip(manifest.videos["video_id"], manifest.videos["split"], strict=True):
        members[split].add(video_id)
    pairs = {pair: len(members[pair[0]] & members[pair[1]]) for pair in combinations(members, 2)}
    return {pair: count for pair, count in pairs.items() if count}


def durations_of(manifest: Manifest) -> dict[VideoKey, float]:
    """Seconds of every (video_id, split); NaN where unknown."""
    keys = zip(manifest.videos["video_id"], manifest.videos["split"], strict=True)
    return dict(zip(keys, manifest.videos["duration_seconds"].astype(float), strict=True))


def segment_problem(start: float, end: float, duration: float) -> str | None:
    """The kind of what is wrong with a segment in a video of `duration` seconds (NaN: unknown), or None."""
    if not (math.isfinite(start) and math.isfinite(end)):
        return "segment not finite"
    if end == start:
        return "zero-length segment"
    if end < start:
        return "reversed segment"
    if start < 0:
        return "segment before the video"
    if not duration > 0:
        return None  # the video's own row is bad or unknown
    if start >= duration:
        return "segment wholly past the video"
    if end > duration + END_TOLERANCE_SECONDS + _ROUNDING:
        return "segment past the video"
    return "segment past the video by rounding" if end > duration + _ROUNDING else None


def near_zero(start: float, end: float) -> str | None:
    """The kind of a segment that is too short to be meant, those of no length among them; else None."""
    return "segment of at most 0.1 s" if 0 <= end - start <= NEAR_ZERO_SECONDS + _ROUNDING else None


def video_problem(duration: float) -> str | None:
    """The kind of what is wrong with a video's duration in seconds, or None."""
    if math.isnan(duration):
        return "unknown duration"
    return None if 0 < duration < math.inf else "bad duration"


def contradicts_name(video_id: str, duration: float) -> bool:
    """Whether a name that states where the video was cut (`<youtube>_60.0_210.0`) states another length.

    By more than half a second, since QVHighlights states whole ones; never for other names or an unknown duration.
    """
    found = _CUT_NAME.search(video_id)
    return found is not None and abs(float(found[2]) - float(found[1]) - duration) > 0.5


def ratings_problem(clips: list | None, scores: list | None, duration: float) -> str | None:
    """The kind of what is wrong with a query's ratings (0-4, per relevant 2 s clip), or None."""
    if not isinstance(scores, list):
        return None  # clips without ratings serve moment retrieval only
    if not isinstance(clips, list) or len(clips) != len(scores):
        return "saliency of wrong length"
    if len({len(triple) for triple in scores}) > 1 or not all(scores):
        return "saliency of wrong length"
    if any(not 0 <= score <= 4 for triple in scores for score in triple):
        return "saliency out of range"
    limit = duration / CLIP_SECONDS if duration > 0 else math.inf
    if any(not 0 <= clip < limit or clip != int(clip) for clip in clips):
        return "clip outside the video"
    return "duplicate clip" if len(set(clips)) < len(clips) else None


def _header_findings(manifest: Manifest) -> Iterator[Finding]:
    for name, count in Counter(manifest.classes).items():
        if count > 1:
            yield Finding("duplicate class", 1, f"{name!r} stands {count} times among the classes")
        if not name.strip():
            yield Finding("empty class", 1, "a class name has no words")
    used = set(manifest.instances["label"])
    unused = [name for name in manifest.classes if name not in used]
    if unused and used:
        yield Finding("class without instances", 1, f"{len(unused)} of the classes, first {unused[0]!r}")


def _video_findings(manifest: Manifest) -> Iterator[Finding]:
    seen: set[VideoKey] = set()
    asked = set(zip(manifest.queries["video_id"], manifest.queries["split"], strict=True))
    columns = (manifest.videos[name] for name in ("video_id", "split", "duration_seconds", "line"))
    for video_id, split, duration, line in zip(*columns, strict=True):
        if (video_id, split) in seen:
            yield Finding("duplicate video", line, f"{video_id} stands twice in split {split}")
        seen.add((video_id, split))
        problem = video_problem(duration)
        if problem:
            yield Finding(problem, line, f"{video_id}: duration {duration} s")
        if contradicts_name(video_id, duration) and (video_id, split) not in asked:
            yield Finding("duration contradicts the name", line, f"{video_id}: duration {duration} s")


def _place(key: VideoKey) -> str:
    return f"{key[0]} of {key[1]}"


def _long(duration: float) -> str:
    return f"a video of {round(duration, 3)} s" if duration > 0 else "a video of unknown length"


def place_problem(key: VideoKey, durations: dict[VideoKey, float], splits: frozenset[str]) -> str | None:
    """The kind of what is wrong with the (video, split) a row names, or None."""
    if key in durations:
        return None
    return "video not described" if key[1] in splits else "unknown split"


def _query_findings(manifest: Manifest) -> Iterator[Finding]:
    durations, splits = durations_of(manifest), frozenset(manifest.splits)
    seen: set[tuple] = set()
    qids: set[tuple[str, str]] = set()
    for row in manifest.queries.to_dict("records"):
        key, line = (row["video_id"], row["split"]), row["line"]
        where = f"{_place(key)}: query {row['qid']}"
        duration = durations.get(key, math.nan)
        identity = (*key, row["text"], tuple(map(tuple, row["segments"])))
        ratings = ratings_problem(row["relevant_clip_ids"], row["saliency_scores"], duration)
        kinds = (
            place_problem(key, durations, splits),
            None if row["text"].strip() else "empty text",
            "duplicate qid" if (row["split"], row["qid"]) in qids else None,
            "duplicate row" if identity in seen else None,
            ratings,
            None if ratings or _windows_are_clips(row) else "windows and clips differ",
            "duration contradicts the name" if contradicts_name(row["video_id"], duration) else None,
        )
        qids.add((row["split"], row["qid"]))
        seen.add(identity)
        yield from (Finding(kind, line, where) for kind in kinds if kind)
        yield from _window_findings(row, where, duration)


def _window_findings(row: dict, where: str, duration: float) -> Iterator[Finding]:
    seen = set()
    for start, end in row["segments"]:
        problem = segment_problem(start, end, duration)
        if (start, end) in seen:
            yield Finding("duplicate window", row["line"], f"{where}: [{start}, {end}] stands twice")
        seen.add((start, end))
        for kind in filter(None, (problem, near_zero(start, end))):
            yield Finding(kind, row["line"], f"{where}: [{start}, {end}] in {_long(duration)}")


def _windows_are_clips(row: dict) -> bool:
    """Whether the relevant clips are exactly those inside the windows, as in QVHighlights; true without ratings."""
    clips, segments = row["relevant_clip_ids"], row["segments"]
    if not isinstance(clips, list) or not segments:
        return True
    if not all(math.isfinite(bound) for segment in segments for bound in segment):
        return False
    spans = [(math.ceil(start / CLIP_SECONDS), math.floor(end / CLIP_SECONDS)) for start, end in segments]
    covered = all(any(first <= clip < last for first, last in spans) for clip in clips)
    return covered and len(clips) == sum(last - first for first, last in spans)


def _instance_findings(manifest: Manifest) -> Iterator[Finding]:
    durations, splits = durations_of(manifest), frozenset(manifest.splits)
    classes, seen = frozenset(manifest.classes), set()
    columns = (manifest.instances[name] for name in ("video_id", "split", "label", "start_seconds", "end_seconds"))
    for video_id, split, label, start, end, line in zip(*columns, manifest.instances["line"], strict=True):
        key = (video_id, split)
        duration = durations.get(key, math.nan)
        kinds = (
            place_problem(key, durations, splits),
            None if label in classes else "unknown label",
            "duplicate row" if (*key, label, start, end) in seen else None,
            segment_problem(start, end, duration),
            near_zero(start, end),
        )
        seen.add((*key, label, start, end))
        words = f"{_place(key)}: {label} [{start}, {end}] in {_long(duration)}"
        yield from (Finding(kind, line, words) for kind in kinds if kind)


def _coverage_findings(manifest: Manifest, coverage: Coverage, broken: Mapping[str, str]) -> Iterator[Finding]:
    lines = dict(reversed(list(zip(manifest.videos["video_id"], manifest.videos["line"], strict=True))))
    for video_id in coverage.missing:
        yield Finding("missing video", lines[video_id], f"{video_id}: no file in the folder")
    for video_id in coverage.empty:
        yield Finding("empty video file", lines[video_id], f"{video_id}: {coverage.found[video_id]} has no bytes")
    for video_id, reason in broken.items():
        yield Finding("unreadable video file", lines[video_id], f"{video_id}: {reason}")
    for video_id in coverage.shared:
        yield Finding("two ids with one file", lines[video_id], f"{video_id}: {coverage.found[video_id]}")
