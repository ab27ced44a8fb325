"""The cache: tokens of videos and texts in sharded Zarr v3, read by mapping the shard files.

    CACHE/zarr.json                  fingerprint (which tower and preprocessing) and versions
    CACHE/shards/00000/zarr.json     the shard's table: one entry per video, and the checksums of its files;
                                     written with the shard, in one rename
    CACHE/shards/00000/frames        (rows, views, D), uncompressed, one shard file; a video's rows are contiguous
    CACHE/aliases.json               ids that name the same file as a cached video (`v_<id>` and `<id>`)
    CACHE/projections.json           CLIP's own projections, where tokens are kept before them: a trained one starts so
    CACHE/texts/00000/zarr.json      table of texts: [text, first row, rows]
    CACHE/texts/00000/tokens         (rows, D), all tokens of each text from BOS to EOS

Any Zarr v3 reader opens the arrays. Locally the shard file of an uncompressed array is its bytes and an index, so it
is mapped into memory: a random batch costs about what one memmap would. Every group's `zarr.json`, the plan and the
aliases carry a checksum over their own bytes; `shards/zarr.json` holds a copy of the fingerprint.
"""

import json
import re
from base64 import b64decode
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import google_crc32c
import numpy as np

from unloc.data.shard_map import ShardMap
from unloc.data.token_dtype import from_stored
from unloc.errors import CacheError, MissingError

FORMAT = 2
SHARD_NAME = "{:05d}"
CHECKSUM_KEY = "crc32c"
UNSTATED = {
    "tower.projected": True,
    "tower.texts_projected": True,
    "tower.num_layers": 1,
    "tower.dtype": "float32",
    "tower.like": None,
}
_SCHEME = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}(?=[^/]|$)")
_CHECKSUM_MARK = f'"{CHECKSUM_KEY}": "'.encode()


@dataclass(frozen=True, slots=True)
class CachedVideo:
    """Frame tokens of one video."""

    frames: np.ndarray
    """(views, T, D), read only: a view into the mapped shard, or of a bfloat16 cache a float32 copy."""
    times_seconds: np.ndarray
    """(T,) when each frame is shown from, seconds from the start of the video."""
    meta: dict
    """The video's row: id, sha256, duration_seconds, decoder, decoder_reason, codec, size, …"""


def url_of(path: Path | str) -> str | None:
    """The URL that a path is meant as, or None for a local one. `Path` makes `s3:/bucket` of `s3://bucket`."""
    match = _SCHEME.match(str(path))
    if match is None or match[1].lower() == "file":
        return None
    return f"{match[1].lower()}://{str(path)[match.end() :].rstrip('/')}"


def open_cache(path: Path | str) -> "Cache":
    """The cache at a path or URL (`s3://…`, see `mirror`).

    Raises MissingError where there is none, CacheError where it is of another format.
    """
    if url := url_of(path):
        from unloc.data.remote import open_remote

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
        raise CacheError(f"{group}: cache format {stated!r}, this unloc reads {FORMAT}; extract into a new folder")
    if attributes.get(CHECKSUM_KEY) != group_checksum(raw):
        raise CacheError(_damaged(file))
    return attributes


def _damaged(file: Path) -> str:
    return f"{file}: damaged; `unloc cache verify --repair` mends what can be mended"


def read_checked(file: Path) -> dict:
    """The values of a JSON file that `cache_writer.write_checked` wrote; none where there is no file.

    Raises CacheError where it is not what was written. Files without a checksum are of an earlier version.
    """
    if not file.is_file():
        return {}
    raw = file.read_bytes()
    try:
        stated = json.loads(raw)
        if not {"values", CHECKSUM_KEY} & stated.keys():
            return stated
        values, is_whole = stated["values"], stated[CHECKSUM_KEY] == group_checksum(raw)
    except (ValueError, KeyError, AttributeError):
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


class Cache:
    """Read access by video id and by text. New shards written after opening are not seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        attributes = read_attributes(path)
        self.fingerprint: dict = attributes["fingerprint"]
        self.versions: dict = attributes["versions"]
        self.dtype: str = self.fingerprint.get("dtype", "float16")
        """How tokens are stored: float16, float32 or bfloat16 (see `token_dtype`)."""
        self._maps: dict[str, ShardMap] = {}
        self._times: dict[str, np.ndarray] = {}
        self._finite: set[str] = set()
        """Videos whose tokens were looked at."""

    def __getstate__(self) -> dict:
        # Maps would be pickled as the data they show; another process maps the shards itself.
        return self.__dict__ | {"_maps": {}, "_times": {}}

    @property
    def note(self) -> str:
        """What a reader of results must know of the tokens: that their tower has random weights; else empty."""
        if self.fingerprint.get("tower.pretrained") != "none":
            return ""
        name = self.fingerprint["tower.name"]
        return f"{self.path}: tokens of {name} with random weights (--pretrained none), for smoke tests only"

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
    def durations(self) -> dict[str, float]:
        """Measured seconds of every cached video, by each of its ids."""
        found = {video_id: float(row.get("duration_seconds") or np.nan) for video_id, row in self.rows.items()}
        return found | {alias: found[name] for alias, name in self.aliases.items() if name in found}

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
        return video_id in self.rows or self.aliases.get(video_id) in self.rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, video_id: str) -> dict:
        """The row of a video by any of its ids. Raises MissingError where it is not cached."""
        if video_id not in self:
            raise MissingError(f"{self.path}: video {video_id!r} is not in the cache ({len(self)} are)")
        return self.rows.get(video_id) or self.rows[self.aliases[video_id]]

    def __getitem__(self, video_id: str) -> CachedVideo:
        row = self.row(video_id)
        frames = from_stored(self.stored_tokens(row), self.dtype)
        if video_id not in self._finite:  # once for each reader
            self._require_finite(f"video {video_id!r}", frames)
            self._finite.add(video_id)
        return CachedVideo(frames.swapaxes(0, 1), self._times_of(row), row)

    def _require_finite(self, what: str, tokens: np.ndarray) -> None:
        if not np.isfinite(tokens).all():
            raise CacheError(
                f"{self.path}: {what} has NaN or infinite tokens; leave it out of the manifest, or extract it again "
                "into a new cache"
            )

    def stored_tokens(self, row: dict) -> np.ndarray:
        """(T, views, D) of one of `rows` as its bytes are stored (bfloat16: as uint16)."""
        return self._map(f"shards/{row['shard']}/frames").rows(row["first_row"], row["num_tokens"])

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

    def _times_of(self, row: dict) -> np.ndarray:
        video_id = row["video_id"]
        if video_id not in self._times:
            self._times[video_id] = np.asarray(row["times_seconds"], dtype=np.float64)
        return self._times[video_id]

    def _map(self, name: str) -> ShardMap:
        if name not in self._maps:
            self._maps[name] = ShardMap(self.path / name)
        return self._maps[name]
