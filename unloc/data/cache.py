"""The cache: tokens of videos and texts in sharded Zarr v3, read by mapping the shard files.

    CACHE/zarr.json                  fingerprint (which tower and preprocessing) and versions
    CACHE/shards/00000/zarr.json     the shard's table: one entry per video; written with the shard, in one rename
    CACHE/shards/00000/frames        (rows, views, D), uncompressed, one shard file; a video's rows are contiguous
    CACHE/aliases.json               ids that name the same file as a cached video (`v_<id>` and `<id>`)
    CACHE/texts/00000/zarr.json      table of texts: [text, first row, rows]
    CACHE/texts/00000/tokens         (rows, D), all tokens of each text from BOS to EOS

Any Zarr v3 reader opens the arrays. Locally the shard file of an uncompressed array is its bytes and an index, so it
is mapped into memory: a random batch costs about what one memmap would.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.errors import CacheError, MissingError

FORMAT = 1
SHARD_NAME = "{:05d}"


@dataclass(frozen=True)
class CachedVideo:
    """Frame tokens of one video."""

    frames: np.ndarray
    """(views, T, D) in the cache's dtype, a view into the mapped shard."""
    times_seconds: np.ndarray
    """(T,) when each frame is shown from, seconds from the start of the video."""
    meta: dict
    """The video's row: id, sha256, duration_seconds, decoder, decoder_reason, codec, size, …"""


def open_cache(path: Path | str) -> "Cache":
    """The cache at a path. Raises MissingError where there is none, CacheError where it is of another format."""
    path = Path(path)
    if not (path / "zarr.json").is_file():
        raise MissingError(f"cache {path} does not exist; `unloc extract … --cache {path}` makes it")
    stated = read_attributes(path).get("unloc_cache")
    if stated != FORMAT:
        raise CacheError(f"{path}: cache format {stated!r}, this unloc reads {FORMAT}; extract into a new folder")
    return Cache(path)


def read_attributes(group: Path) -> dict:
    """Attributes of a Zarr group."""
    return json.loads((group / "zarr.json").read_text(encoding="utf-8"))["attributes"]


class Cache:
    """Read access by video id and by text. New shards written after opening are not seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        attributes = read_attributes(path)
        self.fingerprint: dict = attributes["fingerprint"]
        self.versions: dict = attributes["versions"]
        self._arrays: dict[Path, np.ndarray] = {}

    @cached_property
    def tables(self) -> dict[str, dict]:
        """Attributes of every committed shard, by name, in order."""
        shards = self.path / "shards"
        names = sorted(item.name for item in shards.glob("[0-9]*") if (item / "zarr.json").is_file())
        return {name: read_attributes(shards / name) for name in names}

    @cached_property
    def rows(self) -> dict[str, dict]:
        """The row of every cached video, with its shard; a later shard replaces an earlier one."""
        return {
            row["video_id"]: {**row, "shard": name} for name, table in self.tables.items() for row in table["videos"]
        }

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Other ids of cached videos: two manifests may name one file differently."""
        path = self.path / "aliases.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @cached_property
    def _texts(self) -> dict[str, tuple[Path, int, int]]:
        found = {}
        for group in sorted((self.path / "texts").glob("[0-9]*")):
            for text, first, count in read_attributes(group)["texts"]:
                found[text] = (group / "tokens", first, count)
        return found

    def __contains__(self, video_id: str) -> bool:
        return video_id in self.rows or self.aliases.get(video_id) in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, video_id: str) -> CachedVideo:
        if video_id not in self:
            raise MissingError(f"{self.path}: video {video_id!r} is not in the cache ({len(self)} are)")
        row = self.rows.get(video_id) or self.rows[self.aliases[video_id]]
        array = self._mapped(self.path / "shards" / row["shard"] / "frames")
        tokens = array[row["first_row"] : row["first_row"] + row["num_tokens"]]
        return CachedVideo(np.moveaxis(tokens, 1, 0), np.asarray(row["times_seconds"]), row)

    @property
    def num_texts(self) -> int:
        """How many texts are here."""
        return len(self._texts)

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
        return [self._mapped(path)[first : first + count] for path, first, count in map(self._texts.get, texts)]

    def _mapped(self, path: Path) -> np.ndarray:
        if path not in self._arrays:
            self._arrays[path] = map_array(path)
        return self._arrays[path]


def map_array(path: Path) -> np.ndarray:
    """An uncompressed, single-shard Zarr array as a read-only memory map of its shard file.

    Raises CacheError where the file is shorter than its metadata says or its index is damaged.
    """
    stated = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    shape, dtype = tuple(stated["shape"]), np.dtype(stated["data_type"])
    inner = tuple(stated["codecs"][0]["configuration"]["chunk_shape"])
    file = path / "c" / Path(*["0"] * len(shape))
    num_chunks = shape[0] // inner[0]
    expected = int(np.prod(shape)) * dtype.itemsize + 16 * num_chunks + 4
    if not file.is_file() or file.stat().st_size != expected:
        size = file.stat().st_size if file.is_file() else 0
        raise CacheError(f"{file}: {size} bytes, expected {expected}; `unloc cache verify` tells what is broken")
    with file.open("rb") as handle:
        handle.seek(-(16 * num_chunks + 4), 2)
        raw = handle.read()
    if int.from_bytes(raw[-4:], "little") != google_crc32c.value(raw[:-4]):
        raise CacheError(f"{file}: the shard's index is damaged; `unloc cache verify` tells what is broken")
    index = np.frombuffer(raw[:-4], dtype="<u8").reshape(num_chunks, 2)
    chunk_bytes = int(np.prod(inner)) * dtype.itemsize
    if not np.array_equal(index[:, 0], np.arange(num_chunks, dtype=np.uint64) * np.uint64(chunk_bytes)):
        raise CacheError(f"{file}: chunks are not in order; this cache was not written by unloc")
    return np.memmap(file, dtype=dtype, mode="r", shape=shape)
