"""Caches of one fingerprint become one."""

import shutil

import numpy as np
import pytest

from pipeline.extract import ExtractOptions, extract
from unloc.cache.merge import merge
from unloc.cache.metadata import group_metadata
from unloc.cache.opening import open_cache
from unloc.cache.shards import ShardWriter
from unloc.cache.writing import audit_cache
from unloc.errors import CacheError, FingerprintError, InputError
from unloc.inference.encode import EncodeConfig

CONFIG = EncodeConfig(fps=5.0)
IN_PROCESS = ExtractOptions(workers=0, shard_size=3)


def files_of(folder, *numbers):
    return {f"v{n}": folder / f"v{n}.mp4" for n in numbers}


@pytest.fixture(scope="module")
def parts(tmp_path_factory, video_folder):
    """Two caches that share v2, one text each and one in common; `bad` failed in the second."""
    folder = tmp_path_factory.mktemp("parts")
    bad = folder / "bad.mp4"
    bad.write_bytes(b"no video" * 99)
    extract(folder / "a", CONFIG, IN_PROCESS, files_of(video_folder, 0, 1, 2), [], ["a cat", "both"])
    extract(folder / "b", CONFIG, IN_PROCESS, files_of(video_folder, 3, 2) | {"bad": bad}, [], ["both", "a dog"])
    extract(folder / "b", CONFIG, ExtractOptions(workers=0), {"w2": video_folder / "v2.mp4"}, [], [])
    return folder


def test_all_videos_texts_failures_and_aliases_are_there_with_equal_tokens(parts, tmp_path):
    done = merge(tmp_path / "out", [parts / "a", parts / "b"], shard_size=3)
    assert (done.videos, done.cached_before, len(done.failures), done.texts) == (4, 0, 1, 3)
    joined = open_cache(tmp_path / "out")
    assert list(joined.places) == ["v0", "v1", "v2", "v3"] and not audit_cache(tmp_path / "out").damages
    for part in (open_cache(parts / "a"), open_cache(parts / "b")):
        assert joined.fingerprint == part.fingerprint
        for video_id in (*part.places, *part.aliases):
            np.testing.assert_array_equal(joined[video_id].frames, part[video_id].frames)
            np.testing.assert_array_equal(joined[video_id].times_seconds, part[video_id].times_seconds)
        for text in part.text_index:
            np.testing.assert_array_equal(joined.texts([text])[0], part.texts([text])[0])
    assert joined.tables["00001"]["failed"][0]["video_id"] == "bad"


def test_merging_again_adds_nothing(parts, tmp_path):
    merge(tmp_path / "out", [parts / "a", parts / "b"])
    again = merge(tmp_path / "out", [parts / "b", parts / "a"])
    assert (again.videos, again.cached_before, len(again.failures), again.texts) == (0, 4, 0, 0)


def test_a_merge_that_was_killed_between_shards_is_finished_by_the_next(parts, tmp_path, monkeypatch):
    write, written = ShardWriter.write, []

    def write_once(*arguments):
        if written:
            raise KeyboardInterrupt
        written.append(write(*arguments))

    monkeypatch.setattr(ShardWriter, "write", write_once)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "out", [parts / "a", parts / "b"], shard_size=2)
    monkeypatch.undo()
    merge(tmp_path / "out", [parts / "a", parts / "b"], shard_size=2)
    merge(tmp_path / "clean", [parts / "a", parts / "b"], shard_size=2)
    for shard in ("00000", "00001", "00002"):
        table = f"shards/{shard}/zarr.json"
        assert (tmp_path / "out" / table).read_bytes() == (tmp_path / "clean" / table).read_bytes()


def test_an_extraction_adds_to_a_merged_cache_and_a_failure_gives_way_to_tokens(parts, tmp_path, video_folder):
    merge(tmp_path / "out", [parts / "b"])
    merge(tmp_path / "out", [parts / "a"])
    files = files_of(video_folder, 0, 1, 2, 3, 4) | {"bad": video_folder / "v5.mp4"}
    summary = extract(tmp_path / "out", CONFIG, IN_PROCESS, files, [], ["new"])
    assert (summary.cached_before, summary.cached_now, summary.texts_now) == (4, 2, 1)
    assert len(open_cache(tmp_path / "out")) == 6 and not audit_cache(tmp_path / "out").damages


def test_another_fingerprint_is_refused_naming_every_difference(parts, tmp_path, video_folder):
    extract(tmp_path / "c", EncodeConfig(fps=1.0, dtype="float32"), IN_PROCESS, files_of(video_folder, 5), [], [])
    with pytest.raises(FingerprintError) as refusal:
        merge(tmp_path / "out", [parts / "a", tmp_path / "c"])
    assert f"dtype: {parts / 'a'} 'float16', {tmp_path / 'c'} 'float32'" in str(refusal.value)
    assert f"sampling.fps: {parts / 'a'} 5.0, {tmp_path / 'c'} 1.0" in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_two_versions_of_one_video_and_a_damaged_source_are_refused(parts, tmp_path, video_folder):
    extract(tmp_path / "c", CONFIG, IN_PROCESS, {"v0": video_folder / "v6.mp4"}, [], [])
    with pytest.raises(CacheError, match=r"'v0': .*different tokens"):
        merge(tmp_path / "out", [parts / "a", tmp_path / "c"])
    copy = shutil.copytree(parts / "a", tmp_path / "copy")
    file = copy / "shards/00000/frames/c/0/0/0"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(CacheError, match="--repair"):
        merge(tmp_path / "out", [copy, parts / "b"])


def test_a_cache_is_not_merged_into_itself(parts):
    with pytest.raises(InputError, match="caches to read"):
        merge(parts / "a", [parts / "b", parts / "a"])


def test_the_metadata_of_a_merged_cache_is_that_of_the_sources(parts, tmp_path):
    merge(tmp_path / "out", [parts / "a"])
    one = open_cache(parts / "a")
    stated = group_metadata({"unloc_cache": 3, "fingerprint": one.fingerprint, "versions": one.versions})
    assert (tmp_path / "out" / "zarr.json").read_bytes() == stated
