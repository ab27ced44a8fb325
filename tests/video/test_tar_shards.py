"""Videos in tar shards: packing them, finding them, reading them in place, and tar files with defects."""

import gzip
import hashlib
import io
import os
import shutil
import tarfile

import fsspec
import pytest

from unloc.annotations.schema import VideoRow, build_manifest
from unloc.errors import InputError, MissingError, VideoError
from unloc.video.locate import expand_shards, index_videos, shard_members
from unloc.video.packing import pack_videos
from unloc.video.video_file import file_hash, on_disk


@pytest.fixture
def folder(tmp_path):
    """a.mp4 … g.webm of 1,000 to 7,000 bytes; g is named by the manifest."""
    folder = tmp_path / "videos"
    (folder / "deep").mkdir(parents=True)
    for number, name in enumerate(("a.mp4", "b.mp4", "c.mkv", "d.mp4", "e.mp4", "f.avi", "deep/g.webm"), start=1):
        (folder / name).write_bytes(bytes([number]) * 1000 * number)
        os.utime(folder / name, ns=(0, 1_700_000_000_123_456_789 + number))
    return folder


def manifest_of(ids="abcdefg"):
    rows = [VideoRow(key, "t", 1, "deep/g.webm" if key == "g" else None) for key in ids]
    return build_manifest(name="m", tasks=("mr",), rows=rows)


def packed(folder, out, shard_bytes=8000, ids="abcdefg"):
    return pack_videos(
        manifest_of(ids).videos, index_videos(folder).locate(manifest_of(ids).videos)[0], out, shard_bytes=shard_bytes
    )


def tar_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_packed_videos_are_found_again_with_the_same_bytes_name_size_and_time(folder, tmp_path):
    done = packed(folder, tmp_path / "out")
    assert done.pattern == str(tmp_path / "out" / "videos-{000000..000004}.tar") and done.videos == 7
    found, missing = index_videos(shards=done.pattern).locate(manifest_of("abcdefgx").videos)
    assert missing == ["x"] and list(found) == list("abcdefg")
    for key, path in index_videos(folder).locate(manifest_of().videos)[0].items():
        member = found[key]
        assert file_hash(member) == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (member.name, member.stat().st_size) == (path.name, path.stat().st_size)
        assert member.stat().st_mtime_ns == path.stat().st_mtime_ns // 10**9 * 10**9
        with on_disk(member) as copy:
            assert copy.read_bytes() == path.read_bytes()
        assert not copy.exists()
        with on_disk(path) as same:
            assert same == path


def test_no_shard_is_larger_than_asked_for_unless_one_video_is(folder, tmp_path):
    done = packed(folder, tmp_path / "out", shard_bytes=6500)
    sizes = [sum(member.size for member in shard_members(str(path)).values()) for path in expand_shards(done.pattern)]
    assert sum(sizes) == 28_000 and all(size <= 6500 or size == 7000 for size in sizes)
    assert packed(folder, tmp_path / "one", shard_bytes=1 << 30).pattern == str(tmp_path / "one" / "videos-000000.tar")


def test_the_same_videos_give_the_same_bytes_and_an_interrupted_packing_resumes(folder, tmp_path):
    packed(folder, tmp_path / "one")
    assert packed(folder, tmp_path / "one").written_now == 0
    out = tmp_path / "two"
    out.mkdir()
    shutil.copy(tmp_path / "one" / "videos-000000.tar", out)
    (out / ".videos-000001.tar.part").write_bytes(b"half")
    assert packed(folder, out).written_now == 4
    assert tar_bytes(out) == tar_bytes(tmp_path / "one")


def test_shards_of_other_videos_are_not_overwritten(folder, tmp_path):
    packed(folder, tmp_path / "out")
    with pytest.raises(InputError, match="another packing"):
        packed(folder, tmp_path / "out", shard_bytes=1 << 30)
    with pytest.raises(InputError, match="holds other videos"):
        packed(folder, tmp_path / "out", ids="bcdefg", shard_bytes=6500)
    with pytest.raises(InputError, match="nothing is packed"):
        pack_videos(manifest_of().videos, {}, tmp_path / "none")
    with pytest.raises(InputError, match="has a slash"):
        pack_videos(manifest_of(["x/a"]).videos, {"x/a": folder / "a.mp4"}, tmp_path / "none")


def test_webdataset_reads_what_was_packed(folder, tmp_path):
    import webdataset

    done = packed(folder, tmp_path / "out")
    read = list(webdataset.WebDataset(done.pattern, shardshuffle=False))
    assert [sample["__key__"] for sample in read] == ["a", "b", "c", "d", "e", "f", "deep/g"]
    assert read[2]["mkv"] == (folder / "c.mkv").read_bytes()


def test_a_pattern_names_every_shard_and_all_must_exist(folder, tmp_path):
    packed(folder, tmp_path / "out")
    both = f"{tmp_path}/out/videos-{{000000..000001}}.tar::{tmp_path}/out/videos-000004.tar"
    assert [path.name for path in expand_shards(both)] == [f"videos-00000{n}.tar" for n in (0, 1, 4)]
    with pytest.raises(MissingError, match=r"2 of 7 .*videos-000005\.tar"):
        expand_shards(f"{tmp_path}/out/videos-{{000000..000006}}.tar")
    assert [path.name for path in expand_shards(f"{tmp_path}/out/*.tar")] == [f"videos-00000{n}.tar" for n in range(5)]
    with pytest.raises(MissingError, match="1 of 1 "):
        expand_shards(f"{tmp_path}/out/no-*.tar")
    with pytest.raises(InputError, match="is a URL"):
        expand_shards("s3://bucket/videos-{000..127}.tar")


def test_a_truncated_tar_file_keeps_complete_videos_and_names_the_truncated_one(folder, tmp_path, caplog):
    whole = tmp_path / "out" / "videos-000000.tar"
    packed(folder, tmp_path / "out", shard_bytes=1 << 30)
    cut = tmp_path / "cut.tar"
    third = list(shard_members(str(whole)).values())[2]
    cut.write_bytes(whole.read_bytes()[: third.offset + 10])
    members = shard_members(str(cut))
    assert list(members) == ["a.mp4", "b.mp4", "c.mkv"] and "after its file 3" in caplog.text
    with on_disk(members["b.mp4"]) as copy:
        assert copy.read_bytes() == (folder / "b.mp4").read_bytes()
    with pytest.raises(VideoError, match=r"cut\.tar/c\.mkv: .*10 of its 3000") as raised:
        on_disk(members["c.mkv"]).__enter__()
    assert raised.value.reason == "truncated"


def test_a_file_that_is_no_plain_tar_file_is_refused(folder, tmp_path):
    packed(folder, tmp_path / "out", shard_bytes=1 << 30)
    raw = (tmp_path / "out" / "videos-000000.tar").read_bytes()
    for name, content in {"gz": gzip.compress(raw), "empty": b"", "text": b"no tar " * 500, "start": raw[:100]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="plain tar file"):
            shard_members(str(tmp_path / name))


def test_a_video_in_two_shards_is_refused(folder, tmp_path):
    packed(folder, tmp_path / "out")
    shutil.copy(tmp_path / "out" / "videos-000000.tar", tmp_path / "again.tar")
    with pytest.raises(InputError, match=r"a\.mp4 .*videos-000000\.tar.*again\.tar"):
        shard_members(f"{tmp_path}/out/videos-000000.tar::{tmp_path}/again.tar")


def test_folders_and_other_files_in_a_shard_are_ignored(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in {"d": None, "a.json": b"{}", "a.mp4": b"video", "n" * 180 + ".mp4": b"long"}.items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.size = (tarfile.DIRTYPE, 0) if content is None else (tarfile.REGTYPE, len(content))
            tar.addfile(member, io.BytesIO(content or b""))
    found, missing = index_videos(shards=str(tmp_path / "x.tar")).locate(manifest_of(["a", "n" * 180]).videos)
    assert missing == []
    with on_disk(found["a"]) as short, on_disk(found["n" * 180]) as long:
        assert short.read_bytes() == b"video" and long.read_bytes() == b"long"


def test_videos_at_a_url_are_not_packed(folder, tmp_path):
    store = fsspec.filesystem("memory")
    store.pipe_file("/pack/videos/a.mp4", (folder / "a.mp4").read_bytes())
    files, _ = index_videos("memory://pack/videos").locate(manifest_of("a").videos)
    with pytest.raises(InputError, match="files in a folder"):
        pack_videos(manifest_of("a").videos, files, tmp_path / "out")
