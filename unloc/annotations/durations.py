"""How long the videos of a manifest are: as it states, or as a cache or the files themselves tell.

No score guesses: what needs a length asks `required_durations`, which refuses a manifest that does not know one.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.cache.reading import Cache
from unloc.errors import InputError, VideoError
from unloc.video.facts import scan


def is_known(durations: pd.Series) -> pd.Series:
    """True where a duration is a positive number of seconds."""
    return np.isfinite(durations) & (durations > 0)


def unknown_durations(manifest: Manifest) -> list[str]:
    """Ids of the videos whose length the manifest does not state."""
    return manifest.videos["video_id"][~is_known(manifest.videos["duration_seconds"])].drop_duplicates().tolist()


def stated_durations(manifest: Manifest) -> dict[str, float]:
    """What the manifest says of every video in seconds; NaN where it says nothing."""
    videos = manifest.videos.drop_duplicates("video_id")
    return dict(zip(videos["video_id"].tolist(), videos["duration_seconds"].tolist(), strict=True))


def required_durations(manifest: Manifest) -> dict[str, float]:
    """Seconds of every video. Raises InputError where one is unknown, naming the ways to find it out."""
    unknown, durations = unknown_durations(manifest), stated_durations(manifest)
    if unknown:
        raise InputError(
            f"manifest {manifest.name!r} states no duration for {len(unknown)} of {len(durations)} videos (first: "
            f"{unknown[0]}), which metrics and floors need: give --cache with a cache of these videos, or measure "
            "them: unloc data check MANIFEST --videos DIR --out NEW"
        )
    return durations


def cached_durations(manifest: Manifest, cache: Cache) -> Manifest:
    """The manifest with the measured duration of cached videos wherever it states none."""
    return _filled(manifest, cache.durations_of(unknown_durations(manifest)))


def measured_durations(manifest: Manifest, files: Mapping[str, Path]) -> tuple[Manifest, int, dict[str, str]]:
    """The manifest with durations measured from the files wherever it states none, how many, and why others were not.

    What is measured is what `unloc extract` measures: until when the last frame is shown.
    """
    measured, failed = {}, {}
    for video_id in manifest.videos["video_id"][manifest.videos["duration_seconds"].isna()]:
        if video_id in files and video_id not in measured:
            try:
                measured[video_id] = scan(files[video_id]).end_seconds
            except VideoError as error:
                failed[video_id] = str(error)
    return _filled(manifest, measured), len(measured), failed


def _filled(manifest: Manifest, seconds: Mapping[str, float]) -> Manifest:
    videos = manifest.videos
    found = videos["video_id"].map(seconds).astype(float)
    stated = videos["duration_seconds"].where(is_known(videos["duration_seconds"]) | found.isna(), found)
    return replace(manifest, videos=videos.assign(duration_seconds=stated))
