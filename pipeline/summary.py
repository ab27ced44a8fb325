"""What an extraction did, in numbers: by state, by stage, and each failure with its reason."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from unloc.cache.shards import Failure
from unloc.files import write_file

STAGES = ("decode", "preprocess", "encode", "write", "waiting", "start_up", "wall")
WHOLE_SHARE = 0.99  # of its duration; a video of which less is covered is partial


@dataclass(kw_only=True)
class Summary:
    """Saved as CACHE/summary.json. Seconds of stages are summed over workers; `seconds_wall` is elapsed time."""

    cache: str = ""
    """Where the tokens are: not the cache asked for if that has another fingerprint, but its sibling."""
    videos: int = 0
    cached_before: int = 0
    cached_now: int = 0
    failed: int = 0
    """All videos without tokens: failed now or before, or missing."""
    failed_before: int = 0
    missing: int = 0
    changed: list[str] = field(default_factory=list)
    """Cached videos whose file has changed; their tokens are those of the old file."""
    texts_now: int = 0
    frames: int = 0
    seconds_decode: float = 0.0
    seconds_preprocess: float = 0.0
    seconds_encode: float = 0.0
    seconds_write: float = 0.0
    seconds_waiting: float = 0.0
    """How long encoders waited for frames."""
    seconds_start_up: float = 0.0
    """Part of `seconds_wall` until texts were encoded and the first Ray worker had loaded its tower."""
    seconds_wall: float = 0.0
    covered_seconds: dict[str, float] = field(default_factory=dict)
    """Decoded seconds of each partial video of this run."""
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

    @property
    def frames_per_second(self) -> float:
        """Of this run, by elapsed time."""
        return self.frames / self.seconds_wall if self.seconds_wall else 0.0

    def add_video(self, row: dict, num_tokens: int) -> None:
        """Count a video that was encoded in this run."""
        self.cached_now += 1
        self.frames += num_tokens
        for stage in ("decode", "preprocess", "encode", "waiting"):
            name = f"seconds_{stage}"
            setattr(self, name, getattr(self, name) + row[name])
        if row["truncated"] or row["covered_seconds"] < WHOLE_SHARE * row["duration_seconds"]:
            self.covered_seconds[row["video_id"]] = row["covered_seconds"]

    def add_failure(self, failure: Failure) -> None:
        """Count a video that has no tokens."""
        self.failed += 1
        self.failures.append(failure.to_row())
        self.reasons = dict(Counter(row["reason"] for row in self.failures))

    def to_dict(self) -> dict:
        """For JSON."""
        values = asdict(self) | {"coverage": self.coverage, "frames_per_second": self.frames_per_second}
        return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}

    def write(self, path: Path) -> None:
        """Save it as JSON."""
        write_file(path, json.dumps(self.to_dict(), indent=1, ensure_ascii=False))

    def lines(self) -> list[tuple[str, str]]:
        """A table of (name, text) for people."""
        stages = {stage: getattr(self, f"seconds_{stage}") for stage in STAGES}
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))
        table = [
            ("cache", self.cache),
            ("videos", f"{self.cached} of {self.videos} cached ({self.cached_now} now, {self.cached_before} before)"),
            ("failed", f"{self.failed} ({reasons})" if self.failed else "0"),
            ("changed", f"{len(self.changed)} have a changed file; `--refresh changed` extracts them again"),
            ("partial", f"{len(self.covered_seconds)}, covered seconds in summary.json"),
            ("texts", f"{self.texts_now} now"),
            ("frames", f"{self.frames} ({self.frames_per_second:.1f} a second)"),
            ("seconds", "  ".join(f"{stage.replace('_', '-')} {value:.1f}" for stage, value in stages.items())),
        ]
        absent = {name for name, values in (("partial", self.covered_seconds), ("changed", self.changed)) if not values}
        return [row for row in table if row[0] not in absent]
