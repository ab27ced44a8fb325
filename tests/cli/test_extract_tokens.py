"""`unloc extract`: where videos come from, where tokens go, and which tokens, as a user asks for them."""

import json

import pytest

from tests.conftest import write_manifest
from unloc.annotations.schema import VideoRow
from unloc.cache.opening import open_cache


@pytest.fixture
def manifest(tmp_path):
    return write_manifest(tmp_path / "m.jsonl", *(VideoRow(name, "t", 1) for name in ("v0", "v1", "v2")))


@pytest.fixture
def extract(unloc, manifest):
    """Runs `unloc extract` of the manifest: (exit code, stdout, stderr)."""
    return lambda *words: unloc("extract", manifest, "--workers", 0, "--fps", 2, *words)


def test_from_tar_shards_into_a_store_with_views_and_layers(unloc, extract, manifest, video_folder, tmp_path):
    unloc("data", "pack", manifest, "--videos", video_folder, "--out", tmp_path / "shards", "--shard-gib", 1e-6)
    pattern = tmp_path / "shards" / "videos-{000000..000002}.tar"
    kind = ("--frame-token", "gap", "--no-projection", "--last-k", 2, "--dtype", "bfloat16", "--token-dtype", "float32")
    url = "memory://cli/cache"
    done = json.loads(extract("--shards", pattern, "--cache", url, "--views", "centre,flip,crop3", *kind, "--json")[1])
    assert done["cached_now"] == 3 and done["cache"] == url
    cache = open_cache(url)
    assert cache["v1"].frames.shape[::2] == (3, 256 + 512) and cache["v1"].frames.dtype == "float32"
    stated = {key: cache.fingerprint[key] for key in ("tower.dtype", "tower.num_layers", "tower.frame_token", "views")}
    assert list(stated.values()) == ["bfloat16", 2, "gap", ["centre", "flip", "crop3"]]
    assert json.loads(unloc("cache", "info", url, "--json")[1])["contents"]["videos cached"] == 3


def test_a_plan_of_a_store_knows_what_is_there(extract, video_folder):
    url = "memory://cli/planned"
    words = ("--videos", video_folder, "--cache", url)
    assert extract(*words, "--limit", 1)[0] == 0
    told = json.loads(extract(*words, "--plan", "--json")[1])
    assert (told["videos"], told["cached_before"]) == (2, 1)


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        ((), "--videos DIR and --shards"),
        (("--videos", "x", "--shards", "y"), "--videos DIR and --shards"),
        (("--shards", "nowhere-{0..3}.tar"), "4 of 4 "),
        (("--videos", ".", "--views", "flip"), "expected centre"),
        (("--videos", ".", "--views", ""), "--views: got ''"),
        (("--videos", ".", "--views", "centre,crop-1"), "crop-1"),
        (("--videos", ".", "--last-k", 0), "--last-k: got 0"),
        (
            ("--videos", ".", "--dtype", "float16"),
            "--dtype: got 'float16'",
        ),
        (("--videos", ".", "--token-dtype", "int8"), "'--token-dtype': "),
        (("--videos", ".", "--decoder", "opencv"), "'auto', 'decord', 'pyav'"),
        (("--videos", ".", "--frame-token", "patch"), "--frame-token: got 'patch'"),
        (("--videos", ".", "--last-k", 2), "--tower toy: "),
        (("--videos", ".", "--cache", "nostore://x/y"), "nostore://x/y: "),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_nothing_is_written(fails, manifest, tmp_path, words, saying):
    words = words if "--cache" in words else (*words, "--cache", tmp_path / "cache")
    fails("extract", manifest, "--workers", 0, "--fps", 2, *words, "--coverage", 0, saying=saying)
    assert not (tmp_path / "cache").exists()
