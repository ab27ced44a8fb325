import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from unloc.cache.dtype import from_stored, to_stored
from unloc.cache.metadata import group_metadata
from unloc.cache.opening import Home, open_cache, open_for_writing
from unloc.cache.writing import (
    VideoTokens,
    create_or_check,
    token_checksum,
    write_texts,
    write_video_shard,
)
from unloc.errors import CacheError, FingerprintError, InputError, MissingError

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
    write_texts(cache_path, texts[:2], "float16")
    write_texts(cache_path, texts[2:], "float16")
    cache = open_cache(cache_path)
    for (_, expected), read in zip(texts, cache.texts([text for text, _ in texts]), strict=True):
        np.testing.assert_array_equal(read, expected)
    with pytest.raises(MissingError, match="nothing of the sort"):
        cache.texts(["text 0", "nothing of the sort"])


def test_another_fingerprint_is_refused_naming_the_difference(cache_path):
    with pytest.raises(FingerprintError, match=r"sampling\.fps.*2\.0.*4\.0"):
        create_or_check(cache_path, FINGERPRINT | {"sampling.fps": 4.0}, {})
    create_or_check(cache_path, FINGERPRINT, {"unloc": "newer"})


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_text("not a cache")
    with pytest.raises(CacheError, match="nor a cache"):
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
    with pytest.raises(CacheError, match="its index"):
        open_cache(cache_path)["v0"]


@pytest.mark.parametrize("number", [2, 99])
def test_a_cache_of_another_format_is_refused_in_one_line_that_says_what_to_do(cache_path, number):
    (cache_path / "zarr.json").write_bytes(group_metadata({"unloc_cache": number, "fingerprint": {}, "versions": {}}))
    with pytest.raises(CacheError, match=f"format {number}.*`unloc extract` again") as refusal:
        open_cache(cache_path)
    assert "\n" not in str(refusal.value)


def test_a_cache_that_is_not_there_is_said_to_be_missing(cache_path):
    with pytest.raises(MissingError, match="does not exist"):
        open_cache(cache_path / "elsewhere")


def test_a_shard_in_which_all_videos_failed_is_still_settled(cache_path):
    write_video_shard(cache_path, "00000", [], [{"video_id": "v0", "reason": "truncated"}], "float16")
    cache = open_cache(cache_path)
    assert cache.tables["00000"]["failed"][0]["reason"] == "truncated" and len(cache) == 0


def test_a_changed_byte_in_any_table_is_found_on_opening(cache_path):
    write_video_shard(cache_path, "00000", [video("v0", 5)], [], "float16")
    for file in (cache_path / "zarr.json", cache_path / "shards" / "00000" / "zarr.json"):
        whole = file.read_bytes()
        for at in range(0, len(whole), 7):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 2]) + whole[at + 1 :])
            with pytest.raises((CacheError, MissingError)):
                len(open_cache(cache_path))
        file.write_bytes(whole)
    assert len(open_cache(cache_path)) == 1


@pytest.mark.parametrize("rest", [[], ["shards"], ["shards", "texts"]])
def test_a_creation_that_was_killed_half_way_is_finished_by_the_next(tmp_path, rest):
    path = tmp_path / "cache"
    for name in rest:
        (path / name).mkdir(parents=True)
        (path / name / "zarr.json").write_bytes(group_metadata({}))
        (path / ".zarr.json.part").write_text("{")
    create_or_check(path, FINGERPRINT, {})
    assert open_cache(path).fingerprint == FINGERPRINT


def test_a_fingerprint_with_tuples_is_the_one_with_lists_that_is_read_back(tmp_path):
    create_or_check(tmp_path / "cache", {"mean": (0.5, 0.5)}, {})
    create_or_check(tmp_path / "cache", {"mean": (0.5, 0.5)}, {})


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_tokens_are_rounded_as_torch_rounds_and_read_back_from_every_dtype(tmp_path, dtype):
    values = np.random.default_rng(0).normal(scale=30, size=(40, 2, 8)).astype(np.float32)
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).float().numpy()
    path = tmp_path / "cache"
    create_or_check(path, FINGERPRINT | {"dtype": dtype}, {})
    write_video_shard(path, "00000", [VideoTokens(video("v0", 40).meta, to_stored(values, dtype))], [], dtype)
    write_texts(path, [("a", to_stored(values[:, 0], dtype))], dtype)
    cache = open_cache(path)
    np.testing.assert_array_equal(np.moveaxis(cache["v0"].frames, 0, 1).astype(np.float32), expected)
    np.testing.assert_array_equal(cache.texts(["a"])[0].astype(np.float32), expected[:, 0])
    plain = zarr.open_group(str(path), mode="r")["shards/00000/frames"]
    np.testing.assert_array_equal(from_stored(plain[:40], dtype).astype(np.float32), expected)
    assert plain.attrs.get("bits_of") == ("bfloat16" if dtype == "bfloat16" else None)


def test_tokens_that_would_become_infinite_are_refused():
    with pytest.raises(InputError, match=r"70000.*float16"):
        to_stored(np.array([1.0, -70000.0]), "float16")
    assert from_stored(to_stored(np.array([70000.0]), "bfloat16"), "bfloat16")[0] == pytest.approx(70000, rel=2**-8)
    for bad in (np.nan, np.inf):
        with pytest.raises(InputError, match="not finite"):
            to_stored(np.array([bad]), "bfloat16")


def test_tokens_of_another_dtype_are_not_cast_in_silence(cache_path):
    single = VideoTokens(video("v0", 5).meta, np.zeros((5, 1, 8), np.float32))
    with pytest.raises(AssertionError, match="to_stored"):
        write_video_shard(cache_path, "00000", [single], [], "float16")


def test_a_pickled_cache_carries_no_tokens_and_reads_on(cache_path):
    write_video_shard(cache_path, "00000", [video("v0", 4000)], [], "float16")
    cache = open_cache(cache_path)
    expected = cache["v0"].frames
    sent = pickle.dumps(cache)
    assert len(sent) < 4000 * 8 * 2 + 4000 * 8
    np.testing.assert_array_equal(pickle.loads(sent)["v0"].frames, expected)


def test_a_video_that_is_read_cannot_be_written_to(cache_path):
    write_video_shard(cache_path, "00000", [video("v0", 5)], [], "float16")
    with pytest.raises(ValueError, match="read-only"):
        open_cache(cache_path)["v0"].frames[:] = 0


def test_opening_reads_no_row_and_a_damaged_one_is_found_when_it_is_read(cache_path):
    write_video_shard(cache_path, "00000", [video("v0", 5), video("v1", 5)], [], "float16")
    file = cache_path / "shards/00000/videos.jsonl"
    file.write_bytes(file.read_bytes().replace(b"2.5", b"3.5", 1))
    cache = open_cache(cache_path)
    assert len(cache) == 2 and cache.column("num_tokens", "v1") == 5
    with pytest.raises(CacheError, match=r"videos.jsonl: damaged"):
        _ = cache["v1"].times_seconds


def test_opening_takes_memory_for_columns_and_not_for_rows(cache_path):
    tokens = np.zeros((200, 1, 1), np.float16)
    meta = video("v", 200).meta
    for shard in range(3):
        videos = [VideoTokens(meta | {"video_id": f"v{shard}-{n}"}, tokens) for n in range(500)]
        write_video_shard(cache_path, f"{shard:05d}", videos, [], "float16")
    tracemalloc.start()
    cache = open_cache(cache_path)
    assert len(cache) == 1500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000, "1,500 rows with their times are 6 MB when parsed"
    assert cache["v2-499"].meta["video_id"] == "v2-499"


def test_reading_all_shards_opens_no_more_files_than_the_process_may_have(cache_path, monkeypatch):
    for number in range(20):
        write_video_shard(cache_path, f"{number:05d}", [video(f"v{number}", 5, seed=number)], [], "float16")
    monkeypatch.setattr("resource.getrlimit", lambda which: (16, 16))
    cache, before = open_cache(cache_path), len(list(Path("/proc/self/fd").iterdir()))
    for number in range(20):
        np.testing.assert_array_equal(cache[f"v{number}"].frames[0], video(f"v{number}", 5, seed=number).tokens[:, 0])
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 8


def test_of_a_video_in_two_shards_the_later_one_counts(cache_path):
    for seed, shard in enumerate(("00000", "00001")):
        write_video_shard(cache_path, shard, [video("v0", 5 + seed, seed=seed)], [], "float16")
    cache = open_cache(cache_path)
    assert len(cache) == 1 and cache["v0"].meta["shard"] == "00001"
    np.testing.assert_array_equal(cache["v0"].frames[0], video("v0", 6, seed=1).tokens[:, 0])


def test_of_two_that_create_one_cache_the_later_finds_the_other_fingerprint(tmp_path):
    home = Home(tmp_path / "cache")
    with (
        open_for_writing(home, {"tower.name": "one"}, {}),
        pytest.raises(CacheError, match="writing"),
        open_for_writing(home, {"tower.name": "two"}, {}),
    ):
        pass
    with pytest.raises(FingerprintError, match="'one'"), open_for_writing(home, {"tower.name": "two"}, {}):
        pass
    assert open_cache(tmp_path / "cache").fingerprint == {"tower.name": "one"}


def test_a_cache_is_a_mapping_that_says_what_it_is(token_world):
    cache = open_cache(token_world[1])
    assert list(cache) == list(cache.keys()) and set(cache) >= {"v0", "v59"} and len(dict(cache)) == len(cache) == 60
    assert "60 videos, 3 texts, tokens of made up" in repr(cache)
