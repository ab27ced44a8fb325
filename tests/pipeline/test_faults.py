"""A job that is killed or interrupted at any moment and run again writes the same bytes as an undisturbed one.

The job runs in forked processes that stop (SIGKILL, SIGINT or a full disk) at a chosen write: every opening of a file
for writing, rename, removal or new folder in the cache counts as one. Kills on real clusters: test_soak.py.
"""

import errno
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import decoding
from pipeline.extract import ExtractOptions, extract
from tests.pipeline.comparison import check_equal, token_bytes
from unloc.annotations.schema import VideoRow, build_manifest
from unloc.cache.opening import open_cache
from unloc.cache.writing import audit_cache
from unloc.errors import CacheError, CoverageError, UnlocError
from unloc.inference.encode import EncodeConfig
from unloc.video.locate import index_videos
from unloc.video.packing import pack_videos

CONFIG = EncodeConfig(fps=5.0)
OPTIONS = ExtractOptions(workers=0, shard_size=3)
TEXTS = ["a red square", "a man walks"]
WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}
MANY = 10_000


@pytest.fixture(scope="module")
def files(video_folder, tmp_path_factory) -> dict[str, Path]:
    """Seven videos and a file that is no video."""
    broken = tmp_path_factory.mktemp("broken") / "v3b.mp4"
    broken.write_bytes(b"no video" * 100)
    return dict(sorted({"v3b": broken, **{path.stem: path for path in video_folder.glob("*.mp4")}}.items()))


@pytest.fixture(scope="module")
def clean(tmp_path_factory, files) -> Path:
    cache = tmp_path_factory.mktemp("clean") / "cache"
    extract(cache, CONFIG, OPTIONS, files, [], TEXTS)
    return cache


def at_write(cache: Path, number: int, action: Callable[[], None]) -> None:
    """Call `action` before the given write below the cache; for a process of its own, as the hook stays."""
    left = [number]

    def hook(event: str, arguments: tuple) -> None:
        is_write = event in WRITES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & 3)
        if is_write and str(arguments[0]).startswith(str(cache)):
            left[0] -= 1
            if left[0] == 0:
                action()

    sys.addaudithook(hook)


def run_disturbed(cache: Path, files: dict[str, Path], number: int, action: Callable[[], None]) -> int:
    """The job in a forked process that calls `action` at a write; its exit code, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 70
        torch.set_num_threads(1)  # OpenMP hangs in a forked process whose parent has computed on several threads
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what started the tests may have had it ignored
        try:
            at_write(cache, number, action)
            extract(cache, CONFIG, OPTIONS, files, [], TEXTS)
            code = 0
        except CacheError:
            code = 2
        except KeyboardInterrupt:
            code = 130
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def disk_full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def check_resumed(cache: Path, files: dict[str, Path], clean: Path) -> None:
    extract(cache, CONFIG, OPTIONS, files, [], TEXTS)
    check_equal(cache, clean)


STOPS = {kill_self: -signal.SIGKILL, disk_full: 2, interrupt: 130}


@pytest.mark.parametrize(
    ("action", "number"),
    [*((kill_self, n) for n in (5, 33, 60, 90)), (disk_full, 21), (disk_full, 70), (interrupt, 40)],
)
def test_stopped_at_a_write_and_run_again_nothing_differs(files, clean, tmp_path, action, number):
    cache = tmp_path / "cache"
    assert run_disturbed(cache, files, number, action) == STOPS[action]
    check_resumed(cache, files, clean)


def test_killed_again_and_again_the_job_still_ends_where_an_undisturbed_one_does(files, clean, tmp_path):
    cache, rng = tmp_path / "cache", random.Random(0)
    codes = [run_disturbed(cache, files, rng.randint(15, 40), kill_self) for _ in range(5)]
    assert codes.count(-signal.SIGKILL) > 2
    check_resumed(cache, files, clean)


def test_killed_while_it_reads_tar_shards_and_run_again_nothing_differs(files, clean, tmp_path):
    rows = [VideoRow(video_id, "test", None) for video_id in files]
    manifest = build_manifest(name="m", tasks=("mr",), rows=rows)
    pattern = pack_videos(manifest.videos, files, tmp_path / "shards", shard_bytes=40_000).pattern
    members, missing = index_videos(shards=pattern).locate(manifest.videos)
    assert "{" in pattern and not missing
    assert run_disturbed(tmp_path / "cache", members, 45, kill_self) == -signal.SIGKILL
    check_resumed(tmp_path / "cache", members, clean)


@pytest.mark.slow
@pytest.mark.parametrize(("action", "code"), STOPS.items())
def test_stopped_at_every_single_write(files, clean, tmp_path, action, code):
    # Runs in a row that ended well: errors are ignored when leftovers are removed or a folder is made that exists.
    undisturbed = 0
    for number in range(1, MANY):
        cache = tmp_path / str(number)
        ended = run_disturbed(cache, files, number, action)
        assert ended in (code, 0), f"write {number}"
        check_resumed(cache, files, clean)
        undisturbed = undisturbed + 1 if ended == 0 else 0
        if undisturbed == 4:
            assert number > 80, "the job writes more often than that"
            return


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB in memory, and a function that enlarges it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full_refuses_in_one_line_until_it_has_room(files, clean, small_disk):
    folder, enlarge = small_disk
    for _ in range(2):
        with pytest.raises(CacheError, match="no space left"):
            extract(folder / "cache", CONFIG, OPTIONS, files, [], TEXTS)
        assert not list((folder / "cache").rglob("*.part"))
    enlarge()
    check_resumed(folder / "cache", files, clean)


def test_of_two_extractors_at_once_one_is_refused_and_the_cache_is_whole(files, clean, tmp_path):
    cache = tmp_path / "cache"
    process = os.fork()
    if process == 0:
        os._exit(run_disturbed(cache, files, MANY, kill_self))
    other = run_disturbed(cache, files, MANY, kill_self)
    first = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert sorted((first, other)) in ([0, 2], [0, 0]), "0, 0: one ended before the other began"
    check_resumed(cache, files, clean)


def test_videos_added_after_a_kill_get_a_shard_of_their_own(files, clean, tmp_path):
    cache = tmp_path / "cache"
    some = dict(list(files.items())[:4])
    run_disturbed(cache, some, 40, kill_self)
    extract(cache, CONFIG, OPTIONS, some, [], TEXTS)
    before = token_bytes(cache)
    run_disturbed(cache, files, 30, kill_self)
    done = extract(cache, CONFIG, OPTIONS, files, [], TEXTS)
    assert done.cached == 7 and done.reasons == {"unreadable": 1}
    after = token_bytes(cache)
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    assert len(open_cache(cache)) == 7 and not audit_cache(cache).damages


def test_another_tower_gets_another_cache_after_a_kill_and_both_can_be_finished(files, clean, tmp_path):
    cache, other = tmp_path / "cache", EncodeConfig(num_frames=3)
    run_disturbed(cache, files, 45, kill_self)
    beside = extract(cache, other, OPTIONS, files, [], TEXTS).cache
    assert Path(beside) != cache and open_cache(beside)["v0"].frames.shape[1] == 3
    check_resumed(cache, files, clean)


def test_a_video_over_its_time_again_and_again_is_quarantined_and_not_tried_by_the_next_run(
    files, tmp_path, monkeypatch
):
    from pipeline.decoding import Limits

    tries = tmp_path / "tries"

    def hang(path: Path, *rest: object) -> None:
        with tries.open("a") as handle:
            handle.write(f"{path.stem}\n")
        signal.pause()

    monkeypatch.setattr(decoding, "VideoReading", hang)
    some = {"v0": files["v0"]}
    options = ExtractOptions(workers=0, limits=Limits(timeout_seconds=0.3))
    done = extract(tmp_path / "cache", CONFIG, options, some, [], [])
    assert done.reasons == {"timeout": 1} and done.failures[0]["attempts"] == 2
    again = extract(tmp_path / "cache", CONFIG, options, some, [], [])
    assert (again.failed_before, again.reasons) == (1, {"timeout": 1})
    assert Counter(tries.read_text().split()) == {"v0": 2}
    with pytest.raises(CoverageError, match=r"v0: timeout: .*--timeout.*2 times"):
        again.require_coverage(1.0)


def test_two_ids_of_one_file_are_decoded_once_and_share_its_tokens_or_its_failure(files, tmp_path):
    both = files | {f"again_{video_id}": path for video_id, path in files.items()}
    done = extract(tmp_path / "cache", CONFIG, OPTIONS, both, [], [])
    assert (done.videos, done.cached_now, done.failed, done.reasons) == (16, 14, 2, {"unreadable": 2})
    cache = open_cache(tmp_path / "cache")
    assert len(cache) == 7 and cache["again_v3"].meta["video_id"] == "v3"
    again = extract(tmp_path / "cache", CONFIG, OPTIONS, both, [], [])
    assert (again.cached_before, again.cached_now, again.failed) == (14, 0, 2)


def test_videos_whose_names_are_not_utf8_can_be_cached_and_can_fail(files, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    good, bad = (folder / os.fsdecode(b"\xff.mp4"), folder / "bad.mp4")
    good.write_bytes(files["v0"].read_bytes())
    bad.write_bytes(b"no video" * 100)
    done = extract(tmp_path / "cache", CONFIG, OPTIONS, {"good": good, "bad": bad}, [], [])
    assert (done.cached_now, done.reasons) == (1, {"unreadable": 1})
    assert open_cache(tmp_path / "cache").row("good")["file"] == r"\udcff.mp4"
    assert "bad.mp4: is a text" in done.failures[0]["message"].encode().decode()


@pytest.fixture
def members(files, tmp_path):
    """The seven videos in tar shards: each is copied to the temporary folder to be decoded."""
    videos = {video_id: path for video_id, path in files.items() if video_id != "v3b"}
    manifest = build_manifest(name="m", tasks=("mr",), rows=[VideoRow(name, "test", None) for name in videos])
    return index_videos(shards=pack_videos(manifest.videos, videos, tmp_path / "shards").pattern).locate(
        manifest.videos
    )[0]


def fill_temporary_folder(monkeypatch, prefix: str) -> None:
    """No space for videos whose id begins so."""
    on_disk = decoding.on_disk

    def refused(file, *rest):
        if file.name.startswith(prefix):
            raise OSError(errno.ENOSPC, "No space left on device", "/tmp/unloc-x")
        return on_disk(file, *rest)

    monkeypatch.setattr(decoding, "on_disk", refused)


def test_a_full_temporary_folder_ends_the_job_and_marks_no_video_as_failed(members, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_temporary_folder(patch, "v")
        with pytest.raises(UnlocError, match="at /tmp/unloc-x"):
            extract(tmp_path / "cache", CONFIG, OPTIONS, members, [], [])
    done = extract(tmp_path / "cache", CONFIG, OPTIONS, members, [], [])
    assert (done.cached_now, done.failed_before, done.failed) == (7, 0, 0)


def test_a_video_that_found_no_space_is_left_to_the_next_run_and_delays_no_shard(members, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fill_temporary_folder(patch, "v4")
        done = extract(tmp_path / "cache", CONFIG, OPTIONS, members, [], [])
    assert (done.cached_now, done.reasons) == (6, {"machine": 1}) and len(open_cache(tmp_path / "cache")) == 6
    done = extract(tmp_path / "cache", CONFIG, OPTIONS, members, [], [])
    assert (done.cached_before, done.cached_now, done.failed) == (6, 1, 0)
    assert not audit_cache(tmp_path / "cache").damages


def test_an_address_where_nobody_answers_is_one_line_at_once(files, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.cluster.ray.is_initialized", lambda: False)  # other tests may share one here
    options = ExtractOptions(workers=1, address="127.0.0.1:9")
    with pytest.raises(UnlocError, match=r"--address 127\.0\.0\.1:9: .*refused"):
        extract(tmp_path / "cache", CONFIG, options, {"v0": files["v0"]}, [], [])
