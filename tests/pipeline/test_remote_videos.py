"""Videos at a URL: the tokens of a folder's, and the same guarantees when the network fails or a process is killed."""

import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.decoding import GuardedDecoder, Job, Limits, Retried
from pipeline.extract import ExtractOptions, extract
from tests.conftest import write_manifest
from tests.pipeline.comparison import token_bytes
from unloc.annotations.schema import VideoRow, build_manifest
from unloc.cache.opening import open_cache
from unloc.cache.shards import Failure
from unloc.errors import MissingError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.locate import index_videos
from unloc.video.video_file import on_disk

CONFIG = EncodeConfig(fps=2.0)
OPTIONS = ExtractOptions(workers=0, shard_size=2)


class FaultyFileSystem(MemoryFileSystem):
    """Downloads go wrong as `deed` says, the first `times` times; a file in `marker` counts, over all processes."""

    protocol = "faulty"
    store: ClassVar[dict] = {}
    deed, times = "", 1 << 30
    marker: ClassVar[Path]

    def get_file(self, rpath, lpath, callback=None, **kwargs):
        content, deed = self.cat_file(rpath), self.deed
        count = len(self.marker.read_text()) if self.marker.exists() else 0
        if count >= self.times:
            deed = ""
        elif deed:
            self.marker.write_text("x" * (count + 1))
        Path(lpath).write_bytes(content[: len(content) // 2] if deed else content)
        if deed == "breaks off":
            raise OSError("connection reset by peer")
        if deed == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if deed == "stalls":
            signal.pause()


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    monkeypatch.setattr("unloc.cache.object_store.PAUSE_SECONDS", 0)
    monkeypatch.setattr(FaultyFileSystem, "marker", tmp_path / "count", raising=False)
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    FaultyFileSystem.store.clear()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def go_wrong(deed, times=1 << 30):
        monkeypatch.setattr(FaultyFileSystem, "deed", deed)
        monkeypatch.setattr(FaultyFileSystem, "times", times)

    return go_wrong


@pytest.fixture(params=["memory://bucket/videos", "s3://videobucket"])
def url(request, video_folder):
    if request.param.startswith("s3"):
        store = request.getfixturevalue("s3")
        if not store.exists("videobucket"):
            store.mkdir("videobucket")
    else:
        MemoryFileSystem.store.clear()
    upload(video_folder, request.param)
    return request.param


def upload(folder, url, names=("v0", "v1", "v2")):
    store, root = fsspec.core.url_to_fs(url)
    for name in names:
        store.pipe_file(f"{root}/{name}.mp4", (folder / f"{name}.mp4").read_bytes())


def manifest(*names):
    return build_manifest(name="m", tasks=("mr",), rows=[VideoRow(name, "t", 1) for name in names])


def decode(url, name="v0", **limits):
    files, _ = index_videos(url).locate(manifest(name).videos)
    with GuardedDecoder(Encoder(CONFIG).read_spec, Limits(**limits)) as decoder:
        return [event for _, event in decoder.events([Job(name, files[name])])]


def test_a_cache_from_a_url_is_that_from_the_folder_and_is_complete_for_the_next_run(url, video_folder, tmp_path):
    files, missing = index_videos(url).locate(manifest("v0", "v1", "v2", "gone").videos)
    assert missing == ["gone"] and [file.name for file in files.values()] == ["v0.mp4", "v1.mp4", "v2.mp4"]
    extract(tmp_path / "remote", CONFIG, OPTIONS, files, [], [])
    extract(
        tmp_path / "here",
        CONFIG,
        OPTIONS,
        index_videos(video_folder).locate(manifest("v0", "v1", "v2").videos)[0],
        [],
        [],
    )
    assert token_bytes(tmp_path / "remote") == token_bytes(tmp_path / "here")
    here = open_cache(tmp_path / "here")
    for video_id in here.places:
        row, other = here.row(video_id), open_cache(tmp_path / "remote").row(video_id)
        for key in ("file", "file_bytes", "content_sha256", "duration_seconds", "times_seconds"):
            assert other[key] == row[key]
        assert other["file_mtime_ns"] > 0
    again = extract(
        tmp_path / "remote", CONFIG, OPTIONS, index_videos(url).locate(manifest("v0", "v1", "v2").videos)[0], [], []
    )
    assert (again.cached_before, again.cached_now) == (3, 0)


def test_the_command_line_takes_urls_for_the_manifest_the_folder_and_single_videos(unloc, url, video_folder, tmp_path):
    rows = [VideoRow("v0", "t", 1), VideoRow("x", "t", 1, f"{url}/v1.mp4"), VideoRow("y", "t", 1, "v2.mp4")]
    write_manifest(tmp_path / "m.jsonl", *rows)
    store, root = fsspec.core.url_to_fs(url)
    store.put_file(str(tmp_path / "m.jsonl"), f"{root}/m.jsonl")
    out = unloc("extract", f"{url}/m.jsonl", "--videos", url, "--cache", tmp_path / "c", "--workers", 0, "--json")
    assert out[0] == 0, out
    assert json.loads(out[1])["cached_now"] == 3
    cache = open_cache(tmp_path / "c")
    assert {cache.row(video_id)["file"] for video_id in cache.places} == {"v0.mp4", "v1.mp4", "v2.mp4"}
    elsewhere = unloc("extract", f"{url}/m.jsonl", "--videos", video_folder, "--cache", tmp_path / "d", "--workers", 0)
    assert elsewhere[0] == 0 and open_cache(tmp_path / "d").row("x")["file"] == "v1.mp4"


def test_a_url_without_videos_or_without_the_manifest_is_one_line(unloc, url, tmp_path):
    with pytest.raises(MissingError, match="holds nothing"):
        index_videos(f"{url}/nowhere").locate(manifest("v0").videos)
    code, _, error = unloc("extract", f"{url}/none.jsonl", "--videos", url, "--cache", tmp_path / "c")
    assert code == 2 and "none.jsonl does not exist" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("deed", ["breaks off", "comes in half", "is killed"])
def test_a_download_that_fails_twice_is_tried_again_and_leaves_no_file(faulty, video_folder, tmp_path, deed):
    upload(video_folder, "faulty://bucket/videos")
    faulty(deed, times=2)
    events = decode("faulty://bucket/videos")
    assert isinstance(events[-1], dict) and FaultyFileSystem.marker.read_text() == "xx"
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize(("deed", "words"), [("breaks off", "connection reset"), ("stalls", "made no progress")])
def test_a_network_that_fails_for_good_is_not_the_fault_of_the_video(faulty, video_folder, deed, words):
    upload(video_folder, "faulty://bucket/videos")
    faulty(deed)
    events = decode("faulty://bucket/videos", timeout_seconds=1.0)
    assert isinstance(events[-1], Failure) and events[-1].reason == "machine" and words in events[-1].message


def test_a_video_that_the_network_failed_is_tried_again_by_the_next_run(faulty, video_folder, tmp_path):
    upload(video_folder, "faulty://bucket/videos")
    files, _ = index_videos("faulty://bucket/videos").locate(manifest("v0").videos)
    lenient = ExtractOptions(workers=0)
    faulty("breaks off")
    assert extract(tmp_path / "cache", CONFIG, lenient, files, [], []).reasons == {"machine": 1}
    faulty("")
    assert extract(tmp_path / "cache", CONFIG, lenient, files, [], []).cached_now == 1


def test_an_object_that_is_gone_or_broken_is_the_fault_of_the_video(faulty, video_folder):
    upload(video_folder, "faulty://bucket/videos")
    files, _ = index_videos("faulty://bucket/videos").locate(manifest("v0", "v1").videos)
    store, root = fsspec.core.url_to_fs("faulty://bucket/videos")
    store.rm_file(f"{root}/v0.mp4")
    store.pipe_file(f"{root}/v1.mp4", (video_folder / "v1.mp4").read_bytes()[:3000])
    with GuardedDecoder(Encoder(CONFIG).read_spec, Limits()) as decoder:
        last = {job.video_id: event for job, event in decoder.events([Job(key, files[key]) for key in files])}
    assert (last["v0"].reason, last["v1"].reason) == ("not_found", "truncated")
    assert re.search("faulty://bucket/videos/v1.mp4: .*cut off", last["v1"].message)
    assert last["v1"].file_bytes == 3000, "of the object that was tried, not of the one that was listed"


def test_an_object_that_changes_after_it_was_listed_or_fetched_is_decoded_as_it_is_now(
    faulty, video_folder, monkeypatch
):
    from pipeline import decoding
    from unloc.video.reading import VideoReading

    class Changing(VideoReading):
        num_changed = 0

        def frames(self):
            if Changing.num_changed == 0:
                Changing.num_changed += 1
                upload(video_folder / "other", "faulty://bucket/videos", ["v0"])
            yield from super().frames()

    other = video_folder / "other"
    other.mkdir(exist_ok=True)
    shutil.copy(video_folder / "v5.mp4", other / "v0.mp4")
    upload(video_folder, "faulty://bucket/videos")
    monkeypatch.setattr(decoding, "VideoReading", Changing)
    events = decode("faulty://bucket/videos")
    shutil.rmtree(other)
    assert Retried in map(type, events) and isinstance(events[-1], dict)
    assert events[-1]["file_bytes"] == (video_folder / "v5.mp4").stat().st_size
    assert events[-1]["duration_seconds"] == pytest.approx(3.0, abs=0.01)


class Server(SimpleHTTPRequestHandler):
    """Gives files, or the first half of videos."""

    gives_half = False

    def log_message(self, *words):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        half = self.gives_half and self.path.endswith(".mp4")
        outputfile.write(content[: len(content) // 2] if half else content)


def test_videos_of_a_web_server_are_read_and_half_ones_noticed(video_folder, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp", reason="fsspec reads https with it")
    monkeypatch.setattr("unloc.cache.object_store.PAUSE_SECONDS", 0)
    (tmp_path / "videos" / "some more").mkdir(parents=True)
    shutil.copy(video_folder / "v0.mp4", tmp_path / "videos" / "some more" / "a film.mp4")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/videos"
        whole = decode(url, "a film")[-1]
        assert whole["file"] == "a film.mp4"
        assert whole["content_sha256"] == hashlib.sha256((video_folder / "v0.mp4").read_bytes()).hexdigest()
        (file,) = index_videos(url).locate(manifest("a film").videos)[0].values()
        with on_disk(file) as copy:
            assert copy.read_bytes() == (video_folder / "v0.mp4").read_bytes()
        monkeypatch.setattr(Server, "gives_half", True)
        assert decode(url, "a film")[-1].reason == "machine"
        with pytest.raises(OSError, match="failed 7 times"), on_disk(file):
            pass
        server.shutdown()
