"""`unloc cache` as a user meets it."""

import re

import pytest
from typer.testing import CliRunner

from pipeline.extract import ExtractOptions, extract
from unloc.cli import app
from unloc.errors import CacheError, MissingError
from unloc.inference.encode import EncodeConfig


def unloc(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def cache(tmp_path, video_folder):
    files = {f"v{n}": video_folder / f"v{n}.mp4" for n in range(3)}
    extract(tmp_path / "cache", EncodeConfig(fps=2.0), ExtractOptions(workers=0, shard_size=2), files, [], ["a cat"])
    return tmp_path / "cache"


def test_a_whole_cache_is_called_whole(cache):
    assert "3 videos and 1 texts, every checksum holds" in unloc("cache", "verify", cache).stdout


def test_bit_rot_is_named_and_mended_from_the_folder_of_videos(cache, video_folder):
    file = cache / "shards/00000/frames/c/0/0/0"
    before = file.read_bytes()
    file.write_bytes(before[:5] + bytes([before[5] ^ 1]) + before[6:])
    with pytest.raises(CacheError, match=r"1 places are broken; mend it with --repair --videos DIR"):
        unloc("cache", "verify", cache)
    with pytest.raises(MissingError, match=re.escape("video 'v0' (v0.mp4) is not in the video folder")):
        unloc("cache", "verify", cache, "--repair")
    done = unloc("cache", "verify", cache, "--repair", "--videos", video_folder)
    assert "broken: shards/00000: video v0" in done.stderr
    assert "mended 1 of 1 places" in done.stdout and "every checksum holds" in done.stdout
    assert file.read_bytes() == before
