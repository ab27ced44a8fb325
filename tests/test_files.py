"""Files appear whole or not at all; a lock ends with its process."""

import os
import signal
import time

import pytest

from unloc.errors import CacheError
from unloc.files import commit_folder, folder_lock, remove_leftovers, replacing, write_file


def test_a_file_is_replaced_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_file(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match=r"new'") as refusal:
        write_file(path.parent, "a folder is in the way")
    assert refusal.value.filename == str(path.parent) and list(tmp_path.iterdir()) == [path.parent]


@pytest.mark.parametrize("killed_at", ["before", "between", "after"])
def test_a_folder_that_is_replaced_is_never_lost(tmp_path, killed_at):
    shards = tmp_path / "shards"
    for name in ("0", ".0.part"):
        (shards / name).mkdir(parents=True)
        (shards / name / "content").write_text(name)
    if killed_at == "between":
        (shards / "0").rename(shards / ".0.old.part")
    elif killed_at == "after":
        commit_folder(shards / ".0.part", shards / "0")
    remove_leftovers(tmp_path)
    assert (shards / "0" / "content").read_text() == (".0.part" if killed_at == "after" else "0")
    assert list(shards.iterdir()) == [shards / "0"]


def test_a_folder_has_one_writer_until_that_process_ends(tmp_path):
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        with folder_lock(tmp_path):
            os.write(writing, b"x")
            signal.pause()
    os.read(reading, 1)
    with pytest.raises(CacheError, match=f"process {process} "), folder_lock(tmp_path):
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with folder_lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_killed_process_frees_its_lock_although_a_process_that_it_forked_lives_on(tmp_path):
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        with folder_lock(tmp_path):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, str(child).encode())
            time.sleep(60)
        os._exit(0)
    child = int(os.read(read, 100))
    try:
        with pytest.raises(CacheError, match=str(process)), folder_lock(tmp_path):
            pass
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with folder_lock(tmp_path):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)
