"""Feature files of other projects imported into a cache, with the times that the user states for their tokens.

| format                | reads                                                                    |
|-----------------------|--------------------------------------------------------------------------|
| moment-detr, univtg   | a folder of VIDEO.npz with `features` (T, D), one token per clip         |
| actionformer, opentad | a folder of VIDEO.npy (T, D), one token per window of frames             |
| hdf5                  | one HDF5 file, a dataset (or group with one) per video, (T, D)           |
| clip-video-encode     | a folder of WebDataset tars with KEY.npy (T, D), one token per frame     |
"""

import hashlib
import io
import math
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from unloc.cache.dtype import require_token_dtype, to_stored
from unloc.cache.opening import home_of, open_for_writing
from unloc.cache.reading import Cache
from unloc.cache.shards import Failure, Result, ShardWriter, failures_of
from unloc.cache.writing import VideoTokens, token_checksum, write_texts
from unloc.errors import InputError, MissingError, VideoError, one_line

SHARD_SIZE = 512
MAX_DRIFT = 0.1  # typical share by which tokens may cover more or less than the given durations


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a token is shown: token k at span / 2 + k * spacing, or evenly over the video."""

    spacing_seconds: float | None = None
    """Distance of neighbouring tokens; None: T tokens share the video's duration evenly."""
    span_seconds: float = 0.0
    """What one token looks at; it is shown at the middle of that. 0: a single frame."""

    def __post_init__(self) -> None:
        if self.spacing_seconds is not None and not 0 < self.spacing_seconds < math.inf:
            raise InputError(f"timing: spacing_seconds is {self.spacing_seconds}, expected more than 0")
        if not 0 <= self.span_seconds < math.inf:
            raise InputError(f"timing: span_seconds is {self.span_seconds}, expected 0 or more")

    def times(self, num_tokens: int, duration_seconds: float) -> np.ndarray:
        """(T,) seconds; the video's duration counts only where its tokens share it."""
        if self.spacing_seconds is not None:
            return self.span_seconds / 2 + np.arange(num_tokens) * self.spacing_seconds
        return (np.arange(num_tokens) + 0.5) * duration_seconds / num_tokens

    def covered_seconds(self, num_tokens: int) -> float | None:
        """Seconds of video that T tokens look at; None where they share the video's duration."""
        if self.spacing_seconds is None:
            return None
        return (num_tokens - 1) * self.spacing_seconds + (self.span_seconds or self.spacing_seconds)


@dataclass(frozen=True)
class FeatureFile:
    """One video's tokens in a file of another project."""

    name: str
    """What the file calls the video."""
    path: Path
    """The file, or the container that holds it."""
    read: Callable[[], np.ndarray]
    """Reads the stored array."""

    def tokens(self, *, transposed: bool) -> np.ndarray:
        """(T, D) float32 without axes of length 1; `transposed` turns (D, T). Raises VideoError with a reason."""
        where = f"{self.path} ({self.name})"
        try:
            array = np.asarray(self.read())
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
            raise VideoError(f"{where}: cannot be read: {one_line(error)}", reason="unreadable") from None
        shape = array.shape
        if array.ndim > 2:
            array = array.reshape([length for length in shape if length != 1] or [1])
        if array.dtype.kind not in "fiu" or array.ndim != 2 or 0 in array.shape:
            message = f"{where}: holds {array.dtype} of shape {shape}, expected numbers (tokens, channels)"
            raise VideoError(message, reason="not_features")
        return np.ascontiguousarray((array.T if transposed else array).astype(np.float32))


def list_features(format_name: str, source: Path, dataset: str | None = None) -> dict[str, FeatureFile]:
    """What a source holds, by the name it gives each video, in order. `dataset`: name of the array in a file.

    Raises InputError for an unknown format and for a name that is found twice, MissingError where nothing is found.
    """
    if format_name not in FORMATS:
        raise InputError(f"format: got {format_name!r}, expected one of {', '.join(FORMATS)}")
    if not source.exists():
        raise MissingError(f"{source} does not exist")
    found: dict[str, FeatureFile] = {}
    for item in FORMATS[format_name](source, dataset):
        if found.setdefault(item.name, item) is not item:
            raise InputError(f"{source}: {item.name!r} is in {found[item.name].path} and in {item.path}")
    if not found:
        raise MissingError(f"{source}: no features of format {format_name} here")
    return found


def _npz_files(folder: Path, dataset: str | None) -> Iterator[FeatureFile]:
    def read(path: Path) -> np.ndarray:
        key = dataset or "features"
        with np.load(path, allow_pickle=False) as stored:
            if key not in stored and len(stored.files) != 1:
                raise ValueError(f"holds {', '.join(stored.files)}, but no {key!r}; name one with --dataset")
            return stored[key if key in stored else stored.files[0]]

    return (FeatureFile(path.stem, path, partial(read, path)) for path in sorted(folder.rglob("*.npz")))


def _npy_files(folder: Path, dataset: str | None) -> Iterator[FeatureFile]:
    return (FeatureFile(path.stem, path, partial(np.load, path)) for path in sorted(folder.rglob("*.npy")))


def _hdf5_datasets(path: Path, dataset: str | None) -> Iterator[FeatureFile]:
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingError("HDF5 needs h5py: pip install 'unloc[hdf5]'") from None

    def read(name: str) -> np.ndarray:
        with h5py.File(path, "r") as file:
            item = file[name]
            if isinstance(item, h5py.Dataset):
                return item[...]
            key = next(iter(item)) if dataset is None and len(item) == 1 else dataset
            if key is None or key not in item:
                raise ValueError(f"group holds {', '.join(item)}; name the dataset with --dataset")
            return item[key][...]

    try:
        with h5py.File(path, "r") as file:
            names = list(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({one_line(error)})") from None
    return (FeatureFile(name, path, partial(read, name)) for name in names)


def _tar_members(source: Path, dataset: str | None) -> Iterator[FeatureFile]:
    def read(path: Path, start: int, size: int) -> np.ndarray:
        with path.open("rb") as handle:
            handle.seek(start)
            return np.load(io.BytesIO(handle.read(size)), allow_pickle=False)

    for path in [source] if source.is_file() else sorted(source.rglob("*.tar")):
        try:
            with tarfile.open(path, "r:") as tar:
                members = [item for item in tar if item.isfile() and item.name.endswith(".npy")]
        except tarfile.TarError as error:
            raise InputError(f"{path}: cannot be read as a plain tar file ({one_line(error)})") from None
        for item in members:
            yield FeatureFile(Path(item.name).stem, path, partial(read, path, item.offset_data, item.size))


FORMATS: dict[str, Callable[[Path, str | None], Iterator[FeatureFile]]] = {
    "moment-detr": _npz_files,
    "univtg": _npz_files,
    "actionformer": _npy_files,
    "opentad": _npy_files,
    "hdf5": _hdf5_datasets,
    "clip-video-encode": _tar_members,
}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What is imported and what is known about it; all of it is in the fingerprint."""

    format: str
    """One of `FORMATS`."""
    origin: str
    """Who made the features with which tower, in words."""
    timing: Timing
    """When each token is shown."""
    dtype: str = "float16"
    """How tokens are stored."""
    dataset: str | None = None
    """Name of the array inside a file."""
    transposed: bool = False
    """Files hold (D, T)."""

    def __post_init__(self) -> None:
        require_token_dtype(self.dtype, "--token-dtype")
        if not self.origin.strip():
            raise InputError("--origin: say who made the features with which tower; it identifies the cache")

    def fingerprint(self, frame_dim: int) -> dict:
        """What identifies the tokens, flat; no `tower.` key, as none of our towers made them."""
        return {
            "origin": self.origin,
            "import.format": self.format,
            "import.dataset": self.dataset,
            "import.frame_dim": frame_dim,
            **{f"timing.{key}": value for key, value in asdict(self.timing).items()},
            "dtype": self.dtype,
            "views": ["centre"],
        }


@dataclass(kw_only=True)
class ImportSummary:
    """What an import did."""

    videos: int = 0
    cached_before: int = 0
    texts: int = 0
    missing: list[str] = field(default_factory=list)
    """Videos of the manifest that the source does not hold."""
    failures: list[dict] = field(default_factory=list)


def import_features(
    out: Path | str,
    source: Path,
    config: ImportConfig,
    *,
    durations: Mapping[str, float] | None = None,
    queries: Iterable[tuple[str, str]] = (),
    texts: Path | None = None,
) -> ImportSummary:
    """Import the features of a source into the cache at a path or URL.

    `durations` names a manifest's videos, with seconds or NaN; None imports all of the source. `texts` is a folder of
    QID.npz or qidQID.npz with `last_hidden_state` (K, D), one for each (QID, text) of `queries`.
    Raises InputError where the timing contradicts the durations, or no file can be read.
    """
    found = list_features(config.format, source, config.dataset)
    durations, files = dict.fromkeys(found, np.nan) if durations is None else durations, {}
    for video_id in durations:  # with or without ActivityNet's `v_`
        names = (video_id, video_id.removeprefix("v_"), f"v_{video_id}")
        if name := next((name for name in names if name in found), None):
            files[video_id] = found[name]
    if not files:
        raise InputError(f"{source}: holds none of the manifest's {len(durations)} videos")
    frame_dim = _check_timing(files, config, durations)
    summary = ImportSummary(missing=[video_id for video_id in durations if video_id not in files])
    with open_for_writing(home_of(out), config.fingerprint(frame_dim), {}) as home:
        cache = Cache(home.folder)
        writer = ShardWriter(cache)
        failed = {  # before, and the file has not changed since
            video_id: failure
            for video_id, failure in failures_of(cache).items()
            if video_id in files and failure.file_identity == _identity(files[video_id].path)
        }
        summary.cached_before = sum(video_id in cache.rows for video_id in files)
        summary.failures = [failure.to_row() for failure in failed.values()]
        known = {*writer.planned, *failed, *cache.rows}
        writer.add([video_id for video_id in files if video_id not in known], SHARD_SIZE)

        def result_of(video_id: str) -> Result:
            return _imported(video_id, files[video_id], config, frame_dim, durations[video_id])

        for result in writer.fill(files.keys(), result_of):
            if isinstance(result, Failure):
                summary.failures.append(result.to_row())
            else:
                summary.videos += 1
        if texts is not None:
            wanted: dict[str, str] = {}
            for qid, text in queries:
                if text not in cache.text_index:
                    wanted.setdefault(text, qid)
            tokens = ((text, to_stored(_text_tokens(texts, qid), config.dtype)) for text, qid in wanted.items())
            summary.texts = write_texts(cache.path, tokens, config.dtype)
    return summary


def _check_timing(files: dict[str, FeatureFile], config: ImportConfig, durations: Mapping[str, float]) -> int:
    """Channels of the features, after the times of a sample of them were compared with the durations."""
    unknown = [video_id for video_id in files if not np.isfinite(durations[video_id])]
    if config.timing.spacing_seconds is None and unknown:
        lacking = f"{len(unknown)} have none, first: {unknown[0]!r}"
        raise InputError(f"timing: tokens spread evenly need the duration of every video in a --manifest ({lacking})")
    ratios, dims = [], []
    for video_id, file in list(files.items())[:200]:
        try:
            num_tokens, dim = file.tokens(transposed=config.transposed).shape
        except VideoError:
            continue
        dims.append(dim)
        covered, duration = config.timing.covered_seconds(num_tokens), durations[video_id]
        if covered is not None and np.isfinite(duration) and duration > 0:
            ratios.append(covered / duration)
    if not dims:
        raise InputError(f"{next(iter(files.values())).path}: none of the first {len(files)} files can be read")
    typical = float(np.median(ratios)) if ratios else 1.0
    if abs(typical - 1) > MAX_DRIFT:
        problem = f"with it the tokens cover {typical:.0%} of the manifest's durations (median of {len(ratios)} videos)"
        raise InputError(f"timing: {problem}; check the clip length, or the stride, window and frame rate")
    return int(np.bincount(dims).argmax())


def _imported(video_id: str, file: FeatureFile, config: ImportConfig, frame_dim: int, duration: float) -> Result:
    identity = _identity(file.path)
    try:
        tokens = file.tokens(transposed=config.transposed)
        if tokens.shape[1] != frame_dim:
            message = f"{file.path} ({file.name}): has {tokens.shape[1]} channels, the others {frame_dim}"
            raise VideoError(message, reason="not_features")
        stored = to_stored(tokens[:, None], config.dtype)
    except VideoError as error:
        return Failure(video_id, error.reason, str(error), **identity)
    except InputError as error:
        return Failure(video_id, "does_not_fit", f"{file.path}: {error}", **identity)
    covered = config.timing.covered_seconds(len(tokens))
    row = {
        "video_id": video_id,
        "file": file.path.name,
        **identity,
        "content_sha256": hashlib.sha256(f"{tokens.shape}".encode() + tokens.tobytes()).hexdigest(),
        "tokens_sha256": token_checksum(stored),
        "duration_seconds": float(duration) if np.isfinite(duration) else covered,
        "times_seconds": [round(float(value), 6) for value in config.timing.times(len(tokens), duration)],
        "decoder": f"imported from {config.format}",
    }
    return VideoTokens(row, stored)


def _identity(path: Path) -> dict:
    stat = path.stat()
    return {"file_bytes": stat.st_size, "file_mtime_ns": stat.st_mtime_ns}


def _text_tokens(folder: Path, qid: str) -> np.ndarray:
    for path in (folder / f"qid{qid}.npz", folder / f"{qid}.npz"):
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                tokens = np.asarray(stored["last_hidden_state"], dtype=np.float32)
            return tokens.reshape(-1, tokens.shape[-1])
    raise MissingError(f"{folder}: has neither qid{qid}.npz nor {qid}.npz for a query of the manifest")
