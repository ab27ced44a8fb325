"""Bad rows of a manifest: one pass finds them and applies the rule that says what to do about them.

    keep    changes nothing: official scorers treat bad rows in their own ways, and metrics follow them
    repair  cuts segments to [0, duration], makes bad durations unknown and removes bad ratings; drops what is still bad
    drop    removes segments, ratings, rows and videos with an error

Under `repair` and `drop` the first of duplicates is kept, and a query is dropped only when none of its windows is left.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import pandas as pd

from unloc.annotations.own import Media
from unloc.annotations.reading import Problems
from unloc.annotations.schema import CLIP_SECONDS, Manifest, load_manifest
from unloc.callbacks import OnProgress
from unloc.errors import InputError, ManifestError
from unloc.video.locate import Coverage, folder_coverage

RULES = ("keep", "repair", "drop")
NOTES = {"segment past the video by rounding", "segment of at most 0.1 s", "windows and clips differ"}
NOTES |= {"unknown duration", "duration contradicts the name", "class without instances", "two ids with one file"}
_CUT = "cut to the video"
_ROUNDING = 1e-6  # seconds; sums of decimals in double precision may be off by this
_CUT_NAME = re.compile(r"_(\d+\.\d+)_(\d+\.\d+)$")  # QVHighlights: <youtube>_<start>_<end>


@dataclass(frozen=True)
class Finding:
    """A bad row at a line of the manifest, and what the rule did about it ("dropped"; empty: nothing was changed)."""

    kind: str
    line: int
    message: str
    action: str = ""

    @property
    def is_note(self) -> bool:
        """True for what is common in official files and harmless; else the row cannot mean what it says."""
        return self.kind in NOTES


@dataclass(frozen=True)
class CheckedFile:
    """A manifest as read (with measured durations), the result of the rule, and the findings in line order."""

    manifest: Manifest
    result: Manifest
    findings: list[Finding]
    coverage: Coverage | None
    num_measured: int


def check_file(
    path: Path,
    *,
    videos: Path | None = None,
    rule: str = "keep",
    drop_unreadable: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> CheckedFile:
    """Check a manifest file; with a folder of videos also its coverage, and unknown durations are measured from files
    (`on_progress`: videos measured and all to measure). Raises as `load_manifest` and `check_manifest`.
    """
    unreadable: dict[int, str] = {}
    manifest, coverage, media = load_manifest(path, unreadable), None, Media(videos=videos)
    if videos is not None:
        coverage = folder_coverage(manifest.videos, videos)
        manifest = media.measure(manifest, on_progress)
    result, found = check_manifest(manifest, rule)
    action = "dropped" if drop_unreadable or rule != "keep" else ""
    found += [Finding("unreadable row", line, reason, action) for line, reason in unreadable.items()]
    if coverage is not None:
        messages = {
            "missing video": dict.fromkeys(coverage.missing, "no file in the folder"),
            "empty video file": {name: f"{coverage.found[name]} has no bytes" for name in coverage.empty},
            "unreadable video file": {name: why for name, why in media.failed.items() if name not in coverage.empty},
            "two ids with one file": {name: str(coverage.found[name]) for name in coverage.shared},
        }
        lines = manifest.videos.groupby("video_id")["line"].first()
        for kind, of_video in messages.items():
            found += [Finding(kind, int(lines[name]), f"{name}: {text}") for name, text in of_video.items()]
    num_measured = sum(facts is not None for facts in media.known.values())
    return CheckedFile(manifest, result, sorted(found, key=lambda item: item.line), coverage, num_measured)


def check_manifest(manifest: Manifest, rule: str = "keep") -> tuple[Manifest, list[Finding]]:
    """The manifest after the rule, and every finding with its action: of classes, videos, queries, instances. Raises
    InputError for an unknown rule, ManifestError where no video is left.
    """
    if rule not in RULES:
        raise InputError(f"--bad-rows: got {rule!r}, expected one of {', '.join(RULES)}")
    check = _Pass(manifest, rule)
    tables = {"classes": check.classes(), "videos": check.videos()}
    if not len(tables["videos"]):
        raise ManifestError(f"--bad-rows {rule}: no video of {manifest.name!r} is left")
    tables |= {key: check.annotations(getattr(manifest, key)) for key in ("queries", "instances")}
    return (manifest if rule == "keep" else replace(manifest, **tables)), check.found


def counted_findings(found: Iterable[Finding], path: Path) -> Problems:
    """How often each kind was found, and where."""
    problems = Problems()
    for item in found:
        problems.add(item.kind + " [note]" * item.is_note, f"{path}:{item.line}: {item.message}")
    return problems


def add_actions(found: Iterable[Finding], problems: Problems) -> None:
    """Log what the rule changed."""
    for item in found:
        problems.add(f"{item.kind}: {item.action}", item.message, count=bool(item.action))


def shared_between_splits(manifest: Manifest) -> dict[tuple[str, str], int]:
    """The number of videos that two splits share, for each pair of splits that share any."""
    members = manifest.videos.groupby("split", sort=False)["video_id"].agg(set)
    pairs = {(one, other): len(members[one] & members[other]) for one, other in combinations(members.index, 2)}
    return {pair: count for pair, count in pairs.items() if count}


def segment_problem(start: float, end: float, duration: float) -> str | None:
    """The kind of problem of a segment in a video of `duration` seconds (NaN: unknown), or None."""
    limit = duration if duration > 0 else math.inf
    problems = {
        "segment not finite": not (math.isfinite(start) and math.isfinite(end)),
        "zero-length segment": end == start,
        "reversed segment": end < start,
        "segment before the video": start < 0,
        "segment wholly past the video": start >= limit,
        "segment past the video": end > limit + 0.01 + _ROUNDING,  # official durations are rounded to 10 ms
        "segment past the video by rounding": end > limit + _ROUNDING,
    }
    return next((problem for problem, is_true in problems.items() if is_true), None)


def ratings_problem(clips: list | None, scores: list | None, segments: list, duration: float) -> str | None:
    """The kind of problem of a query's ratings (0-4, per relevant 2 s clip), or None. In QVHighlights these clips are
    exactly those inside the windows. Clips without ratings serve moment retrieval only.
    """
    if isinstance(scores, list):
        sizes = set(map(len, scores))
        if not isinstance(clips, list) or len(clips) != len(scores) or 0 in sizes or len(sizes) > 1:
            return "saliency of wrong length"
        if any(not 0 <= score <= 4 for ratings in scores for score in ratings):
            return "saliency out of range"
        limit = duration / CLIP_SECONDS if duration > 0 else math.inf
        if any(not 0 <= clip < limit or clip != int(clip) for clip in clips):
            return "clip outside the video"
        if len(set(clips)) < len(clips):
            return "duplicate clip"
    if not isinstance(clips, list) or not segments:
        return None
    if all(math.isfinite(bound) for segment in segments for bound in segment):
        spans = [(math.ceil(start / CLIP_SECONDS), math.floor(end / CLIP_SECONDS)) for start, end in segments]
        covered = all(any(first <= clip < last for first, last in spans) for clip in clips)
        if covered and len(clips) == sum(last - first for first, last in spans):
            return None
    return "windows and clips differ"


@dataclass
class _Pass:
    """One walk over a manifest: videos first, since their durations are needed to check annotations."""

    manifest: Manifest
    rule: str
    found: list[Finding] = field(default_factory=list)
    durations: dict[tuple[str, str], float] = field(default_factory=dict)  # of kept (video_id, split); NaN: unknown

    def add(self, kind: str, line: int, message: str, action: str = "dropped") -> bool:
        """Log a finding; returns whether the rule acts on it. Notes change nothing, but segments may be cut."""
        acts = self.rule != "keep" and (kind not in NOTES or action == _CUT)
        self.found.append(Finding(kind, line, message, action if acts else ""))
        return acts

    def compare_name(self, video_id: str, duration: float, line: int, message: str) -> None:
        """Note a name that states another length (`<youtube>_60.0_210.0`); durations are rounded to whole seconds."""
        found = _CUT_NAME.search(video_id)
        if found and abs(float(found[2]) - float(found[1]) - duration) > 0.5:
            self.add("duration contradicts the name", line, message)

    def classes(self) -> tuple[str, ...]:
        """The class names, each once, without blank ones."""
        used, names = set(self.manifest.instances["label"]), self.manifest.classes
        for name, count in Counter(names).items():
            if count > 1:
                self.add("duplicate class", 1, f"{name!r} occurs {count} times among the classes")
            if not name.strip():
                self.add("empty class", 1, "a class name is blank")
        unused = [name for name in names if name not in used]
        if unused and used:
            self.add("class without instances", 1, f"{len(unused)} of the classes, first {unused[0]!r}")
        return tuple(name for name in dict.fromkeys(names) if name.strip())

    def videos(self) -> pd.DataFrame:
        """What the rule leaves of the videos."""
        queried = set(zip(self.manifest.queries["video_id"], self.manifest.queries["split"], strict=True))
        kept = []
        for row in self.manifest.videos.to_dict("records"):
            key, duration = (row["video_id"], row["split"]), row["duration_seconds"]
            line, message, repeated = row["line"], f"{key[0]}: duration {duration} s", key in self.durations
            dropped = repeated and self.add("duplicate video", line, f"{key[0]} is in split {key[1]} twice")
            if math.isnan(duration):
                self.add("unknown duration", line, message)
            elif not 0 < duration < math.inf:
                action = "made unknown" if self.rule == "repair" else "dropped"
                if self.add("bad duration", line, message, action):
                    row["duration_seconds"], dropped = math.nan, dropped or action == "dropped"
            if key not in queried:
                self.compare_name(key[0], duration, line, message)
            if not dropped:
                kept.append(row)
                self.durations.setdefault(key, row["duration_seconds"])
        videos = self.manifest.videos
        return pd.DataFrame(kept, columns=videos.columns).astype(videos.dtypes.to_dict())

    def segment(self, start: float, end: float, duration: float, line: int, message: str) -> list[float] | None:
        """What the rule leaves of a segment."""
        length = f"a video of {round(duration, 3)} s" if duration > 0 else "a video of unknown length"
        message = f"{message} [{start}, {end}] in {length}"
        if 0 <= end - start <= 0.1 + _ROUNDING:
            self.add("segment of at most 0.1 s", line, message)
        problem = segment_problem(start, end, duration)
        if problem is None:
            return [start, end]
        cut = [max(start, 0.0), min(end, duration if duration > 0 else math.inf)]
        can_cut = self.rule == "repair" and problem != "segment not finite" and cut[1] > cut[0]
        acts = self.add(problem, line, message, _CUT if can_cut else "segment dropped")
        return (cut if can_cut else None) if acts else [start, end]

    def annotations(self, table: pd.DataFrame) -> pd.DataFrame:
        """What the rule leaves of the queries, or of the instances."""
        kept, seen, classes, splits = [], set(), set(self.manifest.classes), {split for _, split in self.durations}
        for row in table.to_dict("records"):
            key, line, is_query = (row["video_id"], row["split"]), row["line"], "qid" in row
            name = f"query {row['qid']}" if is_query else row["label"]
            message, duration = f"{key[0]} of {key[1]}: {name}", self.durations.get(key, math.nan)
            problems = {
                "video not described": key not in self.durations and key[1] in splits,
                "unknown split": key not in self.durations and key[1] not in splits,
                "empty text": is_query and not row["text"].strip(),
                "unknown label": not is_query and name not in classes,
            }
            dropped = any([self.add(problem, line, message) for problem, is_true in problems.items() if is_true])
            segments, windows = row["segments"] if is_query else [[row["start_seconds"], row["end_seconds"]]], []
            for start, end in segments:
                window = self.segment(start, end, duration, line, message)
                # Compared after the cut: two windows that pass the end may become one.
                if window in windows and self.add("duplicate window", line, f"{message} {window}", "window dropped"):
                    continue
                windows += [window] if window else []
            if segments and not windows:
                dropped = True
                if is_query:
                    self.add("query without a window left", line, message)
            # NA-VMR: a null query has the qid of the query with its sentence in another video.
            identities = {"duplicate qid": (key[1], row["qid"], not segments)} if is_query else {}
            identities["duplicate row"] = (*key, row["text"] if is_query else name, *map(tuple, windows))
            for kind, identity in identities.items():
                if identity in seen:
                    dropped |= self.add(kind, line, f"{message} {windows}")
            if is_query:
                ratings = {column: row[column] for column in ("relevant_clip_ids", "saliency_scores")}
                problem = ratings_problem(*ratings.values(), segments, duration)
                if problem and self.add(problem, line, message, "ratings removed"):
                    row |= dict.fromkeys(ratings)
                self.compare_name(key[0], duration, line, message)
            if not dropped:
                seen.update(identities.values())
                if not is_query:
                    row["start_seconds"], row["end_seconds"] = windows[0]
                kept.append(row | {"segments": windows})  # not a column of instances
        return pd.DataFrame(kept, columns=table.columns)
