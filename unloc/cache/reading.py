"""A cache in a local folder: tokens of videos and texts in sharded Zarr v3, read by mapping the shard files.

CACHE/zarr.json                  fingerprint and versions; a copy is in CACHE/shards/zarr.json
CACHE/shards/00000/zarr.json     columns with one value per video, rows of failed videos, checksums of the files
CACHE/shards/00000/frames        (rows, views, D), uncompressed, one shard file; a video's rows are contiguous
CACHE/shards/00000/videos.jsonl  all else known of each video, one line per video, read when asked for
CACHE/texts/00000/zarr.json      [text, first row, rows] of each text; its tokens (rows, D) are in `tokens`
CACHE/aliases.json, projections.json   other ids of cached videos; CLIP's projections of tokens kept before them
"""

import json
import mmap
import resource
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.cache.dtype import from_stored
from unloc.cache.metadata import damaged, read_attributes, read_checked
from unloc.errors import CacheError, MissingError

COLUMNS = ("video_id", "first_row", "num_tokens", "duration_seconds", "file_bytes", "file_mtime_ns")
ROWS = "videos.jsonl"
MOST_MAPS, MOST_TIMES = 10_000, 20_000


class ShardMap:
    """Read-only rows of an uncompressed Zarr array in one shard file, by mapping that file. The file holds the array
    itself, as little-endian chunks of whole rows in order, then an index and its crc32c.
    """

    def __init__(self, path: Path) -> None:
        """Raises CacheError where metadata, size or index of the file are damaged."""
        try:
            stored = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
            inner = tuple(stored["codecs"][0]["configuration"]["chunk_shape"])
            shape, dtype = tuple(stored["shape"]), np.dtype(stored["data_type"]).newbyteorder("<")
            whole_rows = shape[1:] == inner[1:] and shape[0] % inner[0] == 0 and shape[0] > 0
        except (OSError, ValueError, KeyError, TypeError, IndexError, ZeroDivisionError):
            whole_rows = False
        if not whole_rows:
            raise CacheError(damaged(path / "zarr.json"))
        file = path / "c" / Path(*["0"] * len(shape))
        chunk_bytes, num_chunks = int(np.prod(inner)) * dtype.itemsize, shape[0] // inner[0]
        size, expected = file.stat().st_size if file.is_file() else 0, num_chunks * (chunk_bytes + 16) + 4
        if size != expected:
            raise CacheError(f"{damaged(file)} ({size} bytes, expected {expected})")
        with file.open("rb") as handle:
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            handle.seek(num_chunks * chunk_bytes)
            index = handle.read()  # not from the map: of a cold file that would come in small pieces
        if google_crc32c.value(index[:-4]) != int.from_bytes(index[-4:], "little"):
            raise CacheError(f"{damaged(file)} (its index)")
        count = int(np.prod(shape))
        self._array = np.frombuffer(self._map, dtype=dtype, count=count).reshape(shape)
        self._row_bytes = count // shape[0] * dtype.itemsize

    def rows(self, first: int, count: int) -> np.ndarray:
        """(count, …) in the stored dtype, a view; fetched at once, which makes a cold read ten times faster."""
        start = first * self._row_bytes
        aligned = start - start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, aligned, start + count * self._row_bytes - aligned)
        return self._array[first : first + count]


@dataclass(frozen=True)
class CachedVideo:
    """Frame tokens of one video."""

    frames: np.ndarray  # (views, T, D), read only: a view into the mapped shard, of a bfloat16 cache a float32 copy
    times_seconds: np.ndarray  # (T,) when each frame is shown from, seconds from the start of the video, read only
    _read_row: Callable[[], dict] = field(repr=False)

    @cached_property
    def meta(self) -> dict:
        """The video's row, read on first use: video_id, content_sha256, duration_seconds, decoder, codec, …"""
        return self._read_row()


def read_table(shard: Path) -> dict:
    """The table of a shard: `COLUMNS` as int64 (-1: none) or float64 (NaN: none), ids a list. Raises CacheError."""
    table = read_attributes(shard)
    for name in COLUMNS[1:]:
        values, dtype = table["videos"][name], np.float64 if name == "duration_seconds" else np.int64
        if dtype is np.int64 and None in values:
            values = [-1 if value is None else value for value in values]
        table["videos"][name] = np.array(values, dtype=dtype)  # None as float is NaN
    return table


class Cache:
    """Read access by video id and by text. Shards written after opening are not seen."""

    def __init__(self, path: Path, download: Callable[[str], None] | None = None) -> None:
        """`download` fetches a file or array that is about to be read. Raises MissingError; CacheError: damaged."""
        if not (path / "zarr.json").is_file():
            problem = "has no zarr.json" if path.exists() else "does not exist"
            raise MissingError(f"cache {path} {problem}; name a folder that `unloc extract … --cache` wrote")
        attributes = read_attributes(path)
        self.path, self._download = path, download
        self.fingerprint: dict = attributes["fingerprint"]
        self.versions: dict = attributes["versions"]
        self.dtype: str = self.fingerprint.get("dtype", "float16")  # of stored tokens: float16, float32 or bfloat16
        self._finite: set[str] = set()  # videos whose tokens were checked
        # A map holds an open file: at most half of those that the process may open.
        num_maps = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2, MOST_MAPS)
        self._map = lru_cache(maxsize=num_maps)(lambda place: ShardMap(self.fetch(place)))
        self._line_ends = lru_cache(maxsize=None)(self._find_line_ends)
        self._times = lru_cache(maxsize=MOST_TIMES)(self._read_times)

    def __reduce__(self) -> tuple:
        # Maps would be pickled as the data they show: another process opens the cache itself.
        return type(self), (self.path, self._download)

    @property
    def note(self) -> str:
        """What a reader of results must know of the tokens: that their tower has random weights; else empty."""
        if self.fingerprint.get("tower.pretrained") != "none":
            return ""
        name = self.fingerprint["tower.name"]
        return f"{self.path}: tokens of {name} with random weights (--pretrained none), for smoke tests only"

    @cached_property
    def tables(self) -> dict[str, dict]:
        """The table (`read_table`) of every committed shard by its name, in order."""
        files = sorted((self.path / "shards").glob("[0-9]*/zarr.json"))
        return {file.parent.name: read_table(file.parent) for file in files}

    @cached_property
    def places(self) -> dict[str, tuple[str, int]]:
        """The shard of every video, by the id of its tokens, and its position there; of one in two shards the later."""
        return {
            video_id: (shard, position)
            for shard, table in self.tables.items()
            for position, video_id in enumerate(table["videos"]["video_id"])
        }

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Other ids of cached videos: two manifests may name one file differently."""
        return read_checked(self.path / "aliases.json")

    @cached_property
    def projections(self) -> dict[str, np.ndarray]:
        """The tower's own projections (D, width) of tokens that are kept before them, `frames` and `texts`, float32."""
        return {
            kind: np.frombuffer(b64decode(stored["float32"]), dtype="<f4").reshape(stored["shape"])
            for kind, stored in read_checked(self.path / "projections.json").items()
        }

    @cached_property
    def text_index(self) -> dict[str, tuple[str, int, int]]:
        """Every cached text with the array that holds its tokens, its first row and number of rows."""
        return {
            text: (f"texts/{group.name}/tokens", first, count)
            for group in sorted((self.path / "texts").glob("[0-9]*"))
            for text, first, count in read_attributes(group)["texts"]
        }

    def __contains__(self, video_id: str) -> bool:
        return self.own_id(video_id) is not None

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def keys(self) -> Iterable[str]:
        """The ids under which tokens are stored."""
        return self.places.keys()

    def __repr__(self) -> str:
        tower = self.fingerprint.get("tower.name") or self.fingerprint.get("origin", "unknown")
        return f"<Cache {self.path}: {len(self)} videos, {len(self.text_index)} texts, tokens of {tower}>"

    def own_id(self, video_id: str) -> str | None:
        """The id under which a video's tokens are stored: its own, or the one it is an alias of; None: not cached."""
        own = video_id if video_id in self.places else self.aliases.get(video_id)
        return own if own in self.places else None

    def row(self, video_id: str) -> dict:
        """All that is known of one of `places`, read each time. Raises CacheError where it is damaged."""
        shard, position = self.places[video_id]
        ends = self._line_ends(shard)
        start = int(ends[position - 1]) if position else 0
        with (self.path / "shards" / shard / ROWS).open("rb") as handle:
            handle.seek(start)
            return json.loads(handle.read(int(ends[position]) - start)) | {"shard": shard}

    def column(self, name: str, video_id: str) -> int | float:
        """One of `COLUMNS` of one of `places`, without parsing its row (`read_table`)."""
        shard, position = self.places[video_id]
        return self.tables[shard]["videos"][name][position].item()

    def durations_of(self, video_ids: Iterable[str]) -> dict[str, float]:
        """Measured seconds of those videos that are cached, by any of their ids; NaN where a row does not know it."""
        cached = (video_id for video_id in video_ids if video_id in self)
        return {video_id: self.column("duration_seconds", self.own_id(video_id)) for video_id in cached}

    def _find_line_ends(self, shard: str) -> np.ndarray:
        """Where each line of a shard's `videos.jsonl` ends; the file is compared with its checksum."""
        file = self.fetch(f"shards/{shard}/{ROWS}")
        raw = file.read_bytes() if file.is_file() else b""
        if f"{google_crc32c.value(raw):08x}" != self.tables[shard]["files"].get(ROWS):
            raise CacheError(damaged(file))
        return np.flatnonzero(np.frombuffer(raw, dtype=np.uint8) == ord("\n")) + 1

    def _read_times(self, video_id: str) -> np.ndarray:
        times = np.asarray(self.row(video_id)["times_seconds"], dtype=np.float64)
        times.flags.writeable = False  # the next reader gets the same array
        return times

    def __getitem__(self, video_id: str) -> CachedVideo:
        own = self.own_id(video_id)
        if own is None:
            raise MissingError(f"{self.path}: video {video_id!r} is not in the cache ({len(self)} are)")
        frames = from_stored(self.stored_tokens(own), self.dtype)
        if own not in self._finite:
            self._require_finite(f"video {video_id!r}", frames)
            self._finite.add(own)
        return CachedVideo(frames.swapaxes(0, 1), self._times(own), partial(self.row, own))

    def _require_finite(self, what: str, tokens: np.ndarray) -> None:
        is_half = tokens.dtype == np.float16  # whose exponents tell it 17 times faster than isfinite
        if not ((tokens.view(np.uint16) & 0x7C00) < 0x7C00 if is_half else np.isfinite(tokens)).all():
            raise CacheError(f"{self.path}: {what} has NaN or infinite tokens; extract it again with --refresh")

    def stored_tokens(self, video_id: str) -> np.ndarray:
        """(T, views, D) of one of `places` as its bytes are stored (bfloat16: as uint16)."""
        first, count = self.column("first_row", video_id), self.column("num_tokens", video_id)
        return self._map(f"shards/{self.places[video_id][0]}/frames").rows(first, count)

    def stored_text(self, text: str) -> np.ndarray:
        """(K, D) of one text as its bytes are stored (bfloat16: as uint16)."""
        place, first, count = self.text_index[text]
        return self._map(place).rows(first, count)

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """(K, D) tokens of each text, BOS to EOS. Raises MissingError naming the first text that is not here."""
        if absent := [text for text in texts if text not in self.text_index]:
            problem = f"{len(absent)} texts are not in the cache (first: {absent[0]!r})"
            imported = "its tokens were imported: import those of the texts too, with --texts"
            advice = imported if "origin" in self.fingerprint else "run `unloc extract` with this manifest on it"
            raise MissingError(f"{self.path}: {problem}; {advice}")
        found = [from_stored(self.stored_text(text), self.dtype) for text in texts]
        for text, tokens in zip(texts, found, strict=True):
            self._require_finite(f"text {text!r}", tokens)
        return found

    def fetch(self, place: str) -> Path:
        """The path of a file, an array or a shard that is about to be read; a remote cache downloads it first."""
        if self._download:
            self._download(place)
        return self.path / place
