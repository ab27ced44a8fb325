"""Tokens of any video file, decoded once: they are kept in a cache, by tower, sampling and the file's content."""

import logging
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np

from unloc.cache.dtype import from_stored
from unloc.cache.opening import Home, home_for, open_cache, open_for_writing
from unloc.cache.reading import Cache, CachedVideo
from unloc.cache.shards import write_alone
from unloc.cache.writing import fingerprint_hash
from unloc.callbacks import OnProgress
from unloc.errors import CacheError, one_line
from unloc.files import disk_full_errors, file_identity, file_lock
from unloc.inference.encode import Encoder
from unloc.video.video_file import VideoFile, file_hash, on_disk

logger = logging.getLogger(__name__)
PACKAGES = ("unloc", "torch", "torchvision", "open_clip_torch", "zarr", "av", "numpy")


def default_folder() -> Path:
    """Where a cache of own videos is kept for each tower and sampling: $UNLOC_TOKENS, else ~/.cache/unloc/tokens."""
    return Path(os.environ.get("UNLOC_TOKENS") or Path.home() / ".cache" / "unloc" / "tokens")


class FileTokens:
    """Frame tokens of files, from a cache or from the encoder, which then adds them to the cache. `place`: a cache,
    whoever made it; a sibling of it where it has another fingerprint. None: in `default_folder`.
    """

    def __init__(self, encoder: Encoder, place: Path | str | None = None) -> None:
        self.encoder, self.fingerprint = encoder, encoder.fingerprint
        own = default_folder() / fingerprint_hash(self.fingerprint)
        self.home = Home(own) if place is None else home_for(place, self.fingerprint)
        self.cache = self._opened()

    def _opened(self) -> Cache | None:
        return open_cache(str(self.home)) if (self.home.folder / "zarr.json").is_file() else None

    def find(self, file: VideoFile) -> CachedVideo | None:
        """The tokens of a file that are cached: of the same name, size and time of change, or of the same content."""
        identity, digest = file_identity(file), None
        for video_id in self.cache.places if self.cache is not None else ():
            if self.cache.column("file_bytes", video_id) != identity.get("file_bytes", -1):
                continue
            row = self.cache.row(video_id)
            is_same = row["file"] == file.name and row["file_mtime_ns"] == identity["file_mtime_ns"] != 0
            digest = digest or (None if is_same else file_hash(file))
            if is_same or row["content_sha256"] == digest:
                return self.cache[video_id]
        return None

    def of(self, file: VideoFile, on_progress: OnProgress = lambda done, total: None) -> CachedVideo:
        """The tokens of a file; `on_progress` gets frames encoded and all. Raises VideoError."""
        found = self.find(file)
        if found is not None:
            return found
        with on_disk(file) as path:
            video = self.encoder.encode_video(path, source=file, on_progress=on_progress)
        lock = self.home.folder.with_name(f".{self.home.folder.name}.predict")  # other processes are waited for
        opened = open_for_writing(self.home, self.fingerprint, {name: version(name) for name in PACKAGES})
        try:
            with disk_full_errors(self.home), file_lock(lock, wait=True), opened as cache:
                write_alone(cache.path, video, cache.dtype)
        except (CacheError, OSError) as error:  # another job writes it, or the disk is full: the tokens are still here
            logger.warning("%s: the tokens of %s are not kept (%s)", self.home, file, one_line(error))
            frames = from_stored(video.tokens, self.encoder.config.dtype).swapaxes(0, 1)
            return CachedVideo(frames, np.asarray(video.meta["times_seconds"]), lambda: video.meta)
        video_id = video.video_id
        del video  # from here on they are read from the file
        self.cache = self._opened()
        return self.cache[video_id]
