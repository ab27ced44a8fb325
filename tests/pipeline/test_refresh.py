"""A cached video whose file changes is told; `refresh` replaces its tokens once the new ones are committed."""

import os
import shutil

import numpy as np
import pytest

import pipeline.extract
from pipeline.extract import ExtractOptions, extract
from pipeline.ledger import Ledger
from pipeline.repair import Repair
from tests.pipeline.comparison import files_of
from unloc.cache.merge import merge
from unloc.cache.opening import Home, open_cache
from unloc.cache.shards import ShardWriter
from unloc.cache.writing import audit_cache
from unloc.errors import InputError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.video_file import file_hash

CONFIG = EncodeConfig(fps=5.0)


def options(*refresh, **rest):
    return ExtractOptions(workers=0, shard_size=3, refresh=refresh, **rest)


@pytest.fixture
def folder(video_folder, tmp_path):
    """a to d, and e, another name of d's file."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, name in enumerate("abcd"):
        shutil.copy(video_folder / f"v{number}.mp4", folder / f"{name}.mp4")
    return folder


@pytest.fixture
def files(folder):
    files = files_of(folder)
    return {"e": files["d"], **files}


@pytest.fixture
def cache(files, tmp_path):
    extract(tmp_path / "cache", CONFIG, options(), files, [], [])
    return tmp_path / "cache"


def tokens(cache, video_id):
    return open_cache(cache)[video_id].frames.swapaxes(0, 1)


def expected(file):
    return Encoder(CONFIG).encode_video(file, "x").tokens


def replace_by(file, other):
    before = file.stat()
    file.write_bytes(other.read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def test_a_changed_file_is_told_and_keeps_its_tokens_until_it_is_refreshed(cache, files, video_folder):
    before = tokens(cache, "b")
    replace_by(files["b"], video_folder / "v5.mp4")
    done = extract(cache, CONFIG, options(), files, [], [])
    assert (done.changed, done.cached_before, done.cached_now) == (["b"], 5, 0)
    np.testing.assert_array_equal(tokens(cache, "b"), before)
    done = extract(cache, CONFIG, options("changed"), files, [], [])
    assert (done.changed, done.cached_before, done.cached_now) == ([], 4, 1)
    np.testing.assert_array_equal(tokens(cache, "b"), expected(files["b"]))
    done = extract(cache, CONFIG, options("changed"), files, [], [])
    assert (done.changed, done.cached_before, done.cached_now) == ([], 5, 0)
    assert len(open_cache(cache)) == 4 and not audit_cache(cache).damages


def test_a_file_of_the_same_size_is_compared_by_its_hash_and_only_once(cache, files, monkeypatch):
    raw = bytearray(files["a"].read_bytes())
    os.utime(files["b"], (1, 1))
    raw[len(raw) // 2] ^= 1
    files["a"].write_bytes(raw)
    hashed = []
    monkeypatch.setattr(pipeline.extract, "file_hash", lambda file: hashed.append(file.stem) or file_hash(file))
    for expected_hashes in (["a", "b"], ["a"]):
        assert extract(cache, CONFIG, options(), files, [], []).changed == ["a"]
        assert sorted(hashed) == expected_hashes
        hashed.clear()


def test_a_video_is_refreshed_by_its_id_though_its_file_is_the_same(cache, files):
    assert extract(cache, CONFIG, options("c"), files, [], []).cached_now == 1
    assert len(open_cache(cache).tables) == 3 and len(open_cache(cache)) == 4
    with pytest.raises(InputError, match="--refresh nothing"):
        extract(cache, CONFIG, options("nothing"), files, [], [])


@pytest.mark.parametrize("ids", [("changed",), ("d",), ("e",)])
def test_an_id_that_shares_the_refreshed_file_has_the_new_tokens_too(cache, files, video_folder, ids):
    assert open_cache(cache).aliases == {"d": "e"}
    replace_by(files["d"], video_folder / "v6.mp4")
    done = extract(cache, CONFIG, options(*ids), files, [], [])
    assert (done.cached, done.cached_now) == (5, 1)
    for video_id in "de":
        np.testing.assert_array_equal(tokens(cache, video_id), expected(files["d"]))


def test_an_id_whose_file_is_no_longer_the_shared_one_gets_tokens_of_its_own(cache, files, folder, video_folder):
    shutil.copy2(folder / "d.mp4", folder / "old_d.mp4")
    replace_by(folder / "d.mp4", video_folder / "v6.mp4")
    split = files | {"d": folder / "old_d.mp4"}  # e goes with the file, d keeps the old one
    extract(cache, CONFIG, options("changed"), split, [], [])
    np.testing.assert_array_equal(tokens(cache, "e"), expected(folder / "d.mp4"))
    np.testing.assert_array_equal(tokens(cache, "d"), expected(folder / "old_d.mp4"))


def test_an_id_of_another_manifest_is_not_left_with_tokens_of_another_file(cache, files, video_folder):
    old = tokens(cache, "d")
    replace_by(files["e"], video_folder / "v6.mp4")
    extract(cache, CONFIG, options("changed"), {"e": files["e"]}, [], [])
    assert "d" not in open_cache(cache) and not np.array_equal(tokens(cache, "e"), old)


@pytest.mark.parametrize("place", ["write", "drop_aliases"])
def test_a_refresh_that_is_killed_loses_nothing_and_is_finished_by_the_same_command(
    cache, files, video_folder, monkeypatch, place
):
    before = {video_id: tokens(cache, video_id).copy() for video_id in files}
    replace_by(files["d"], video_folder / "v6.mp4")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ShardWriter if place == "write" else pipeline.extract, place, killed)
        extract(cache, CONFIG, options("changed"), files, [], [])
    for video_id, old in before.items():
        np.testing.assert_array_equal(tokens(cache, video_id), old)
    extract(cache, CONFIG, options("changed"), files, [], [])
    np.testing.assert_array_equal(tokens(cache, "d"), expected(files["d"]))
    assert not audit_cache(cache).damages and not list((cache / "staging").iterdir())


def test_a_new_file_that_fails_leaves_the_old_tokens_and_is_told_and_tried_once(cache, files):
    before = tokens(cache, "b")
    files["b"].write_bytes(b"no video" * 100)
    done = extract(cache, CONFIG, options("changed"), files, [], [])
    assert done.reasons == {"unreadable": 1} and done.cached == 4
    np.testing.assert_array_equal(tokens(cache, "b"), before)
    num_lines = len(Ledger(cache).path.read_text().splitlines())
    assert extract(cache, CONFIG, options("changed"), files, [], []).changed == ["b"]
    assert len(Ledger(cache).path.read_text().splitlines()) == num_lines


def test_replaced_tokens_are_left_out_by_a_merge_and_by_a_repair(cache, files, video_folder, tmp_path):
    replace_by(files["b"], video_folder / "v5.mp4")
    extract(cache, CONFIG, options("changed"), files, [], [])
    new = tokens(cache, "b").copy()
    merge(tmp_path / "merged", [cache])
    assert sum(len(table["videos"]["first_row"]) for table in open_cache(tmp_path / "merged").tables.values()) == 4
    np.testing.assert_array_equal(tokens(tmp_path / "merged", "b"), new)
    damaged = cache / "shards/00000/videos.jsonl"
    damaged.write_bytes(b"x" + damaged.read_bytes()[1:])
    done = Repair(Home(cache), lambda video_id, file: files[video_id], options()).run()
    assert not done.left and not done.after.damages and len(open_cache(cache)) == 4
    np.testing.assert_array_equal(tokens(cache, "b"), new)
