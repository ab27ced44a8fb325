"""Feature files of other projects (docs/cache.md) imported into a cache, with times that the user states."""

import hashlib
import io
import math
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from unloc.cache.dtype import to_stored
from unloc.cache.opening import Home, open_for_writing
from unloc.cache.shards import Added, Failure, Result, ShardWriter, failures_of
from unloc.cache.writing import VideoTokens, token_checksum, write_texts
from unloc.callbacks import OnProgress
from unloc.errors import InputError, MissingError, VideoError, one_line
from unloc.files import file_identity

SHARD_SIZE = 512
MAX_DRIFT = 0.1  # typical share by which tokens may cover more or less than the given durations


@dataclass(frozen=True)
class FeatureFile:
    """One video's tokens in a file of another project."""

    name: str  # what the file calls the video
    path: Path  # the file, or the container that holds it
    read: Callable[[], np.ndarray]  # reads the stored array

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
    """Features by the name a source gives each video, in order. Raises InputError; MissingError: there are none."""
    if not source.exists():
        raise MissingError(f"{source} does not exist")
    found: dict[str, FeatureFile] = {}
    for item in FORMATS[format_name](source, dataset):
        if found.setdefault(item.name, item) is not item:
            raise InputError(f"{source}: {item.name!r} is in {found[item.name].path} and in {item.path}")
    if not found:
        raise MissingError(f"{source}: no features of format {format_name} here")
    return found


def _chosen(arrays: Mapping[str, np.ndarray], dataset: str | None) -> np.ndarray:
    """The only array, else the one that --dataset names, or `features`."""
    name = next(iter(arrays)) if len(arrays) == 1 else dataset or "features"
    if name not in arrays:
        raise ValueError(f"holds {', '.join(arrays)}, but no {name!r}; name one with --dataset")
    return arrays[name]


def _numpy_files(suffix: str, folder: Path, dataset: str | None) -> Iterator[FeatureFile]:
    def read(path: Path) -> np.ndarray:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            return _chosen(stored, dataset)

    return (FeatureFile(path.stem, path, partial(read, path)) for path in sorted(folder.rglob(f"*{suffix}")))


def _hdf5_datasets(path: Path, dataset: str | None) -> Iterator[FeatureFile]:
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingError("HDF5 needs h5py: pip install 'unloc[hdf5]'") from None

    def read(name: str) -> np.ndarray:
        with h5py.File(path, "r") as file:
            item = file[name]
            return (item if isinstance(item, h5py.Dataset) else _chosen(item, dataset))[...]

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
    "moment-detr": partial(_numpy_files, ".npz"),
    "univtg": partial(_numpy_files, ".npz"),
    "actionformer": partial(_numpy_files, ".npy"),
    "opentad": partial(_numpy_files, ".npy"),
    "hdf5": _hdf5_datasets,
    "clip-video-encode": _tar_members,
}


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What is imported and what is known about it; all of it but `transposed` is in the fingerprint."""

    format: str  # one of `FORMATS`
    origin: str  # who made the features with which tower, in words
    spacing_seconds: float | None = None  # from one token to the next; None: T tokens share the duration evenly
    span_seconds: float = 0.0  # what one token looks at, shown at its middle; 0: a single frame
    dtype: str = "float16"  # how tokens are stored
    dataset: str | None = None  # name of the array inside a file
    transposed: bool = False  # files hold (D, T)

    def __post_init__(self) -> None:
        if not self.origin.strip():
            raise InputError("--origin: say who made the features with which tower; it identifies the cache")

    def covered_seconds(self, num_tokens: int) -> float:
        """Seconds of video that T tokens look at; NaN where they share the video's duration."""
        spacing = math.nan if self.spacing_seconds is None else self.spacing_seconds
        return (num_tokens - 1) * spacing + (self.span_seconds or spacing)

    def fingerprint(self, frame_dim: int) -> dict:
        """What identifies the tokens, flat; no `tower.` key, as none of our towers made them."""
        return {
            "origin": self.origin,
            "import.format": self.format,
            "import.dataset": self.dataset,
            "import.frame_dim": frame_dim,
            "timing.spacing_seconds": self.spacing_seconds,
            "timing.span_seconds": self.span_seconds,
            "dtype": self.dtype,
            "views": ["centre"],
        }


def import_features(
    out: Path | str,
    source: Path,
    config: ImportConfig,
    *,
    durations: Mapping[str, float] | None = None,
    queries: Iterable[tuple[str, str]] = (),
    texts: Path | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Added:
    """Import the features of a source into the cache at a path or URL.

    `durations`: seconds or NaN of a manifest's videos; None imports all of the source. `texts`: a folder of QID.npz or
    qidQID.npz with `last_hidden_state` (K, D) for `queries`. Raises InputError where the timing contradicts them.
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
    results = {
        video_id: partial(_imported, video_id, file, config, frame_dim, durations[video_id])
        for video_id, file in files.items()
    }
    with open_for_writing(Home(out), config.fingerprint(frame_dim), {}) as cache:
        failed = {  # before, and the file has not changed since
            video_id: failure.to_row()
            for video_id, failure in failures_of(cache).items()
            if video_id in files and failure.file_identity == file_identity(files[video_id].path)
        }
        new = [video_id for video_id in files if video_id not in failed]
        added = ShardWriter(cache).fill(new, results, SHARD_SIZE, on_progress)
        added.cached_before = sum(video_id in cache.places for video_id in files)
        added.failures = [*failed.values(), *added.failures]
        added.missing = [video_id for video_id in durations if video_id not in files]
        if texts is not None:
            qids: dict[str, str] = {}
            for qid, text in queries:
                qids.setdefault(text, qid)
            new_texts = ((text, qid) for text, qid in qids.items() if text not in cache.text_index)
            tokens = ((text, to_stored(_text_tokens(texts, qid), config.dtype)) for text, qid in new_texts)
            added.texts = write_texts(cache.path, tokens, config.dtype)
    return added


def _check_timing(files: dict[str, FeatureFile], config: ImportConfig, durations: Mapping[str, float]) -> int:
    """Channels of the features, after the times of a sample of them were compared with the durations."""
    unknown = [video_id for video_id in files if not np.isfinite(durations[video_id])]
    if config.spacing_seconds is None and unknown:
        lacking = f"{len(unknown)} have none, first: {unknown[0]!r}"
        raise InputError(f"timing: tokens spread evenly need the duration of every video in a --manifest ({lacking})")
    ratios, dims = [], []
    for video_id, file in list(files.items())[:200]:
        with suppress(VideoError):
            num_tokens, dim = file.tokens(transposed=config.transposed).shape
            dims.append(dim)
            ratios.append(config.covered_seconds(num_tokens) / (durations[video_id] or np.nan))
    if not dims:
        raise InputError(f"{next(iter(files.values())).path}: none of the first {len(files)} files can be read")
    ratios = [ratio for ratio in ratios if np.isfinite(ratio)]
    typical = float(np.median(ratios)) if ratios else 1.0
    if abs(typical - 1) > MAX_DRIFT:
        problem = f"with it the tokens cover {typical:.0%} of the manifest's durations (median of {len(ratios)} videos)"
        raise InputError(f"timing: {problem}; check the clip length, or the stride, window and frame rate")
    return int(np.bincount(dims).argmax())


def _imported(video_id: str, file: FeatureFile, config: ImportConfig, frame_dim: int, duration: float) -> Result:
    identity = file_identity(file.path)
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
    if config.spacing_seconds is None:
        times = (np.arange(len(tokens)) + 0.5) * duration / len(tokens)
    else:
        times = config.span_seconds / 2 + np.arange(len(tokens)) * config.spacing_seconds
    row = {
        "video_id": video_id,
        "file": file.path.name,
        **identity,
        "content_sha256": hashlib.sha256(f"{tokens.shape}".encode() + tokens.tobytes()).hexdigest(),
        "tokens_sha256": token_checksum(stored),
        "duration_seconds": float(duration) if np.isfinite(duration) else config.covered_seconds(len(tokens)),
        "times_seconds": [round(value, 6) for value in times.tolist()],
        "decoder": f"imported from {config.format}",
    }
    return VideoTokens(row, stored)


def _text_tokens(folder: Path, qid: str) -> np.ndarray:
    path = next((path for path in (folder / f"qid{qid}.npz", folder / f"{qid}.npz") if path.is_file()), None)
    if path is None:
        raise MissingError(f"{folder}: has neither qid{qid}.npz nor {qid}.npz for a query of the manifest")
    with np.load(path, allow_pickle=False) as stored:
        tokens = np.asarray(stored["last_hidden_state"], dtype=np.float32)
    return tokens.reshape(-1, tokens.shape[-1])
