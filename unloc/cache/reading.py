"""The cache: tokens of videos and texts in sharded Zarr v3, read by mapping the shard files.

    CACHE/zarr.json                    fingerprint (which tower and preprocessing) and versions
    CACHE/shards/00000/zarr.json       the shard's table: columns with one value per video, the rows of the videos that
                                       failed, and checksums of all files of the shard
    CACHE/shards/00000/frames          (rows, views, D), uncompressed, one shard file; a video's rows are contiguous
    CACHE/shards/00000/videos.jsonl    all that is known of each video beside its tokens, one line per video
    CACHE/aliases.json                 ids that name the same file as a cached video (`v_<id>` and `<id>`)
    CACHE/projections.json             CLIP's own projections, where tokens are kept before them
    CACHE/texts/00000/zarr.json        table of texts: [text, first row, rows]
    CACHE/texts/00000/tokens           (rows, D), all tokens of each text from BOS to EOS

Opening reads the tables; a video's row, with its times, is read when asked for. Any Zarr v3 reader opens the arrays.
Locally the shard file of an uncompressed array is its bytes and an index, so it is mapped into memory: a random batch
costs about what one memmap would. Every group's `zarr.json`, the plan and the aliases carry a checksum over their own
bytes; `shards/zarr.json` holds a copy of the fingerprint.
"""

import json
import resource
from base64 import b64decode
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.cache.dtype import from_stored
from unloc.cache.shard_map import ShardMap
from unloc.errors import CacheError, MissingError
from unloc.files import url_of

FORMAT = 3
SHARD_NAME = "{:05d}"
CHECKSUM_KEY = "crc32c"
COLUMNS = ("video_id", "first_row", "num_tokens", "duration_seconds", "file_bytes", "file_mtime_ns")
ROWS = "videos.jsonl"
MOST_MAPS, MOST_TIMES = 10_000, 20_000
REMEMBERED = ("_map", "_line_ends", "times_seconds")  # of a Cache, by each process for itself
UNSTATED = {
    "tower.batch": 16,
    "tower.projected": True,
    "tower.texts_projected": True,
    "tower.num_layers": 1,
    "tower.dtype": "float32",
    "tower.like": None,
}
_CHECKSUM_MARK = f'"{CHECKSUM_KEY}": "'.encode()


@dataclass(frozen=True)
class CachedVideo:
    """Frame tokens of one video."""

    frames: np.ndarray
    """(views, T, D), read only: a view into the mapped shard, or of a bfloat16 cache a float32 copy."""
    times_seconds: np.ndarray
    """(T,) when each frame is shown from, seconds from the start of the video. Read only."""
    _read_row: Callable[[], dict] = field(repr=False)

    @cached_property
    def meta(self) -> dict:
        """The video's row, read on first use: video_id, content_sha256, duration_seconds, decoder, codec, …"""
        return self._read_row()


def open_cache(path: Path | str) -> "Cache":
    """The cache at a path or URL (`s3://…`, see `mirror`).

    Raises MissingError where there is none, CacheError where it is of another format.
    """
    if url := url_of(path):
        from unloc.cache.remote import open_remote

        return open_remote(url)
    path = Path(path)
    if not (path / "zarr.json").is_file():
        if path.exists():
            raise MissingError(f"{path} is no cache: it has no zarr.json; name the folder that `unloc extract` wrote")
        raise MissingError(f"cache {path} does not exist; `unloc extract … --cache {path}` makes it")
    return Cache(path)


def read_attributes(group: Path) -> dict:
    """Attributes of a Zarr group.

    Raises CacheError where its metadata is gone, is not what was written, or is of another format.
    """
    file = group / "zarr.json"
    try:
        raw = file.read_bytes()
        attributes = json.loads(raw)["attributes"]
    except (OSError, ValueError, KeyError, TypeError):
        attributes = None
    if not isinstance(attributes, dict):
        raise CacheError(_damaged(file))
    stated = attributes.get("unloc_cache", FORMAT)
    if stated != FORMAT:
        raise CacheError(
            f"{group}: cache format {stated!r}, this unloc reads {FORMAT}; run `unloc extract` again into a new folder"
        )
    if attributes.get(CHECKSUM_KEY) != group_checksum(raw):
        raise CacheError(_damaged(file))
    return attributes


def _damaged(file: Path) -> str:
    return f"{file}: damaged; `unloc cache verify --repair` mends what can be mended"


def read_checked(file: Path) -> dict:
    """The values of a JSON file that `cache_writer.write_checked` wrote; none where there is no file.

    Raises CacheError where it is not what was written.
    """
    if not file.is_file():
        return {}
    raw = file.read_bytes()
    try:
        stated = json.loads(raw)
        values, is_whole = stated["values"], stated[CHECKSUM_KEY] == group_checksum(raw)
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise CacheError(_damaged(file))
    return values


def completed(fingerprint: dict) -> dict:
    """With the keys that caches did not state before there was a choice.

    The activation was once that of the model's name, whatever the weights were trained with.
    """
    if "tower.name" not in fingerprint:
        return fingerprint
    activation = "quick_gelu" if fingerprint["tower.name"].endswith("-quickgelu") else "gelu"
    unstated = UNSTATED | {"tower.activation": activation}
    return fingerprint | {key: value for key, value in unstated.items() if key not in fingerprint}


def group_checksum(raw: bytes) -> str:
    """crc32c over a metadata file in which the digits of its checksum are zeros."""
    head, mark, tail = raw.rpartition(_CHECKSUM_MARK)
    return f"{google_crc32c.value(head + mark + b'00000000' + tail[8:]):08x}"


class Rows(Mapping[str, dict]):
    """The row of every cached video by id, with `shard`; a row is read and parsed each time it is asked for."""

    def __init__(self, cache: "Cache") -> None:
        self._cache = cache

    def __getitem__(self, video_id: str) -> dict:
        shard, position = self._cache.place(video_id)
        return json.loads(self._cache.row_line(shard, position)) | {"shard": shard}

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._cache.table.number_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._cache.table.number_of)

    def __len__(self) -> int:
        return len(self._cache.table.number_of)


@dataclass(frozen=True)
class Table:
    """The tables of all shards, joined: position i of every column is the same video."""

    number_of: dict[str, int]
    """Position of each video id in the columns; a video in two shards has the one in the later shard."""
    columns: dict[str, np.ndarray]
    """(N,) int64 each: `COLUMNS` without the id, -1 where a row has no such value; durations float64, and NaN."""
    shards: list[str]
    """Names of the shards, in order."""
    starts: list[int]
    """Position of the first video of each shard."""
    failed: dict[str, list[dict]]
    """Rows of the videos that failed, by shard."""

    @classmethod
    def read(cls, folders: list[Path]) -> "Table":
        """From the tables of shards, in order. Raises CacheError where one is damaged."""
        number_of, starts, failed, parts, count = {}, [], {}, {name: [] for name in COLUMNS[1:]}, 0
        for folder in folders:
            stated = read_attributes(folder)
            ids, failed[folder.name] = stated["videos"]["video_id"], stated["failed"]
            starts.append(count)
            number_of.update(zip(ids, range(count, count + len(ids)), strict=True))
            for name, part in parts.items():
                dtype, unknown = (np.float64, np.nan) if name == "duration_seconds" else (np.int64, -1)
                values = [unknown if value is None else value for value in stated["videos"][name]]
                part.append(np.asarray(values, dtype=dtype))
            count += len(ids)
        columns = {name: np.concatenate(part) if part else np.zeros(0, np.int64) for name, part in parts.items()}
        return cls(number_of, columns, [folder.name for folder in folders], starts, failed)


class Cache:
    """Read access by video id and by text. New shards written after opening are not seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        attributes = read_attributes(path)
        self.fingerprint: dict = attributes["fingerprint"]
        self.versions: dict = attributes["versions"]
        self.dtype: str = self.fingerprint.get("dtype", "float16")
        """How tokens are stored: float16, float32 or bfloat16 (see `token_dtype`)."""
        self._remember()
        self._finite: set[str] = set()
        """Videos whose tokens were looked at."""

    def _remember(self) -> None:
        # A map holds an open file: at most half of those that the process may open.
        num_maps = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, MOST_MAPS)
        self._map = lru_cache(maxsize=num_maps)(self._open_map)
        self._line_ends = lru_cache(maxsize=None)(self._find_line_ends)
        self.times_seconds = lru_cache(maxsize=MOST_TIMES)(self._read_times)
        """(T,) of one of `rows`, read only: when each frame is shown from, in seconds."""

    def __getstate__(self) -> dict:
        # Maps would be pickled as the data they show; another process maps the shards itself.
        return {key: value for key, value in self.__dict__.items() if key not in REMEMBERED}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._remember()

    @property
    def note(self) -> str:
        """What a reader of results must know of the tokens: that their tower has random weights; else empty."""
        if self.fingerprint.get("tower.pretrained") != "none":
            return ""
        name = self.fingerprint["tower.name"]
        return f"{self.path}: tokens of {name} with random weights (--pretrained none), for smoke tests only"

    @cached_property
    def table(self) -> Table:
        """The tables of every committed shard."""
        return Table.read(sorted(file.parent for file in (self.path / "shards").glob("[0-9]*/zarr.json")))

    @property
    def shards(self) -> list[str]:
        """Names of the committed shards, in order."""
        return self.table.shards

    @property
    def rows(self) -> Rows:
        """What is known of every cached video beside its tokens and times."""
        return Rows(self)

    def column(self, name: str, video_id: str) -> int | float:
        """One of `COLUMNS` of one of `rows`, without parsing the row (`Table.columns`)."""
        return self.table.columns[name][self.table.number_of[video_id]].item()

    def place(self, video_id: str) -> tuple[str, int]:
        """The shard of a cached video and its position there."""
        number = self.table.number_of[video_id]
        shard = bisect_right(self.table.starts, number) - 1  # the last one where empty shards start there too
        return self.shards[shard], number - self.table.starts[shard]

    def durations_of(self, video_ids: Iterable[str]) -> dict[str, float]:
        """Measured seconds of those videos that are cached, by any of their ids; NaN where a row does not know it."""
        own = {video_id: self.own_id(video_id) for video_id in video_ids}
        return {
            video_id: float(self.column("duration_seconds", name)) for video_id, name in own.items() if name is not None
        }

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Other ids of cached videos: two manifests may name one file differently."""
        return read_checked(self.path / "aliases.json")

    @cached_property
    def projections(self) -> dict[str, np.ndarray]:
        """The tower's own projections (D, width) of tokens that are kept before them, `frames` and `texts`, float32."""
        return {
            kind: np.frombuffer(b64decode(stated["float32"]), dtype="<f4").reshape(stated["shape"])
            for kind, stated in read_checked(self.path / "projections.json").items()
        }

    @cached_property
    def _texts(self) -> dict[str, tuple[str, int, int]]:
        found = {}
        for group in sorted((self.path / "texts").glob("[0-9]*")):
            for text, first, count in read_attributes(group)["texts"]:
                found[text] = (f"texts/{group.name}/tokens", first, count)
        return found

    def __contains__(self, video_id: str) -> bool:
        return self.own_id(video_id) is not None

    def __len__(self) -> int:
        return len(self.rows)

    def own_id(self, video_id: str) -> str | None:
        """The id under which a video's tokens are stored: its own, or that of which it is an alias; None: neither."""
        own = video_id if video_id in self.rows else self.aliases.get(video_id)
        return own if own in self.rows else None

    def _known(self, video_id: str) -> str:
        own = self.own_id(video_id)
        if own is None:
            raise MissingError(f"{self.path}: video {video_id!r} is not in the cache ({len(self)} are)")
        return own

    def row(self, video_id: str) -> dict:
        """The row of a video by any of its ids. Raises MissingError where it is not cached."""
        return self.rows[self._known(video_id)]

    def __getitem__(self, video_id: str) -> CachedVideo:
        own = self._known(video_id)
        frames = from_stored(self.stored_tokens(own), self.dtype)
        if own not in self._finite:  # once for each reader
            self._require_finite(f"video {video_id!r}", frames)
            self._finite.add(own)
        return CachedVideo(frames.swapaxes(0, 1), self.times_seconds(own), partial(self.rows.__getitem__, own))

    def _require_finite(self, what: str, tokens: np.ndarray) -> None:
        if not np.isfinite(tokens).all():
            raise CacheError(
                f"{self.path}: {what} has NaN or infinite tokens; leave it out of the manifest, or extract it again "
                "with --refresh"
            )

    def stored_tokens(self, video_id: str) -> np.ndarray:
        """(T, views, D) of one of `rows` as its bytes are stored (bfloat16: as uint16)."""
        shard, _ = self.place(video_id)
        first, count = self.column("first_row", video_id), self.column("num_tokens", video_id)
        return self._map(f"shards/{shard}/frames").rows(first, count)

    def _read_times(self, video_id: str) -> np.ndarray:
        times = np.asarray(self.rows[video_id]["times_seconds"], dtype=np.float64)
        times.flags.writeable = False  # the next reader gets the same array
        return times

    @property
    def num_texts(self) -> int:
        """How many texts are here."""
        return len(self._texts)

    @property
    def text_names(self) -> list[str]:
        """Every text that is here, in the order in which they came."""
        return list(self._texts)

    def stored_text(self, text: str) -> np.ndarray:
        """(K, D) of one text as its bytes are stored (bfloat16: as uint16)."""
        name, first, count = self._texts[text]
        return self._map(name).rows(first, count)

    def has_text(self, text: str) -> bool:
        """True where the text's tokens are here."""
        return text in self._texts

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """(K, D) tokens of each text, BOS to EOS. Raises MissingError naming the first text that is not here."""
        absent = [text for text in texts if text not in self._texts]
        if absent:
            raise MissingError(
                f"{self.path}: {len(absent)} texts are not in the cache (first: {absent[0]!r}); "
                "run `unloc extract` with this manifest on it"
            )
        found = [from_stored(self.stored_text(text), self.dtype) for text in texts]
        for text, tokens in zip(texts, found, strict=True):
            self._require_finite(f"text {text!r}", tokens)
        return found

    def fetch(self, name: str) -> Path:
        """A file or array of the cache that is to be read, by its name in it; a remote cache brings it here first."""
        return self.path / name

    def _open_map(self, name: str) -> ShardMap:
        return ShardMap(self.fetch(name))

    def row_line(self, shard: str, position: int) -> bytes:
        """A line of a shard's `videos.jsonl`. Raises CacheError where the file is not what was written."""
        ends = self._line_ends(shard)
        start = int(ends[position - 1]) if position else 0
        with (self.path / "shards" / shard / ROWS).open("rb") as handle:
            handle.seek(start)
            return handle.read(int(ends[position]) - start)

    def _find_line_ends(self, shard: str) -> np.ndarray:
        """Where each line of a shard's `videos.jsonl` ends; on the way the file is checked, once."""
        file, folder = self.fetch(f"shards/{shard}/{ROWS}"), self.path / "shards" / shard
        raw = file.read_bytes() if file.is_file() else b""
        if f"{google_crc32c.value(raw):08x}" != read_attributes(folder)["files"].get(ROWS):
            raise CacheError(_damaged(file))
        return np.flatnonzero(np.frombuffer(raw, dtype=np.uint8) == ord("\n")) + 1
