"""Extraction into a bucket: the same bytes as into a folder, whatever fails or is killed on the way."""

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from pipeline.extract import ExtractOptions, extract
from tests.flaky_store import FlakyFileSystem
from tests.pipeline.comparison import files_of, token_bytes
from unloc.cache.opening import exact_copy, mirror_folder, open_cache
from unloc.cache.writing import audit_cache
from unloc.errors import CacheError
from unloc.inference.encode import EncodeConfig

CONFIG = EncodeConfig(fps=2.0)
OPTIONS = ExtractOptions(workers=0, shard_size=2)


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("UNLOC_MIRRORS", str(tmp_path / "mirrors"))
    monkeypatch.setattr("unloc.cache.object_store.PAUSE_SECONDS", 0)
    monkeypatch.setattr(FlakyFileSystem, "is_down", False)


def run(cache, video_folder, config=CONFIG, on_progress=lambda *counts: None, options=OPTIONS):
    return extract(cache, config, options, files_of(video_folder), [], ["a red square"], on_progress)


@pytest.fixture(scope="module")
def clean(tmp_path_factory, video_folder):
    cache = tmp_path_factory.mktemp("clean") / "cache"
    run(cache, video_folder)
    return token_bytes(cache)


def require_clean(url, clean):
    """Every object at the URL is right, whatever any mirror holds."""
    with exact_copy(url) as home:
        assert token_bytes(home.folder) == clean
        audit = audit_cache(home.folder)
        assert not audit.damages and audit.num_videos == 7
        lines = (home.folder / "ledger.jsonl").read_text().splitlines()
        assert {line.split('"video_id": "')[1].split('"')[0] for line in lines} == {f"v{n}" for n in range(7)}
    store, root = fsspec.core.url_to_fs(url)
    assert not store.exists(f"{root}/lock")


def test_a_cache_at_a_url_is_that_in_a_folder_and_a_second_run_changes_nothing(clean, video_folder):
    url = "memory://extract/one"
    done = run(url, video_folder)
    assert (done.cached_now, done.cache) == (7, url)
    require_clean(url, clean)
    shutil.rmtree(mirror_folder(url))  # as on another machine
    again = run(url, video_folder)
    assert (again.cached_before, again.cached_now) == (7, 0)
    require_clean(url, clean)


def test_a_bucket_that_fails_one_write_in_ten_ends_with_the_same_bytes(clean, video_folder):
    for number in range(2):
        url = f"flaky://extract/{number}"
        run(url, video_folder)
        require_clean(url, clean)
    assert FlakyFileSystem.num_failed > 3


def test_a_bucket_that_is_down_for_a_while_costs_nothing_and_one_that_stays_down_is_told(
    clean, video_folder, monkeypatch
):
    url = "flaky://extract/down"

    def go_down(done, due, frames, failed):
        monkeypatch.setattr(FlakyFileSystem, "is_down", 2 <= done < 5)

    run(url, video_folder, on_progress=go_down)
    require_clean(url, clean)
    with pytest.raises(CacheError, match="failed 7 times"):
        run(f"{url}2", video_folder, on_progress=lambda *_: monkeypatch.setattr(FlakyFileSystem, "is_down", True))
    monkeypatch.setattr(FlakyFileSystem, "is_down", False)
    assert run(f"{url}2", video_folder).cached_before == 7
    require_clean(f"{url}2", clean)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_stopped_at_any_video_it_goes_on_here_or_on_another_machine(clean, video_folder, elsewhere):
    class Stopped(Exception):
        pass

    url = f"memory://extract/stopped-{elsewhere}"
    for stop_at in (1, 3, 2, 5):

        def stop(done, due, frames, failed, stop_at=stop_at):
            if done == stop_at:
                raise Stopped

        with pytest.raises(Stopped):
            run(url, video_folder, on_progress=stop)
        if elsewhere:
            shutil.rmtree(mirror_folder(url))
        if stop_at > 2:
            break
    run(url, video_folder)
    require_clean(url, clean)


def test_other_settings_start_a_cache_beside_the_old_one_which_the_next_machine_finds(clean, video_folder):
    url = "memory://extract/beside"
    run(url, video_folder)
    other = run(url, video_folder, EncodeConfig(fps=1.0))
    assert other.cache.startswith(f"{url}-") and len(open_cache(other.cache)) == 7
    shutil.rmtree(mirror_folder(other.cache))
    again = run(url, video_folder, EncodeConfig(fps=1.0))
    assert (again.cache, again.cached_before) == (other.cache, 7)
    require_clean(url, clean)


def test_the_cache_is_there_before_its_first_video(video_folder):
    url, seen = "memory://extract/early", []
    run(url, video_folder, on_progress=lambda *_: seen.append(len(open_cache(url))))
    assert seen[0] == 0 and sorted(seen) == seen


@pytest.mark.slow
def test_killed_with_sigkill_again_and_again_a_bucket_of_s3_ends_with_the_same_bytes(clean, video_folder, s3):
    s3.mkdir("killed")
    rng, url = random.Random(0), "s3://killed/cache"
    for _ in range(3):
        _run_killed(url, video_folder, rng.randint(0, 2))
    _run_killed(url, video_folder, None)
    require_clean(url, clean)


SCRIPT = """
import sys
from pathlib import Path
from pipeline.extract import ExtractOptions, extract
from unloc.inference.encode import EncodeConfig
files = {path.stem: path for path in sorted(Path(sys.argv[1]).glob("*.mp4"))}
extract(sys.argv[2], EncodeConfig(fps=2.0), ExtractOptions(workers=0, shard_size=2), files, [], ["a red square"],
        lambda done, due, frames, failed: print(done, flush=True))
"""


def _run_killed(url, folder, stop_after):
    command = [sys.executable, "-c", SCRIPT, str(folder), url]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True) as process:
        for line in process.stdout:
            if stop_after is not None and int(line) >= stop_after:
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.stdout.read()
    assert stop_after is not None or process.returncode == 0
