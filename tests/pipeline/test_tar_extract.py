"""Extraction from tar shards: the same bytes as from a folder, and the same guarantees."""

import json
import tarfile

import numpy as np
import pytest

from pipeline.extract import ExtractOptions, extract
from tests.pipeline.comparison import token_bytes
from unloc.annotations.schema import VideoRow, build_manifest
from unloc.cache.opening import open_cache
from unloc.cache.writing import audit_cache
from unloc.inference.encode import EncodeConfig
from unloc.video.locate import index_videos, shard_members
from unloc.video.packing import pack_videos

CONFIG = EncodeConfig(fps=2.0)
OPTIONS = ExtractOptions(workers=0, shard_size=3)


@pytest.fixture
def manifest():
    return build_manifest(name="m", tasks=("mr",), rows=[VideoRow(f"v{n}", "t", 1) for n in range(5)])


@pytest.fixture
def pattern(manifest, video_folder, tmp_path):
    files, _ = index_videos(video_folder).locate(manifest.videos)
    return pack_videos(manifest.videos, files, tmp_path / "shards", shard_bytes=40_000).pattern


def test_a_cache_from_shards_is_that_from_the_folder(manifest, video_folder, pattern, tmp_path):
    extract(tmp_path / "folder", CONFIG, OPTIONS, index_videos(video_folder).locate(manifest.videos)[0], [], [])
    members, missing = index_videos(shards=pattern).locate(manifest.videos)
    assert missing == [] and "{" in pattern
    done = extract(tmp_path / "tar", CONFIG, OPTIONS, members, [], [])
    assert done.cached_now == 5 and token_bytes(tmp_path / "tar") == token_bytes(tmp_path / "folder")
    assert not audit_cache(tmp_path / "tar").damages
    cache = open_cache(tmp_path / "folder")
    for video_id in cache.places:
        row, other = cache.row(video_id), open_cache(tmp_path / "tar").row(video_id)
        for key in ("file", "file_bytes", "content_sha256", "duration_seconds", "times_seconds", "decoder"):
            assert other[key] == row[key]
    again = extract(tmp_path / "tar", CONFIG, OPTIONS, members, [], [])
    assert (again.cached_before, again.cached_now) == (5, 0)
    from_folder = extract(
        tmp_path / "tar", CONFIG, OPTIONS, index_videos(video_folder).locate(manifest.videos)[0], [], []
    )
    assert from_folder.cached_now == 0  # where a video lies is not what it is


@pytest.mark.slow
def test_ray_workers_read_shards_too(manifest, pattern, tmp_path):
    members, _ = index_videos(shards=pattern).locate(manifest.videos)
    extract(tmp_path / "here", CONFIG, OPTIONS, members, [], [])
    extract(tmp_path / "ray", CONFIG, ExtractOptions(workers=1, shard_size=3), members, [], [])
    assert token_bytes(tmp_path / "ray") == token_bytes(tmp_path / "here")


def test_a_broken_member_and_one_that_is_cut_off_cost_themselves_only(manifest, video_folder, tmp_path):
    tar_path = tmp_path / "x.tar"
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 500)
    with tarfile.open(tar_path, "w") as tar:
        for number in range(5):
            tar.add(tmp_path / "bad.mp4" if number == 1 else video_folder / f"v{number}.mp4", f"v{number}.mp4")
    last = list(shard_members(str(tar_path)).values())[-1]
    with tar_path.open("rb+") as handle:
        handle.truncate(last.offset + 1000)
    members, _ = index_videos(shards=str(tar_path)).locate(manifest.videos)
    lenient = ExtractOptions(workers=0, shard_size=3)
    done = extract(tmp_path / "cache", CONFIG, lenient, members, [], [])
    failed = {row["video_id"]: row for row in done.failures}
    assert {video_id: row["reason"] for video_id, row in failed.items()} == {"v1": "unreadable", "v4": "truncated"}
    assert failed["v1"]["message"].startswith(f"{tar_path}/v1.mp4: ") and "/proc/" not in json.dumps(failed)
    cache = open_cache(tmp_path / "cache")
    assert sorted(cache.places) == ["v0", "v2", "v3"]
    whole = extract(tmp_path / "cache", CONFIG, lenient, index_videos(video_folder).locate(manifest.videos)[0], [], [])
    assert whole.cached_now == 2  # their files are others now, so they are tried again
    assert np.isfinite(open_cache(tmp_path / "cache")["v4"].frames).all()
