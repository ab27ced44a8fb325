"""What is wrong with a file, or was changed while reading it: one log for annotations and predictions."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from unloc.files import write_file


@dataclass
class Problems:
    """For each kind of problem, or of change, how often it occurs and where."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str, count: int = 1) -> None:
        """Log `count` problems of a kind, found at one place; none where the count is 0."""
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count
            # Line breaks and lone surrogates of a foreign file are escaped: each kind is printed on one line.
            place = place.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
            self.places.setdefault(kind, []).append(place)

    @property
    def first(self) -> dict[str, str]:
        """The first place of each kind."""
        return {kind: places[0] for kind, places in self.places.items()}

    def lines(self) -> list[str]:
        """One line a kind: count, kind, first place."""
        return [f"{count} × {kind} (first: {self.places[kind][0]})" for kind, count in self.counts.items()]

    def save(self, path: Path) -> None:
        """Write each with its place as a JSON line."""
        rows = [{"change": kind, "place": place} for kind, places in self.places.items() for place in places]
        write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
