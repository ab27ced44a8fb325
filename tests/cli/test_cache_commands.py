"""`unloc cache` as a user meets it."""

import re
import shutil
import tarfile

import fsspec
import numpy as np
import pytest

from pipeline.extract import ExtractOptions, extract
from tests.conftest import write_manifest
from unloc.annotations.schema import QueryRow, VideoRow
from unloc.cache.opening import open_cache
from unloc.inference.encode import EncodeConfig

FRAMES = "shards/00000/frames/c/0/0/0"


@pytest.fixture
def cache(tmp_path, video_folder):
    files = {f"v{n}": video_folder / f"v{n}.mp4" for n in range(3)}
    extract(tmp_path / "cache", EncodeConfig(fps=2.0), ExtractOptions(workers=0, shard_size=2), files, [], ["a cat"])
    return tmp_path / "cache"


def flipped(content):
    return content[:5] + bytes([content[5] ^ 1]) + content[6:]


def test_a_whole_cache_is_called_whole(told, cache):
    assert "3 videos and 1 texts" in told("cache", "verify", cache)


def test_bit_rot_is_named_and_mended_from_the_folder_of_videos(told, fails, cache, video_folder):
    file = cache / FRAMES
    before = file.read_bytes()
    file.write_bytes(flipped(before))
    assert "--repair" in fails("cache", "verify", cache, saying="1 places", after_others=True)
    fails("cache", "verify", cache, "--repair", saying="'v0' (v0.mp4)", after_others=True)
    done = told("cache", "verify", cache, "--repair", "--videos", video_folder)
    assert "shards/00000: video v0" in done and "repaired 1 of 1" in done and "all checksums match" in done
    assert file.read_bytes() == before


def test_what_a_stopped_job_has_not_written_is_told(told, cache):
    shutil.rmtree(cache / "shards/00001")
    assert "1 videos are planned" in told("cache", "verify", cache)


def test_a_lost_table_of_texts_fails_the_repair_until_the_manifest_is_given(told, fails, cache, video_folder, tmp_path):
    (cache / "texts/00000/zarr.json").write_text("{}")
    for _ in range(2):
        words = ("cache", "verify", cache, "--repair", "--videos", video_folder)
        assert "--manifest" in fails(*words, saying="texts/00000: ", after_others=True)
    rows = VideoRow("v0", "test", None), QueryRow("v0", "test", "q", "a cat", [[0, 1]])
    manifest = write_manifest(tmp_path / "m.jsonl", *rows)
    done = told(*words, "--manifest", manifest)
    assert "repaired 1 of 1" in done and "any other manifest" in done and "a cat" in open_cache(cache).text_index


def test_a_changed_video_is_told_and_extracted_again_when_asked_for(told, fails, cache, video_folder, tmp_path):
    folder = shutil.copytree(video_folder, tmp_path / "videos")
    shutil.copy(folder / "v5.mp4", folder / "v1.mp4")
    manifest = write_manifest(tmp_path / "m.jsonl", *(VideoRow(f"v{n}", "test", None) for n in range(3)))
    words = ("extract", manifest, "--videos", folder, "--cache", cache, "--workers", 0)
    assert "--refresh changed" in told(*words)
    fails(*words, "--refresh", "v9", saying="--refresh v9", after_others=True)
    done = told(*words, "--refresh", "changed")
    assert "3 of 3 cached (1 now, 2 before)" in done and "--refresh" not in done


def test_bit_rot_is_mended_from_tar_shards(told, fails, cache, video_folder, tmp_path):
    file = cache / FRAMES
    before = file.read_bytes()
    file.write_bytes(flipped(before))
    with tarfile.open(tmp_path / "videos-0.tar", "w") as tar:
        tar.add(video_folder / "v0.mp4", "clips/v0.mp4")
    words = ("cache", "verify", cache, "--repair", "--shards")
    assert "repaired 1 of 1" in told(*words, tmp_path / "videos-*.tar") and file.read_bytes() == before
    fails(*words, "x", "--videos", video_folder, saying="--videos and --shards")


def test_caches_are_merged_and_what_differs_is_told(told, fails, cache, tmp_path, video_folder):
    done = told("cache", "merge", tmp_path / "out", cache)
    assert re.search(r"3 videos added, 0 .*0 failed.*1 texts added", done)
    other = tmp_path / "other"
    options = ExtractOptions(workers=0)
    extract(other, EncodeConfig(fps=4.0), options, {"v5": video_folder / "v5.mp4"}, [], [])
    line = fails("cache", "merge", tmp_path / "out2", cache, other, saying="sampling.fps: ")
    assert "cache 2.0" in line and "other 4.0" in line


def test_features_are_imported_with_stated_times(told, fails, tmp_path):
    (tmp_path / "i3d").mkdir()
    np.save(tmp_path / "i3d" / "x.npy", np.ones((4, 3), np.float32))
    words = ("cache", "import", "actionformer", tmp_path / "i3d", "--cache", tmp_path / "c", "--origin", "I3D")
    fails(*words, "--fps", 30, saying="--stride and --window")
    fails(*words, saying="state no times")
    assert "1 videos imported" in told(*words, "--fps", 10, "--stride", 5, "--window", 10)
    assert open_cache(tmp_path / "c")["x"].times_seconds.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert "origin" in told("cache", "info", tmp_path / "c")


def test_features_that_cannot_be_read_are_named_and_the_command_fails(fails, tmp_path):
    np.savez(tmp_path / "a.npz", features=np.ones((4, 3), np.float32))
    (tmp_path / "b.npz").write_bytes(b"no")
    words = ("cache", "import", "univtg", tmp_path, "--cache", tmp_path / "c", "--origin", "test")
    fails(*words, saying="1 files", after_others=True)
    assert len(open_cache(tmp_path / "c")) == 1


def test_every_verb_works_on_a_cache_in_a_store(told, fails, cache, tmp_path, video_folder):
    url = "memory://verbs/cache"
    assert "3 videos added" in told("cache", "merge", url, cache)
    assert "3 videos and 1 texts" in told("cache", "verify", url)
    store, root = fsspec.core.url_to_fs(url)
    key = f"{root}/{FRAMES}"
    whole = store.cat_file(key)
    store.pipe_file(key, flipped(whole))
    fails("cache", "verify", url, saying=f"{url}: 1 places", after_others=True)
    assert "repaired 1 of 1" in told("cache", "verify", url, "--repair", "--videos", video_folder)
    assert store.cat_file(key) == whole
    described = told("cache", "info", url)
    assert re.search(r"videos cached +3", described) and re.search(r"local copy +/", described)
    assert "3 videos added" in told("cache", "merge", tmp_path / "here", url, cache)
    assert open_cache(tmp_path / "here").places.keys() == open_cache(url).places.keys()


def test_features_are_imported_into_a_store(told, tmp_path):
    (tmp_path / "i3d").mkdir()
    np.save(tmp_path / "i3d" / "x.npy", np.ones((4, 3), np.float32))
    stated = ("--origin", "a test", "--clip-seconds", 1)
    told("cache", "import", "opentad", tmp_path / "i3d", "--cache", "memory://verbs/i3d", *stated)
    assert open_cache("memory://verbs/i3d")["x"].times_seconds.tolist() == [0.5, 1.5, 2.5, 3.5]
