"""`unloc extract`: where videos come from, where tokens go, and which tokens, as a user asks for them."""

import json

import pytest
from typer.testing import CliRunner

from unloc.annotations.schema import VideoRow, build_manifest, save_manifest
from unloc.cache.opening import open_cache
from unloc.cli import app
from unloc.errors import InputError, MissingError, TowerError


@pytest.fixture
def manifest(tmp_path):
    rows = [VideoRow(name, "t", 1) for name in ("v0", "v1", "v2")]
    save_manifest(build_manifest(name="m", tasks=("mr",), rows=rows), tmp_path / "m.jsonl")
    return tmp_path / "m.jsonl"


def unloc(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def extract(manifest, *words):
    return unloc("extract", manifest, "--workers", 0, "--fps", 2, *words)


def test_from_tar_shards_into_a_store_with_views_and_layers(manifest, video_folder, tmp_path):
    unloc("data", "pack", manifest, "--videos", video_folder, "--out", tmp_path / "shards", "--shard-gib", 1e-6)
    pattern = tmp_path / "shards" / "videos-{000000..000002}.tar"
    kind = ("--frame-token", "gap", "--no-projection", "--last-k", 2, "--dtype", "bfloat16", "--token-dtype", "float32")
    url = "memory://cli/cache"
    done = extract(manifest, "--shards", pattern, "--cache", url, "--views", "centre,flip,crop3", *kind, "--json")
    assert json.loads(done.stdout)["cached_now"] == 3 and json.loads(done.stdout)["cache"] == url
    cache = open_cache(url)
    assert cache["v1"].frames.shape[::2] == (3, 256 + 512) and cache["v1"].frames.dtype == "float32"
    stated = {key: cache.fingerprint[key] for key in ("tower.dtype", "tower.num_layers", "tower.frame_token", "views")}
    assert list(stated.values()) == ["bfloat16", 2, "gap", ["centre", "flip", "crop3"]]
    described = unloc("cache", "info", url, "--json").stdout
    assert json.loads(described)["contents"]["videos cached"] == 3


def test_a_plan_of_a_store_knows_what_is_there(manifest, video_folder):
    url = "memory://cli/planned"
    extract(manifest, "--videos", video_folder, "--cache", url, "--limit", 1)
    told = json.loads(extract(manifest, "--videos", video_folder, "--cache", url, "--plan", "--json").stdout)
    assert (told["videos"], told["cached_before"]) == (2, 1)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ((), InputError, "--videos DIR and --shards"),
        (("--videos", "x", "--shards", "y"), InputError, "--videos DIR and --shards"),
        (("--shards", "nowhere-{0..3}.tar"), MissingError, "4 of 4 "),
        (("--videos", ".", "--views", "flip"), InputError, "expected centre"),
        (("--videos", ".", "--views", ""), InputError, "--views: got ''"),
        (("--videos", ".", "--views", "centre,crop-1"), InputError, "crop-1"),
        (("--videos", ".", "--last-k", 0), InputError, "--last-k: got 0"),
        (
            ("--videos", ".", "--dtype", "float16"),
            InputError,
            "--dtype: got 'float16'",
        ),
        (("--videos", ".", "--token-dtype", "int8"), InputError, "--token-dtype: got 'int8'"),
        (("--videos", ".", "--frame-token", "patch"), InputError, "--frame-token: got 'patch'"),
        (("--videos", ".", "--last-k", 2), TowerError, "--tower toy: "),
        (("--videos", ".", "--cache", "nostore://x/y"), InputError, "nostore://x/y: "),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_nothing_is_written(manifest, tmp_path, words, error, message):
    words = words if "--cache" in words else (*words, "--cache", tmp_path / "cache")
    with pytest.raises(error) as raised:
        extract(manifest, *words, "--coverage", 0)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "cache").exists()
