import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import decoding
from pipeline.cluster import connected
from pipeline.extract import ExtractOptions, extract
from pipeline.ledger import Ledger
from tests.pipeline.comparison import files_of, token_bytes
from unloc.cache import shards
from unloc.cache.opening import describe, open_cache
from unloc.errors import CoverageError, UnlocError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.model.towers import Tower

CONFIG = EncodeConfig(fps=5.0)
IN_PROCESS = ExtractOptions(workers=0, shard_size=3)


@pytest.fixture(scope="module")
def clean(tmp_path_factory, video_folder):
    cache = tmp_path_factory.mktemp("clean") / "cache"
    extract(cache, CONFIG, IN_PROCESS, files_of(video_folder), [], ["a red square", "a man walks"])
    return cache


def test_every_video_is_cached_with_times_and_no_rest_is_left(clean, video_folder):
    cache = open_cache(clean)
    assert sorted(cache.places) == [f"v{n}" for n in range(7)]
    assert cache["v0"].frames.shape[1] == 8  # 1.5 s at 5 fps
    np.testing.assert_allclose(cache["v0"].times_seconds, np.arange(8) * 0.2, atol=1e-6)
    assert not list((clean / "staging").iterdir()) and not (clean / "lock").exists()
    assert len(token_bytes(clean)) == 4  # three shards of videos, one of texts


def test_a_cached_token_is_that_of_an_encode_in_this_process_to_the_bit(clean, video_folder):
    encoded = Encoder(CONFIG).encode_video(video_folder / "v3.mp4", "v3")
    np.testing.assert_array_equal(np.moveaxis(open_cache(clean)["v3"].frames, 0, 1), encoded.tokens)


def test_a_worker_and_its_decoder_compute_on_one_thread_each(video_folder, tmp_path, monkeypatch):
    seen, tower, reading = tmp_path / "seen", Tower.encode_images, decoding.VideoReading

    def note_threads(kind):
        with seen.open("a") as handle:
            handle.write(f"{kind} {torch.get_num_threads()}\n")

    monkeypatch.setattr(Tower, "encode_images", lambda *given: note_threads("tower") or tower(*given))
    monkeypatch.setattr(decoding, "VideoReading", lambda *given: note_threads("decoder") or reading(*given))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        extract(tmp_path / "cache", CONFIG, IN_PROCESS, files_of(video_folder), [], [])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen.read_text().splitlines()) == {"tower 1", "decoder 1"}


def test_a_ray_that_does_not_start_in_time_is_one_line(monkeypatch):
    def timed_out(**options):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", timed_out)
    with pytest.raises(UnlocError, match="timed out"), connected(ExtractOptions(workers=1)):
        pass


def test_a_second_run_changes_nothing_and_new_videos_come_in_a_new_shard(video_folder, tmp_path):
    files = files_of(video_folder)
    first = dict(list(files.items())[:4])
    extract(tmp_path / "cache", CONFIG, IN_PROCESS, first, [], [])
    before = token_bytes(tmp_path / "cache")
    again = extract(tmp_path / "cache", CONFIG, IN_PROCESS, first, [], [])
    assert (again.cached_before, again.cached_now) == (4, 0) and token_bytes(tmp_path / "cache") == before
    more = extract(tmp_path / "cache", CONFIG, IN_PROCESS, files, [], ["new text"])
    assert (more.cached_before, more.cached_now, more.texts_now) == (4, 3, 1)
    after = token_bytes(tmp_path / "cache")
    assert {key: after[key] for key in before} == before


def test_another_id_of_the_same_file_is_not_decoded_again(video_folder, tmp_path):
    files = files_of(video_folder)
    extract(tmp_path / "cache", CONFIG, IN_PROCESS, files, [], [])
    before = token_bytes(tmp_path / "cache")
    other_names = {f"v_{video_id}": path for video_id, path in files.items()}
    summary = extract(tmp_path / "cache", CONFIG, IN_PROCESS, other_names, [], [])
    assert (summary.cached_before, summary.cached_now) == (7, 0) and token_bytes(tmp_path / "cache") == before
    cache = open_cache(tmp_path / "cache")
    np.testing.assert_array_equal(cache["v_v3"].frames, cache["v3"].frames)


def test_another_id_of_a_cached_file_that_was_touched_shares_its_tokens(video_folder, tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes((video_folder / "v0.mp4").read_bytes())
    extract(tmp_path / "cache", CONFIG, IN_PROCESS, {"a": file}, [], [])
    os.utime(file, (1, 1))
    summary = extract(tmp_path / "cache", CONFIG, IN_PROCESS, {"a": file, "v_a": file}, [], [])
    assert summary.cached == 2 and open_cache(tmp_path / "cache").aliases == {"v_a": "a"}


def test_a_failure_has_its_ledger_row_though_a_kill_came_between_the_two_writes(video_folder, tmp_path, monkeypatch):
    (tmp_path / "bad.mp4").write_text("no video")
    files = {"bad": tmp_path / "bad.mp4", "v0": video_folder / "v0.mp4"}

    def killed(ledger: Ledger, row: dict) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Ledger, "write", killed)
        extract(tmp_path / "cache", CONFIG, IN_PROCESS, files, [], [])
    for _ in range(2):
        assert extract(tmp_path / "cache", CONFIG, IN_PROCESS, files, [], []).reasons == {"unreadable": 1}
    rows = [json.loads(line) for line in (tmp_path / "cache/ledger.jsonl").read_text().splitlines()]
    assert sorted((row["video_id"], row["status"]) for row in rows) == [("bad", "failed"), ("v0", "cached")]


def test_a_broken_video_is_a_ledger_row_and_fails_the_command_after_the_rest_is_done(video_folder, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"this is no video at all" * 100)
    files = files_of(video_folder) | {"broken": broken}
    done = extract(tmp_path / "cache", CONFIG, IN_PROCESS, files, [], [])
    done.require_coverage(0.8)
    with pytest.raises(CoverageError, match="7 of 8 videos"):
        done.require_coverage(1.0)
    assert len(open_cache(tmp_path / "cache")) == 7
    rows = [json.loads(line) for line in (tmp_path / "cache" / "ledger.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows if row["status"] == "failed"] == ["unreadable"]
    summary = extract(tmp_path / "cache", CONFIG, IN_PROCESS, files, [], [])
    assert (summary.cached_now, summary.failed_before) == (0, 1)


def test_a_failed_video_is_tried_again_when_its_file_has_changed(video_folder, tmp_path):
    path = tmp_path / "late.mp4"
    path.write_bytes(b"half a download")
    allowed = ExtractOptions(workers=0)
    extract(tmp_path / "cache", CONFIG, allowed, {"late": path}, [], [])
    path.write_bytes((video_folder / "v0.mp4").read_bytes())
    summary = extract(tmp_path / "cache", CONFIG, allowed, {"late": path}, [], [])
    assert summary.cached_now == 1 and describe(tmp_path / "cache")["contents"]["videos failed"] == 0


def test_what_allow_partial_could_not_read_is_not_tried_by_it_again(video_folder, tmp_path):
    whole = (video_folder / "v0.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:-200])  # inside the index at its end
    files, partial = {"cut": tmp_path / "cut.mp4"}, replace(CONFIG, allow_partial=True)
    for config in (CONFIG, partial, partial, CONFIG):
        assert extract(tmp_path / "cache", config, IN_PROCESS, files, [], []).reasons == {"truncated": 1}
    assert len(open_cache(tmp_path / "cache").tables) == 2  # one try each


def test_a_video_without_a_file_counts_against_the_coverage(video_folder, tmp_path):
    done = extract(tmp_path / "cache", CONFIG, IN_PROCESS, files_of(video_folder), ["nowhere"], [])
    with pytest.raises(CoverageError, match="nowhere: missing"):
        done.require_coverage(1.0)


def test_other_settings_start_a_new_cache_beside_and_leave_the_old_one(video_folder, tmp_path, caplog):
    files = dict(list(files_of(video_folder).items())[:2])
    old = extract(tmp_path / "cache", CONFIG, IN_PROCESS, files, [], [])
    before = token_bytes(tmp_path / "cache")
    new = extract(tmp_path / "cache", EncodeConfig(fps=2.0), IN_PROCESS, files, [], [])
    assert "sampling.fps: cache 5.0" in caplog.text
    assert Path(old.cache) == tmp_path / "cache" and Path(new.cache).parent == tmp_path and new.cache != old.cache
    assert token_bytes(tmp_path / "cache") == before and len(open_cache(new.cache)) == 2
    again = extract(tmp_path / "cache", EncodeConfig(fps=2.0), IN_PROCESS, files, [], [])
    assert (again.cache, again.cached_before, again.cached_now) == (new.cache, 2, 0)


def test_shards_are_bounded_by_bytes_and_cut_at_the_same_videos_after_a_kill(
    clean, video_folder, tmp_path, monkeypatch
):
    files, write, options = files_of(video_folder), shards.write_video_shard, ExtractOptions(workers=0)
    sizes = [open_cache(clean).stored_tokens(video_id).nbytes for video_id in files]
    most = sum(sizes[-2:])
    monkeypatch.setattr(shards, "SHARD_BYTES", most)
    extract(tmp_path / "cut", CONFIG, options, files, [], [])
    written = []

    def killed(path, name, *rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(name)
        write(path, name, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "write_video_shard", killed)
        extract(tmp_path / "cache", CONFIG, options, files, [], [])
    extract(tmp_path / "cache", CONFIG, options, files, [], [])
    assert token_bytes(tmp_path / "cache") == token_bytes(tmp_path / "cut")
    tables = open_cache(tmp_path / "cache").tables
    assert list(tables) == ["00000", *(f"00000-{n}" for n in range(1, len(tables)))] and written == list(tables)[:2]
    parts = np.split(sizes, np.cumsum([len(table["videos"]["video_id"]) for table in tables.values()])[:-1])
    assert len(parts) > 2 and max(part.sum() for part in parts) <= most
