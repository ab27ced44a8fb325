"""What an extraction did: ledger.jsonl, one line per attempt, for people and scripts; and a summary in numbers."""

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unloc.cache.shards import Failure, Result
from unloc.errors import CoverageError

CACHED, UNCHANGED = "cached", "unchanged"
MISSING = "missing"  # the reason of a failure: no file
WHOLE_SHARE = 0.99  # of its duration; a video with less decoded is partial


class Ledger:
    """The ledger of a cache in a local folder."""

    def __init__(self, cache: Path) -> None:
        self.path = cache / "ledger.jsonl"
        if self.path.is_file():  # a full disk may have left half a line
            with self.path.open("rb+") as handle:
                data = handle.read()
                handle.truncate(data.rfind(b"\n") + 1)

    def write(self, row: dict) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"unix_time": round(time.time(), 3), **row}, ensure_ascii=False) + "\n")

    def last_rows(self) -> dict[str, dict]:
        """The last line of every video, without its time; damaged lines are skipped."""
        found = {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        for line in text.split("\n"):
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                found[row["video_id"]] = {key: value for key, value in row.items() if key != "unix_time"}
        return found


def ledger_row(result: Result) -> dict:
    """The line of a video that was encoded or failed."""
    if isinstance(result, Failure):
        return result.to_row()
    row = {key: result.meta.get(key) for key in ("video_id", "decoder", "seconds_decode", "seconds_encode")}
    return {"status": CACHED, **row, "num_tokens": len(result.tokens)}


@dataclass(kw_only=True)
class Summary:
    """Saved as CACHE/summary.json. Seconds of stages are summed over workers; `seconds_wall` is elapsed time."""

    cache: str = ""  # where the tokens are: in a sibling of the cache asked for if that has another fingerprint
    videos: int = 0
    cached_before: int = 0
    cached_now: int = 0
    failed: int = 0  # all videos without tokens: failed now or before, or missing
    failed_before: int = 0
    missing: int = 0
    changed: list[str] = field(default_factory=list)  # cached, but the file has changed: tokens are of the old one
    texts_now: int = 0
    frames: int = 0
    seconds_decode: float = 0.0
    seconds_preprocess: float = 0.0
    seconds_encode: float = 0.0
    seconds_write: float = 0.0
    seconds_waiting: float = 0.0  # of encoders, for frames
    seconds_start_up: float = 0.0  # of `seconds_wall`: texts were encoded, the first Ray worker had loaded its tower
    seconds_wall: float = 0.0
    covered_seconds: dict[str, float] = field(default_factory=dict)  # decoded, of each partial video of this run
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[dict] = field(default_factory=list)

    @property
    def cached(self) -> int:
        """Videos in the cache now."""
        return self.cached_before + self.cached_now

    @property
    def coverage(self) -> float:
        """Share of the videos that are in the cache now."""
        return self.cached / self.videos if self.videos else 1.0

    def add(self, result: Result) -> None:
        """Count a video that was encoded in this run, or one that has no tokens."""
        if isinstance(result, Failure):
            self.failed += 1
            self.failures.append(result.to_row())
            self.reasons[result.reason] = self.reasons.get(result.reason, 0) + 1
            return
        row = result.meta
        self.cached_now += 1
        self.frames += len(result.tokens)
        for name in ("seconds_decode", "seconds_preprocess", "seconds_encode", "seconds_waiting"):
            setattr(self, name, getattr(self, name) + row[name])
        if row["truncated"] or row["covered_seconds"] < WHOLE_SHARE * row["duration_seconds"]:
            self.covered_seconds[row["video_id"]] = row["covered_seconds"]

    def require_coverage(self, share: float) -> None:
        """Raises CoverageError where a smaller share of the videos is cached."""
        if self.coverage < share:
            first = "{video_id}: {reason}: {message}".format(**self.failures[0])
            counts = f"{self.cached} of {self.videos} videos are cached, --coverage asks for {share:.0%}"
            raise CoverageError(f"{self.cache}: {counts} (first: {first}); all reasons: {self.cache}/ledger.jsonl")

    def to_dict(self) -> dict:
        """For JSON."""
        rate = self.frames / self.seconds_wall if self.seconds_wall else 0.0
        values = asdict(self) | {"coverage": self.coverage, "frames_per_second": rate}
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}

    def table(self) -> dict[str, str]:
        """Names and texts for people."""
        stages = [(name[8:], value) for name, value in vars(self).items() if name.startswith("seconds_")]
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        rows = {
            "cache": self.cache,
            "videos": f"{self.cached} of {self.videos} cached ({self.cached_now} now, {self.cached_before} before)",
            "failed": f"{self.failed} ({reasons})" if self.failed else "0",
            "changed": self.changed and f"{len(self.changed)} have a changed file (--refresh changed)",
            "partial": self.covered_seconds and f"{len(self.covered_seconds)}, covered seconds in summary.json",
            "texts": f"{self.texts_now} now",
            "frames": f"{self.frames} ({self.to_dict()['frames_per_second']:.1f} a second)",
            "seconds": "  ".join(f"{name.replace('_', '-')} {value:.1f}" for name, value in stages),
        }
        return {name: text for name, text in rows.items() if text}
