"""A damaged cache is mended by extracting what is broken, and nothing else."""

import random
import shutil

import numpy as np
import pytest

import pipeline.repair
from pipeline.extract import ExtractOptions, extract
from pipeline.repair import mend_array_metadata, mend_root, repair, waiting
from tests.pipeline.comparison import check_equal
from unloc.data.audit import audit_cache
from unloc.data.cache import open_cache, read_attributes
from unloc.data.cache_writer import group_metadata, write_checked
from unloc.errors import CacheError, FingerprintError, MissingError
from unloc.inference.encode import EncodeConfig

CONFIG = EncodeConfig(fps=5.0)
IN_PROCESS = ExtractOptions(workers=0, shard_size=3)
TEXTS = ["a red square", "a man walks"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory, video_folder):
    cache = tmp_path_factory.mktemp("clean") / "cache"
    files = {path.stem: path for path in sorted(video_folder.glob("*.mp4"))}
    extract(cache, CONFIG, IN_PROCESS, files, [], TEXTS)
    return cache


@pytest.fixture
def damaged(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "cache")


def in_folder(folder):
    def find(video_id, file):
        found = folder / (file or f"{video_id}.mp4")
        return found if found.is_file() else None

    return find


def array_bytes(cache):
    return {
        str(path.relative_to(cache)): path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and ("frames" in path.parts or "tokens" in path.parts)
    }


def flip(file, at):
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 4
    file.write_bytes(bytes(data))


def mend(cache, folder):
    return repair(cache, audit_cache(cache), in_folder(folder), IN_PROCESS)


def test_a_whole_cache_has_nothing_to_mend(clean):
    audit = audit_cache(clean)
    assert (audit.num_videos, audit.num_texts, audit.damages) == (7, 2, ())


def test_only_the_broken_video_is_extracted_and_the_bytes_are_those_of_the_clean_cache(clean, damaged, video_folder):
    flip(damaged / "shards/00001/frames/c/0/0/0", 10)
    (damage,) = audit_cache(damaged).damages
    assert (damage.place, damage.broken, damage.intact) == ("shards/00001", ("v3",), ("v4", "v5"))
    summary = mend(damaged, video_folder)
    assert summary.cached_now == 1
    assert array_bytes(damaged) == array_bytes(clean) and not audit_cache(damaged).damages


def test_a_repair_that_was_killed_is_finished_by_the_next(clean, damaged, video_folder, monkeypatch):
    for name in ("shards/00000", "shards/00001"):
        flip(damaged / name / "frames/c/0/0/0", 10)
    (damaged / "plan.json").unlink()  # of an earlier version, or lost
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline.repair, "extract", interrupt)
        mend(damaged, video_folder)
    assert waiting(damaged) == ["v0", "v3"] and not audit_cache(damaged).damages
    flip(damaged / "shards/00002/frames/c/0/0/0", 10)
    mend(damaged, video_folder)
    assert not waiting(damaged)
    check_equal(damaged, clean)


def test_a_repair_leaves_the_plan_of_a_stopped_extraction_alone(clean, damaged, tmp_path, video_folder):
    shutil.rmtree(damaged / "shards/00001")  # as if the extraction had been killed before it
    shutil.rmtree(damaged / "shards/00002")
    flip(damaged / "shards/00000/frames/c/0/0/0", 10)
    shutil.copy(video_folder / "v0.mp4", tmp_path)
    mend(damaged, tmp_path)
    assert len(open_cache(damaged)) == 3 and waiting(damaged) == ["v3", "v4", "v5", "v6"]
    extract(damaged, CONFIG, IN_PROCESS, {path.stem: path for path in sorted(video_folder.glob("*.mp4"))}, [], TEXTS)
    check_equal(damaged, clean)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_every_flipped_bit_is_found_and_mended(clean, damaged, video_folder):
    rng = random.Random(0)
    files = [path for path in sorted(damaged.glob("*/0*/**/*")) if path.is_file()]
    for file in files:
        flip(file, rng.randrange(file.stat().st_size))
    damages = audit_cache(damaged).damages
    assert {damage.place for damage in damages} == {"shards/00000", "shards/00001", "shards/00002", "texts/00000"}
    mend(damaged, video_folder)
    extract(damaged, CONFIG, IN_PROCESS, {}, [], TEXTS)  # a lost table of texts does not say which they were
    assert array_bytes(damaged) == array_bytes(clean) and not audit_cache(damaged).damages


@pytest.mark.parametrize("place", ["shards/00000/frames/c/0/0/0", "shards/00000/zarr.json", "texts/00000/tokens"])
def test_a_file_that_is_gone_comes_back(clean, damaged, video_folder, place):
    target = damaged / place
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    mend(damaged, video_folder)
    assert array_bytes(damaged) == array_bytes(clean) and not audit_cache(damaged).damages


def test_damage_beside_the_tokens_is_mended_without_decoding(clean, damaged, tmp_path):
    frames = damaged / "shards/00000/frames/zarr.json"
    frames.write_text(frames.read_text().replace('"attributes": {}', '"attributes": {"a": 1}'))
    (damaged / "shards/zarr.json").write_text("{}")
    (damaged / "aliases.json").write_text("[")
    flip(damaged / "plan.json", 40)
    places = [damage.place for damage in audit_cache(damaged).damages]
    assert places == ["shards/zarr.json", "aliases.json", "plan.json", "shards/00000"]
    assert mend(damaged, tmp_path).cached_now == 0
    assert array_bytes(damaged) == array_bytes(clean) and not audit_cache(damaged).damages


def test_a_flipped_bit_anywhere_in_a_small_file_is_found_and_mended(clean, damaged, tmp_path):
    write_checked(damaged / "aliases.json", {"v_v0": "v0"})
    for name in ("aliases.json", "plan.json", "shards/zarr.json", "texts/zarr.json", "zarr.json"):
        whole = (damaged / name).read_bytes()
        for place in range(0, len(whole), 1 + len(whole) // 25):
            flip(damaged / name, place)
            if name == "zarr.json":
                with pytest.raises((CacheError, MissingError)):
                    audit_cache(damaged)
                assert mend_root(damaged)
                assert (damaged / name).read_bytes() == whole
            else:
                assert [damage.place for damage in audit_cache(damaged).damages] == [name]
                (damaged / name).write_bytes(whole)
    assert not mend_root(damaged)
    flip(damaged / "shards/zarr.json", 50)
    mend(damaged, tmp_path)
    assert read_attributes(damaged / "shards")["fingerprint"] == open_cache(damaged).fingerprint


def test_texts_are_encoded_again(clean, damaged, video_folder):
    flip(damaged / "texts/00000/tokens/c/0/0", 3)
    mend(damaged, video_folder)
    np.testing.assert_array_equal(open_cache(damaged).texts(TEXTS)[0], open_cache(clean).texts(TEXTS)[0])
    assert not audit_cache(damaged).damages


def test_nothing_is_touched_where_a_file_is_absent_or_another(damaged, video_folder, tmp_path):
    flip(damaged / "shards/00001/frames/c/0/0/0", 10)
    before = array_bytes(damaged)
    with pytest.raises(MissingError, match="'v3'"):
        mend(damaged, tmp_path)
    shutil.copy(video_folder / "v4.mp4", tmp_path / "v3.mp4")
    with pytest.raises(CacheError, match="is not the file that was cached as 'v3'"):
        mend(damaged, tmp_path)
    assert array_bytes(damaged) == before and len(open_cache(damaged)) == 7


def test_without_plan_and_table_nothing_can_be_told(damaged, video_folder):
    (damaged / "plan.json").unlink()
    flip(damaged / "shards/00002/frames/c/0/0/0", 1)
    mend(damaged, video_folder)  # the table tells the plan
    assert not audit_cache(damaged).damages
    (damaged / "plan.json").unlink()
    (damaged / "shards/00000/zarr.json").unlink()
    with pytest.raises(CacheError, match="no plan names its videos"):
        mend(damaged, video_folder)


def test_imported_tokens_cannot_be_extracted_again(damaged, video_folder):
    (damaged / "zarr.json").write_text(
        group_metadata({"unloc_cache": 2, "fingerprint": {"origin": "npz"}, "versions": {}})
    )
    with pytest.raises(FingerprintError, match="import them again"):
        mend(damaged, video_folder)


def test_a_video_that_stands_in_two_shards_is_told(damaged):
    shutil.copytree(damaged / "shards/00000", damaged / "shards/00009")
    assert "3 videos stand in two shards" in audit_cache(damaged).damages[0].reason


def test_a_spoilt_ledger_stops_nothing(damaged, video_folder):
    ledger = damaged / "ledger.jsonl"
    for at in (1, ledger.stat().st_size // 2, ledger.stat().st_size - 3):
        flip(ledger, at)
    ledger.write_bytes(b"\xff\xfe\n" + ledger.read_bytes())
    files = {path.stem: path for path in sorted(video_folder.glob("*.mp4"))}
    assert extract(damaged, CONFIG, IN_PROCESS, files, [], TEXTS).cached_before == 7


def test_what_describes_an_array_is_written_again_without_decoding(clean, damaged, tmp_path):
    for name in ("00000", "00002"):
        whole = (clean / "shards" / name / "frames/zarr.json").read_bytes()
        for at in (1, len(whole) // 2, None):
            file = damaged / "shards" / name / "frames/zarr.json"
            flip(file, at) if at else file.unlink()
            assert audit_cache(damaged).damages
            assert mend_array_metadata(damaged) == 1 and file.read_bytes() == whole
    assert mend_array_metadata(damaged) == 0 and not audit_cache(damaged).damages
