"""Other projects' feature files: which videos they hold, their tokens, and when each token is shown.

| format             | what it reads                                                                  |
|--------------------|--------------------------------------------------------------------------------|
| moment-detr, univtg | a folder of VIDEO.npz with `features` (T, D), one token per clip              |
| actionformer, opentad | a folder of VIDEO.npy (T, D), one token per window of frames                 |
| hdf5               | one HDF5 file, a dataset (or group with one) per video, (T, D)                   |
| clip-video-encode  | a folder of WebDataset tars with KEY.npy (T, D), one token per frame             |

None of them states times; `Timing` is what the user knows about them.
"""

import hashlib
import io
import math
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from unloc.errors import InputError, MissingError, VideoError


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """When a token is shown: token k at offset_seconds + k * spacing_seconds, or evenly over the video."""

    spacing_seconds: float | None = None
    """Distance of neighbouring tokens; None: T tokens share the video's duration evenly."""
    span_seconds: float = 0.0
    """What one token looks at; it is shown at the middle of that. 0: a single frame."""

    def __post_init__(self) -> None:
        for name in ("spacing_seconds", "span_seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0 and (value or name == "span_seconds")):
                raise InputError(f"timing: {name} is {value}, expected a positive number of seconds")

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

    def to_dict(self) -> dict:
        """For the fingerprint."""
        return asdict(self)


@dataclass(frozen=True)
class FeatureSource:
    """One video's tokens in a foreign file."""

    name: str
    """How the file calls the video."""
    path: Path
    """The file, or the container that holds it."""
    read: Callable[[], np.ndarray]
    """The stored array."""


def list_features(format_name: str, source: Path, dataset: str | None = None) -> dict[str, FeatureSource]:
    """What a source holds, by the name it gives each video, in order. `dataset`: name inside a group (HDF5).

    Raises InputError for an unknown format and for a name that stands in two places, MissingError where the source or
    anything of its kind in it is absent.
    """
    if format_name not in FORMATS:
        raise InputError(f"format: got {format_name!r}, expected one of {', '.join(FORMATS)}")
    if not source.exists():
        raise MissingError(f"{source} does not exist")
    found: dict[str, FeatureSource] = {}
    for item in FORMATS[format_name](source, dataset):
        if found.setdefault(item.name, item) is not item:
            raise InputError(f"{source}: {item.name!r} stands in {found[item.name].path} and in {item.path}")
    if not found:
        raise MissingError(f"{source}: no features of format {format_name} here")
    return found


def _npz_files(folder: Path, dataset: str | None) -> Iterator[FeatureSource]:
    for path in sorted(folder.rglob("*.npz")):
        yield FeatureSource(path.stem, path, lambda path=path: _npz_array(path, dataset or "features"))


def _npz_array(path: Path, key: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as stored:
        if key in stored:
            return stored[key]
        if len(stored.files) == 1:
            return stored[stored.files[0]]
        raise ValueError(f"holds {', '.join(stored.files)}, but no {key!r}; name one with --dataset")


def _npy_files(folder: Path, dataset: str | None) -> Iterator[FeatureSource]:
    for path in sorted(folder.rglob("*.npy")):
        yield FeatureSource(path.stem, path, lambda path=path: np.load(path, allow_pickle=False))


def _hdf5_datasets(path: Path, dataset: str | None) -> Iterator[FeatureSource]:
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            names = list(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({_on_one_line(error)})") from None
    for name in names:
        yield FeatureSource(name, path, lambda name=name: _hdf5_array(path, name, dataset))


def _hdf5_array(path: Path, name: str, dataset: str | None) -> np.ndarray:
    h5py = _h5py()
    with h5py.File(path, "r") as file:
        item = file[name]
        if isinstance(item, h5py.Dataset):
            return item[...]
        if dataset is None and len(item) == 1:
            dataset = next(iter(item))
        if dataset is None or dataset not in item:
            raise ValueError(f"group holds {', '.join(item)}; name the dataset with --dataset")
        return item[dataset][...]


def _h5py() -> object:
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingError("HDF5 needs h5py: pip install 'unloc[hdf5]'") from None
    return h5py


def _tar_members(source: Path, dataset: str | None) -> Iterator[FeatureSource]:
    for path in [source] if source.is_file() else sorted(source.rglob("*.tar")):
        try:
            with tarfile.open(path, "r:") as tar:
                members = [item for item in tar if item.isfile() and item.name.endswith(".npy")]
        except tarfile.TarError as error:
            raise InputError(f"{path}: cannot be read as a plain tar file ({_on_one_line(error)})") from None
        for item in members:
            start, size = item.offset_data, item.size
            name = Path(item.name).name.removesuffix(".npy")
            yield FeatureSource(name, path, lambda path=path, start=start, size=size: _npy_at(path, start, size))


def _npy_at(path: Path, start: int, size: int) -> np.ndarray:
    with path.open("rb") as handle:
        handle.seek(start)
        return np.load(io.BytesIO(handle.read(size)), allow_pickle=False)


FORMATS: dict[str, Callable[[Path, str | None], Iterator[FeatureSource]]] = {
    "moment-detr": _npz_files,
    "univtg": _npz_files,
    "actionformer": _npy_files,
    "opentad": _npy_files,
    "hdf5": _hdf5_datasets,
    "clip-video-encode": _tar_members,
}


def read_tokens(source: FeatureSource, *, transposed: bool) -> np.ndarray:
    """(T, D) float32; axes of length 1 beyond the two are dropped, `transposed` turns (D, T).

    Raises VideoError with a reason where the file is broken or holds something else.
    """
    try:
        array = np.asarray(source.read())
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        words = f"cannot be read: {_on_one_line(error)}"
        raise VideoError(f"{source.path} ({source.name}): {words}", reason="unreadable") from None
    where = f"{source.path} ({source.name})"
    if array.dtype.kind not in "fiu":
        raise VideoError(f"{where}: holds {array.dtype}, expected numbers", reason="not_features")
    shape = array.shape
    if array.ndim > 2:
        array = array.reshape([length for length in shape if length != 1] or [1])
    if array.ndim != 2 or 0 in array.shape:
        raise VideoError(f"{where}: has shape {shape}, expected (tokens, channels)", reason="not_features")
    return np.ascontiguousarray((array.T if transposed else array).astype(np.float32))


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def tokens_hash(tokens: np.ndarray) -> str:
    """sha256 of an array's shape and float32 bytes: what the imported file said."""
    return hashlib.sha256(f"{tokens.shape}".encode() + tokens.tobytes()).hexdigest()
