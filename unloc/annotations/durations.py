"""How long the videos of a manifest are: as it states, as a cache knows, or as measured from the files.

Nothing guesses a length: what needs one calls `required_durations`, which refuses a manifest with unknown durations.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from unloc.annotations.schema import Manifest
from unloc.cache.reading import Cache
from unloc.errors import InputError, VideoError
from unloc.video.facts import scan


def stated_durations(manifest: Manifest) -> dict[str, float]:
    """Seconds of every video as the manifest states them; NaN where it does not."""
    return manifest.videos.drop_duplicates("video_id").set_index("video_id")["duration_seconds"].to_dict()


def required_durations(manifest: Manifest) -> dict[str, float]:
    """Seconds of every video. Raises InputError where one is unknown, with the ways to find it out."""
    durations, unknown = stated_durations(manifest), manifest.videos["video_id"][~_known(manifest)].unique()
    if len(unknown):
        raise InputError(
            f"manifest {manifest.name!r} states no duration for {len(unknown)} of {len(durations)} videos (first: "
            f"{unknown[0]}), which metrics and floors need: give --cache with a cache of these videos, or measure "
            "them: unloc data check MANIFEST --videos DIR --out NEW"
        )
    return durations


def cached_durations(manifest: Manifest, cache: Cache) -> Manifest:
    """The manifest with the measured durations of cached videos where it states none."""
    return _filled(manifest, cache.durations_of(manifest.videos["video_id"][~_known(manifest)].unique().tolist()))


def measured_durations(
    manifest: Manifest, files: Mapping[str, Path], on_progress: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Manifest, int, dict[str, str]]:
    """The manifest with durations measured from the files where it states none, their number, and failures by video.

    As in `unloc extract`, a video lasts until its last frame is no longer shown.
    """
    unknown = manifest.videos["video_id"][manifest.videos["duration_seconds"].isna()]
    measured, failed, to_measure = {}, {}, [video_id for video_id in unknown.unique() if video_id in files]
    for done, video_id in enumerate(to_measure, start=1):
        try:
            measured[video_id] = scan(files[video_id]).end_seconds
        except VideoError as error:
            failed[video_id] = str(error)
        on_progress(done, len(to_measure))
    return _filled(manifest, measured), len(measured), failed


def _known(manifest: Manifest) -> pd.Series:
    return manifest.videos["duration_seconds"].between(0, math.inf, inclusive="neither")


def _filled(manifest: Manifest, seconds: Mapping[str, float]) -> Manifest:
    found = manifest.videos["video_id"].map(seconds).astype(float)
    stated = manifest.videos["duration_seconds"].where(_known(manifest) | found.isna(), found)
    return replace(manifest, videos=manifest.videos.assign(duration_seconds=stated))
