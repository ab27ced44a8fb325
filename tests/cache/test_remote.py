"""Caches in a bucket: `memory://`, and S3 as moto serves it; one store fails one write in ten."""

import json
import multiprocessing
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.memory import MemoryFileSystem

from tests.flaky_store import FlakyFileSystem
from unloc.cache.opening import Home, exact_copy, mirror_folder, open_cache, open_for_writing
from unloc.cache.writing import (
    VideoTokens,
    audit_cache,
    create_or_check,
    token_checksum,
    write_texts,
    write_video_shard,
)
from unloc.errors import CacheError, InputError, MissingError
from unloc.files import url_of

FINGERPRINT = {"dtype": "float16", "sampling.fps": 2.0}


@contextmanager
def writable(url):
    with open_for_writing(Home(url), FINGERPRINT, {}) as cache:
        yield cache.path


def video(number, length=40):
    tokens = np.random.default_rng(number).normal(size=(length, 1, 8)).astype(np.float16)
    times = [0.5 * step for step in range(length)]
    meta = {"video_id": f"v{number}", "times_seconds": times, "tokens_sha256": token_checksum(tokens)}
    return VideoTokens(meta, tokens)


def write_some(folder, shards, texts=True):
    create_or_check(folder, FINGERPRINT, {})
    for shard in shards:
        if not (folder / "shards" / f"{shard:05d}").exists():
            write_video_shard(folder, f"{shard:05d}", [video(3 * shard + n) for n in range(3)], [], "float16")
    if texts and not open_cache(folder).text_index:
        write_texts(folder, [("a dog", video(99, 5).tokens[:, 0])], "float16")


def require_whole(cache, numbers):
    assert sorted(cache.places) == sorted(f"v{number}" for number in numbers)
    for number in numbers:
        np.testing.assert_array_equal(cache[f"v{number}"].frames[0], video(number).tokens[:, 0])
    np.testing.assert_array_equal(cache.texts(["a dog"])[0], video(99, 5).tokens[:, 0])


@pytest.fixture(autouse=True)
def mirrors(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLOC_MIRRORS", str(tmp_path / "mirrors"))
    return tmp_path / "mirrors"


@pytest.fixture(params=["memory", "s3"])
def url(request):
    if request.param == "memory":
        MemoryFileSystem.store.clear()
        yield "memory://caches/one"
        return
    store = request.getfixturevalue("s3")
    if store.exists("bucket"):
        store.rm("bucket", recursive=True)
    store.mkdir("bucket")
    yield "s3://bucket/caches/one"


@pytest.fixture
def written(url):
    """The URL of two shards of three videos."""
    with writable(url) as folder:
        write_some(folder, [0, 1])
    return url


def test_what_is_written_at_a_url_is_read_there_with_equal_values_by_us_and_by_plain_zarr(written, mirrors):
    shutil.rmtree(mirrors, ignore_errors=True)  # as on another machine
    require_whole(open_cache(written), range(6))
    plain = zarr.open_group(written, mode="r")
    np.testing.assert_array_equal(plain["shards/00001/frames"][:40], video(3).tokens)
    assert plain.attrs["fingerprint"] == FINGERPRINT


def test_tokens_come_when_they_are_first_read_and_only_those(written):
    shutil.rmtree(mirror_folder(written))
    cache = open_cache(written)
    assert len(cache) == 6 and not list(cache.path.glob("shards/*/frames"))
    assert cache["v4"].frames.any()
    assert [item.parent.name for item in cache.path.glob("shards/*/frames")] == ["00001"]


def test_a_forked_reader_fetches_for_itself(written):
    shutil.rmtree(mirror_folder(written))
    cache = open_cache(written)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        sums = pool.map(_first_token, [(cache, f"v{n}") for n in range(6)])
    assert sums == [float(video(n).tokens[0].sum()) for n in range(6)]


def _first_token(job):
    cache, video_id = job
    return float(cache[video_id].frames[0, 0].sum())


def test_another_machine_goes_on_where_the_first_stopped(url, mirrors):
    with writable(url) as folder:
        write_some(folder, [0])
    shutil.rmtree(mirror_folder(url))
    with writable(url) as folder:
        assert [item.name for item in (folder / "shards").glob("0*")] == ["00000"]
        write_some(folder, [0, 1])
    shutil.rmtree(mirror_folder(url))
    require_whole(open_cache(url), range(6))


def test_a_mirror_of_a_cache_that_was_removed_is_not_taken_for_the_new_one(written):
    store, root = fsspec.core.url_to_fs(written)
    store.rm(root, recursive=True)
    with pytest.raises(MissingError, match="does not exist"):
        open_cache(written)
    with writable(written) as folder:
        assert not list((folder / "shards").glob("0*"))
        write_some(folder, [0])
    require_whole(open_cache(written), range(3))


def test_a_second_writer_is_refused_and_the_lock_of_a_killed_one_is_taken_over(url):
    store, root = fsspec.core.url_to_fs(url)
    with writable(url) as folder, pytest.raises(CacheError, match="is writing"):
        other = Home(url)
        other.folder = folder.with_name("other")
        with other.lock():
            pass
    assert not store.exists(f"{root}/lock")
    dead = {"host": os.uname().nodename, "pid": 2**22 + 1, "started": "1", "token": "x"}
    store.pipe_file(f"{root}/lock", json.dumps(dead).encode())
    with writable(url):
        assert json.loads(store.cat_file(f"{root}/lock"))["pid"] == os.getpid()
    store.pipe_file(f"{root}/lock", json.dumps(dead | {"host": "elsewhere"}).encode())
    with pytest.raises(CacheError, match=r"on elsewhere"), writable(url):
        pass


def test_a_reader_beside_a_writer_of_this_machine_sees_whole_shards_and_takes_nothing_away(url):
    home = Home(url)
    with home.lock():
        write_some(home.folder, [0])
        home.publish()
        write_some(home.folder, [0, 1])
        require_whole(open_cache(url), range(6))
        assert (home.folder / "shards/00001/zarr.json").is_file()


def test_a_writer_waits_for_a_reader_that_pulls_and_is_not_refused(url):
    errors = []

    def write() -> None:
        try:
            with Home(url).lock():
                pass
        except CacheError as error:
            errors.append(error)

    writer = threading.Thread(target=write)

    class Slow(Home):
        def _synchronise(self) -> None:
            writer.start()
            writer.join(timeout=0.1)  # it is refused at once, or waits for this to end

    Slow(url).pull()
    writer.join()
    assert not errors


def test_a_shard_without_its_table_is_not_there(written):
    store, root = fsspec.core.url_to_fs(written)
    store.rm_file(f"{root}/shards/00001/zarr.json")
    shutil.rmtree(mirror_folder(written))
    require_whole(open_cache(written), range(3))


def test_damage_at_the_url_is_found_by_an_audit_though_the_mirror_is_whole_and_mended_there(written):
    store, root = fsspec.core.url_to_fs(written)
    key = f"{root}/shards/00001/frames/c/0/0/0"
    whole = store.cat_file(key)
    store.pipe_file(key, whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert not audit_cache(mirror_folder(written)).damages
    with exact_copy(written) as home, home.lock():
        (damage,) = audit_cache(home.folder).damages
        assert damage.broken == ("v3",)
        (home.folder / "shards/00001/frames/c/0/0/0").write_bytes(whole)
        shutil.rmtree(home.folder / "texts/00000")
        home.publish()
    assert store.cat_file(key) == whole and not store.exists(f"{root}/texts/00000/zarr.json")


def test_damaged_tokens_are_refused_when_they_are_fetched(url, monkeypatch):
    monkeypatch.setattr("unloc.cache.object_store.PAUSE_SECONDS", 0)
    with writable(url) as folder:
        write_some(folder, [0])
    store, root = fsspec.core.url_to_fs(url)
    key = f"{root}/shards/00000/frames/c/0/0/0"
    store.pipe_file(key, store.cat_file(key)[:-1] + b"?")
    shutil.rmtree(mirror_folder(url))
    with pytest.raises(CacheError, match="checksum"):
        open_cache(url)["v0"]


def test_a_bucket_that_fails_one_write_in_ten_ends_with_the_same_bytes(monkeypatch):
    monkeypatch.setattr("unloc.cache.object_store.PAUSE_SECONDS", 0)
    for run in range(4):
        url = f"flaky://bucket/{run}"
        with writable(url) as folder:
            write_some(folder, range(6))
        shutil.rmtree(mirror_folder(url))
        require_whole(open_cache(url), range(18))
    assert FlakyFileSystem.num_failed > 8


def test_a_store_that_never_works_is_one_clear_error(monkeypatch):
    monkeypatch.setattr("unloc.cache.object_store.PAUSE_SECONDS", 0)
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", lambda *_, **__: (_ for _ in ()).throw(OSError("503")))
    with (
        pytest.raises(CacheError, match=r"caches/two/lock.*503"),
        writable("memory://caches/two"),
    ):
        pass


def test_urls_are_told_from_paths():
    assert url_of("s3://b/c/") == url_of(Path("s3://b/c")) == "s3://b/c"
    assert url_of("cache") is None and url_of("/a/b") is None and url_of("file:///a") is None
    for wrong, words in (
        ("nostore://x/y", "nostore"),
        ("s3://bucket", "names no folder"),
        ("memory://", "names no folder"),
    ):
        with pytest.raises(InputError, match=words):
            open_cache(wrong)


def test_what_no_second_try_can_cure_is_told_at_once(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited"))
    fsspec.filesystem("s3", skip_instance_cache=True).clear_instance_cache()
    with pytest.raises(CacheError, match="check credentials"):
        open_cache("s3://bucket/x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    fsspec.filesystem("s3", skip_instance_cache=True).clear_instance_cache()
    with pytest.raises(MissingError, match="no such bucket"), writable("s3://no-such-bucket/x"):
        pass
