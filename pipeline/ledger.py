"""ledger.jsonl: what happened to each video, one line per attempt, for people and scripts."""

import json
import time
from contextlib import suppress
from pathlib import Path

CACHED, UNCHANGED = "cached", "unchanged"
MISSING = "missing"  # the reason of a failure: no file


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

    def write_cached(self, meta: dict, num_tokens: int) -> None:
        """Add the line of a video that was encoded."""
        row = {key: meta.get(key) for key in ("video_id", "decoder", "seconds_decode", "seconds_encode")}
        self.write({"status": CACHED, **row, "num_tokens": num_tokens})

    def last_rows(self) -> dict[str, dict]:
        """The last line of every video, without its time; damaged lines are skipped."""
        found = {}
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        for line in text.split("\n"):
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                found[row["video_id"]] = {key: value for key, value in row.items() if key != "unix_time"}
        return found
