"""A repair mends what is damaged, or says what it cannot mend; it removes nothing that does not come back.

The table of the flips: .venv/bin/python -m pytest tests/pipeline/test_repair.py -k flipped -m "" -s -n 0
"""

import random
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import pipeline.repair
from pipeline.extract import ExtractOptions, extract
from pipeline.repair import Repair
from tests.conftest import render_video
from tests.pipeline.comparison import files_of
from unloc.cache.metadata import group_metadata, read_attributes
from unloc.cache.opening import Home, open_cache
from unloc.cache.shards import ShardWriter
from unloc.cache.writing import VideoTokens, audit_cache
from unloc.errors import CacheError, FingerprintError, MissingError
from unloc.files import folder_lock
from unloc.inference.encode import EncodeConfig

CONFIG = EncodeConfig(fps=5.0)
IN_PROCESS = ExtractOptions(workers=0, shard_size=3)
TEXTS = ["a red square", "a man walks"]
UNCHECKED = ("ledger.jsonl", "summary.json")  # for people, as docs/cache.md says


@pytest.fixture(scope="module")
def folder(tmp_path_factory, video_folder):
    """Seven videos and one that is none."""
    folder = shutil.copytree(video_folder, tmp_path_factory.mktemp("videos") / "videos")
    (folder / "v3b.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def files(folder):
    files = files_of(folder)
    return files | {"v_v0": files["v0"]}


@pytest.fixture(scope="module")
def clean(tmp_path_factory, files):
    cache = tmp_path_factory.mktemp("clean") / "cache"
    extract(cache, CONFIG, IN_PROCESS, files, [], TEXTS)
    return cache


@pytest.fixture
def damaged(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "cache")


def content(path):
    """All that a reader can have of a cache."""
    cache = open_cache(path)
    tokens = {
        video_id: (cache[video_id].frames.tobytes(), cache[video_id].times_seconds.tolist())
        for video_id in (*cache.places, *cache.aliases)
    }
    known = {video_id: cache.row(video_id)["content_sha256"] for video_id in cache.places}
    texts = {text: tokens.tobytes() for text, tokens in zip(TEXTS, cache.texts(TEXTS), strict=True)}
    failed = {row["video_id"]: row["reason"] for table in cache.tables.values() for row in table["failed"]}
    return cache.fingerprint, tokens, known, texts, failed


def flip(file, at, bit=4):
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= bit
    file.write_bytes(bytes(data))


class Finder:
    """Finds files in a folder and keeps which were asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, video_id, file):
        self.asked.append(video_id)
        found = self.folder / (file or f"{video_id}.mp4")
        return found if found.is_file() else None


def mend(cache, folder, **rest):
    return Repair(Home(cache), Finder(folder), IN_PROCESS, **rest).run()


def test_a_whole_cache_has_nothing_to_mend(clean, folder):
    done = mend(clean, folder)
    assert (done.before.num_videos, done.before.num_texts) == (7, 2)
    assert (done.before.damages, done.after.damages, done.left) == ((), (), [])


def test_only_the_broken_video_is_extracted_and_the_bytes_are_those_of_the_clean_cache(clean, damaged, folder):
    flip(damaged / "shards/00001/frames/c/0/0/0", 10)
    find = Finder(folder)
    done = Repair(Home(damaged), find, IN_PROCESS).run()
    (damage,) = done.before.damages
    assert (damage.place, damage.broken, find.asked) == ("shards/00001", ("v3",), ["v3"])
    assert content(damaged) == content(clean) and not done.after.damages and not done.left


def check_flips(clean, files, folder, tmp_path, count, seed):
    """Flip one bit after another, each in a copy of its own; returns how often what happened."""
    rng, seen, expected = random.Random(seed), Counter(), content(clean)
    names = sorted(str(path.relative_to(clean)) for path in clean.rglob("*") if path.is_file())
    for number in range(count):
        name, cache = rng.choice(names), shutil.copytree(clean, tmp_path / str(number))
        at, bit = rng.randrange((cache / name).stat().st_size), 1 << rng.randrange(8)
        flip(cache / name, at, bit)
        try:
            found = bool(audit_cache(cache).damages)
        except (CacheError, MissingError):
            found = True
        assert found != (name in UNCHECKED), f"{name} at {at}, bit {bit}"
        done = mend(cache, folder)
        if done.left:
            assert name.startswith(("texts/", "aliases")), f"{name}: {done.left}"
            assert done.after.damages, "what is left stays found"
            done = mend(cache, folder, files=files, texts=TEXTS)
            seen[f"{name}: told, mended by the manifest"] += 1
        else:
            seen[f"{name}: {'mended' if found else 'not checked'}"] += 1
        assert not done.left and not done.after.damages and content(cache) == expected, f"{name} at {at}, bit {bit}"
        shutil.rmtree(cache)
    print(*(f"{count:4} {words}" for words, count in sorted(seen.items())), sep="\n")


def test_thirty_flipped_bits_are_each_found_and_mended_or_told(clean, files, folder, tmp_path):
    check_flips(clean, files, folder, tmp_path, 30, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_hundred_flipped_bits_are_each_found_and_mended_or_told(clean, files, folder, tmp_path, seed):
    check_flips(clean, files, folder, tmp_path, 100, seed)


@pytest.mark.parametrize("seed", range(3))
def test_bits_that_flip_in_many_files_at_once_are_mended_or_told(clean, damaged, files, folder, seed):
    rng = random.Random(seed)
    names = [path for path in sorted(damaged.rglob("*")) if path.is_file() and path.name != "zarr.json"]
    for file in names:
        flip(file, rng.randrange(file.stat().st_size))
    done = mend(damaged, folder)
    assert [words.partition(":")[0] for words in done.left] == ["aliases.json"]
    done = mend(damaged, folder, files=files, texts=TEXTS)
    assert not done.left and not done.after.damages and content(damaged) == content(clean)


@pytest.mark.parametrize(
    "place",
    ["shards/00000/frames/c/0/0/0", "shards/00000/zarr.json", "shards/00001/videos.jsonl", "texts/00000/tokens"],
)
def test_a_file_that_is_gone_comes_back(clean, damaged, folder, place):
    target = damaged / place
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    done = mend(damaged, folder)
    assert not done.left and not done.after.damages and content(damaged) == content(clean)


@pytest.mark.parametrize("place", ["texts/00000/zarr.json", "aliases.json"])
def test_what_only_the_manifest_knows_stays_told_until_it_is_given(clean, damaged, files, folder, place):
    flip(damaged / place, 50)
    for _ in range(2):
        done = mend(damaged, folder)
        assert len(done.left) == 1 and "--manifest" in done.left[0] and len(done.after.damages) == 1
    done = mend(damaged, folder, files=files, texts=TEXTS)
    assert not done.left and len(done.notes) == 1 and content(damaged) == content(clean)


def test_a_manifest_of_other_texts_does_not_pass_for_the_lost_one(damaged, files, folder):
    extract(damaged, CONFIG, IN_PROCESS, {}, [], ["another"])
    flip(damaged / "texts/00000/zarr.json", 50)
    done = mend(damaged, folder, files=files, texts=["another"])
    assert "texts/00000" in done.left[0] and done.after.damages


def test_a_shard_that_cannot_be_mended_stays_as_it_is_and_the_others_are_mended(clean, damaged, folder, tmp_path):
    for name in ("00000", "00001"):
        flip(damaged / f"shards/{name}/frames/c/0/0/0", 10)
    shutil.copy(folder / "v0.mp4", tmp_path)
    before = (damaged / "shards/00001/frames/c/0/0/0").read_bytes()
    done = mend(damaged, tmp_path)
    assert "'v3' (v3.mp4)" in done.left[0] and "video folder" in done.left[0]
    assert [damage.place for damage in done.after.damages] == ["shards/00001"]
    shutil.copy(folder / "v4.mp4", tmp_path / "v3.mp4")
    done = mend(damaged, tmp_path)
    assert "cached as 'v3'" in done.left[0]
    assert (damaged / "shards/00001/frames/c/0/0/0").read_bytes() == before and len(open_cache(damaged)) == 7
    assert not list((damaged / "staging").iterdir())
    assert not mend(damaged, folder).left and content(damaged) == content(clean)


def test_a_video_that_does_not_decode_any_more_is_told_and_costs_no_other(damaged, folder, tmp_path, monkeypatch):
    file = damaged / "shards/00001/zarr.json"
    whole = file.read_bytes()
    file.write_bytes(b"{}")
    shutil.copytree(folder, tmp_path / "videos")
    (tmp_path / "videos/v4.mp4").write_bytes(b"rotten")
    done = mend(damaged, tmp_path / "videos")
    assert "'v4'" in done.left[0] and "unreadable" in done.left[0]
    file.write_bytes(whole)
    assert not audit_cache(damaged).damages, "the rest of the shard is as it was"


@pytest.mark.parametrize("place", ["frames/c/0/0/0", "zarr.json"])
def test_a_partial_video_stays_partial_and_a_failed_one_needs_no_coverage(tmp_path, place):
    videos = tmp_path / "videos"
    videos.mkdir()
    whole = render_video(videos / "cut.mkv", num_frames=60).read_bytes()
    (videos / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    (videos / "bad.mkv").write_bytes(b"no video" * 100)
    files = {path.stem: path for path in sorted(videos.iterdir())}
    done = extract(tmp_path / "cache", replace(CONFIG, allow_partial=True), IN_PROCESS, files, [], TEXTS)
    assert done.covered_seconds.keys() == {"cut"} and done.reasons == {"unreadable": 1}
    before = content(tmp_path / "cache")
    flip(tmp_path / "cache/shards/00000" / place, 10)
    done = Repair(Home(tmp_path / "cache"), lambda video_id, file: files[video_id], ExtractOptions(workers=0)).run()
    assert not done.left and not done.after.damages and content(tmp_path / "cache") == before


def test_a_repair_that_is_killed_costs_nothing(clean, damaged, folder, monkeypatch):
    flip(damaged / "shards/00001/frames/c/0/0/0", 10)
    for owner, function in ((pipeline.repair, "results_of"), (ShardWriter, "write")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, function, interrupt)
            mend(damaged, folder)
        assert len(open_cache(damaged)) == 7
    assert not mend(damaged, folder).left and content(damaged) == content(clean)


def test_a_repair_that_is_killed_between_the_old_shard_and_the_new_one_gives_back_the_old_one(clean, damaged, folder):
    (damaged / "shards/00001").rename(damaged / "shards/.00001.old.part")
    (damaged / "shards/.00001.part").mkdir()
    assert not mend(damaged, folder).before.damages
    assert content(damaged) == content(clean)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_plan_of_a_stopped_extraction_survives_a_repair_and_its_loss_is_told(clean, damaged, files, folder):
    shutil.rmtree(damaged / "shards/00002")  # as if the extraction had been killed before it
    flip(damaged / "shards/00000/frames/c/0/0/0", 10)
    assert not mend(damaged, folder).left
    ShardWriter(open_cache(damaged)).put(VideoTokens({"video_id": "v6"}, np.zeros((1, 1, 4))))
    flip(damaged / "plan.json", 40)
    assert "run `unloc extract`" in mend(damaged, folder).left[0]
    extract(damaged, CONFIG, IN_PROCESS, files, [], TEXTS)
    assert content(damaged) == content(clean)


def test_without_plan_and_table_it_is_said_that_nothing_can_be_told(clean, damaged, folder):
    (damaged / "plan.json").unlink()
    flip(damaged / "shards/00002/frames/c/0/0/0", 1)
    assert not mend(damaged, folder).left, "the table tells"
    (damaged / "shards/00000/zarr.json").unlink()
    flip(damaged / "shards/00001/frames/c/0/0/0", 1)
    done = mend(damaged, folder)
    assert "shards/00000" in done.left[0] and "no plan" in done.left[0] and len(done.left) == 1
    assert [damage.place for damage in done.after.damages] == ["shards/00000"]


def test_a_cache_that_is_being_written_is_not_repaired(damaged, folder):
    with folder_lock(damaged), pytest.raises(CacheError, match="is writing"):
        mend(damaged, folder)


def test_imported_tokens_cannot_be_extracted_again(damaged, folder):
    (damaged / "zarr.json").write_bytes(
        group_metadata({"unloc_cache": 3, "fingerprint": {"origin": "npz"}, "versions": {}})
    )
    (damaged / "texts/zarr.json").write_text("{}")
    flip(damaged / "shards/00001/frames/c/0/0/0", 10)
    with pytest.raises(FingerprintError, match="import them"):
        mend(damaged, folder)
    assert read_attributes(damaged / "texts") is not None


def test_a_spoilt_ledger_stops_nothing(damaged, files):
    ledger = damaged / "ledger.jsonl"
    for at in (1, ledger.stat().st_size // 2, ledger.stat().st_size - 3):
        flip(ledger, at)
    ledger.write_bytes(b"\xff\xfe\n" + ledger.read_bytes())
    assert extract(damaged, CONFIG, replace(IN_PROCESS, shard_size=2), files, [], TEXTS).cached_before == 8
