import json

import numpy as np
import pytest
import zarr

from unloc.data.cache import open_cache
from unloc.data.cache_writer import VideoTokens, create_or_check, token_checksum, write_text_shard, write_video_shard
from unloc.errors import CacheError, FingerprintError, MissingError

FINGERPRINT = {"tower.name": "toy", "sampling.fps": 2.0}


def video(video_id, length, views=1, seed=0):
    tokens = np.random.default_rng(seed).normal(size=(length, views, 8)).astype(np.float16)
    meta = {
        "video_id": video_id,
        "times_seconds": [0.5 * step for step in range(length)],
        "duration_seconds": length / 2,
    }
    return VideoTokens(meta | {"tokens_sha256": token_checksum(tokens)}, tokens)


@pytest.fixture
def cache_path(tmp_path):
    path = tmp_path / "cache"
    create_or_check(path, FINGERPRINT, {"unloc": "0"})
    return path


@pytest.mark.parametrize("lengths", [(7, 40, 1, 33), (16, 16, 16)])
@pytest.mark.parametrize("views", [1, 3])
def test_what_is_written_is_read_and_plain_zarr_reads_the_same(cache_path, lengths, views):
    videos = [video(f"v{n}", length, views, seed=n) for n, length in enumerate(lengths)]
    write_video_shard(cache_path, "00000", videos, [], "float16")
    cache = open_cache(cache_path)
    plain = zarr.open_group(str(cache_path), mode="r")["shards/00000/frames"]
    for item in videos:
        read = cache[item.meta["video_id"]]
        assert read.frames.shape == (views, len(item.tokens), 8)
        np.testing.assert_array_equal(np.moveaxis(read.frames, 0, 1), item.tokens)
        first = read.meta["first_row"]
        np.testing.assert_array_equal(plain[first : first + len(item.tokens)], item.tokens)
        assert read.times_seconds.tolist() == item.meta["times_seconds"]


def test_a_video_of_zeros_is_stored_like_any_other(cache_path):
    zeros = VideoTokens(video("v0", 40).meta, np.zeros((40, 1, 8), np.float16))
    write_video_shard(cache_path, "00000", [zeros, video("v1", 5)], [], "float16")
    cache = open_cache(cache_path)
    assert not cache["v0"].frames.any() and cache["v1"].frames.any()


def test_texts_come_back_with_all_their_tokens_from_every_shard(cache_path):
    texts = [(f"text {n}", np.random.default_rng(n).normal(size=(3 + n, 8)).astype(np.float16)) for n in range(4)]
    write_text_shard(cache_path, texts[:2], "float16")
    write_text_shard(cache_path, texts[2:], "float16")
    cache = open_cache(cache_path)
    for (_, expected), read in zip(texts, cache.texts([text for text, _ in texts]), strict=True):
        np.testing.assert_array_equal(read, expected)
    with pytest.raises(MissingError, match="nothing of the sort"):
        cache.texts(["text 0", "nothing of the sort"])


def test_another_fingerprint_is_refused_naming_the_difference(cache_path):
    with pytest.raises(FingerprintError, match=r"sampling.fps: cache 2.0, now 4.0"):
        create_or_check(cache_path, FINGERPRINT | {"sampling.fps": 4.0}, {})
    create_or_check(cache_path, FINGERPRINT, {"unloc": "newer"})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("not a cache")
    with pytest.raises(CacheError, match="neither empty nor a cache"):
        create_or_check(tmp_path, FINGERPRINT, {})


def test_a_shard_without_its_table_is_not_there(cache_path):
    write_video_shard(cache_path, "00000", [video("v0", 5)], [], "float16")
    (cache_path / "shards" / "00000" / "zarr.json").unlink()
    assert "v0" not in open_cache(cache_path)


def test_a_shortened_shard_and_a_damaged_index_are_errors(cache_path):
    write_video_shard(cache_path, "00000", [video("v0", 40)], [], "float16")
    file = cache_path / "shards/00000/frames/c/0/0/0"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(CacheError, match="expected"):
        open_cache(cache_path)["v0"]
    file.write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    with pytest.raises(CacheError, match="index is damaged"):
        open_cache(cache_path)["v0"]


def test_a_cache_of_another_format_is_refused(cache_path):
    stated = json.loads((cache_path / "zarr.json").read_text())
    stated["attributes"]["unloc_cache"] = 99
    (cache_path / "zarr.json").write_text(json.dumps(stated))
    with pytest.raises(CacheError, match="format 99"):
        open_cache(cache_path)
    with pytest.raises(MissingError, match="does not exist"):
        open_cache(cache_path / "elsewhere")


def test_a_shard_in_which_all_videos_failed_is_still_settled(cache_path):
    write_video_shard(cache_path, "00000", [], [{"video_id": "v0", "reason": "truncated"}], "float16")
    cache = open_cache(cache_path)
    assert cache.tables["00000"]["failed"][0]["reason"] == "truncated" and len(cache) == 0
