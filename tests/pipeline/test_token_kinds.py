"""Caches of other tokens than the plain ones: views, kinds of frame token, several layers, precision of the tower."""

import numpy as np
import pytest
import torch

from pipeline.extract import ExtractOptions, extract
from unloc.cache.opening import open_cache
from unloc.cache.writing import create_or_check, fingerprint_differences
from unloc.errors import FingerprintError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.load import require_same_cache

IN_PROCESS = ExtractOptions(workers=0)
VIEWS = ("centre", "flip", "crop7")


def cached(tmp_path, video_folder, options=IN_PROCESS, **config):
    files = {name: video_folder / f"{name}.mp4" for name in ("v0", "v1")}
    made = EncodeConfig(fps=2.0, **config)
    extract(tmp_path / "cache", made, options, files, [], ["a cat"])
    return open_cache(tmp_path / "cache")


def test_views_stand_side_by_side_the_centre_first_and_come_back_the_same(tmp_path, video_folder):
    plain = cached(tmp_path / "a", video_folder)
    more = cached(tmp_path / "b", video_folder, views=VIEWS)
    assert more["v0"].frames.shape == (3, *plain["v0"].frames.shape[1:])
    np.testing.assert_array_equal(more["v0"].frames[:1], plain["v0"].frames)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not np.array_equal(more["v0"].frames[one], more["v0"].frames[other])
    again = Encoder(EncodeConfig.from_fingerprint(more.fingerprint)).encode_video(video_folder / "v0.mp4", "v0")
    np.testing.assert_array_equal(np.moveaxis(more["v0"].frames, 0, 1), again.tokens)
    assert more.fingerprint["views"] == list(VIEWS)
    require_same_cache(more.fingerprint, plain.fingerprint, "x")  # view 0 is the centre in both


@pytest.mark.slow
def test_ray_workers_make_the_same_views(tmp_path, video_folder):
    here = cached(tmp_path / "a", video_folder, views=VIEWS)
    there = cached(tmp_path / "b", video_folder, options=ExtractOptions(workers=1), views=VIEWS)
    np.testing.assert_array_equal(here["v1"].frames, there["v1"].frames)


def test_layers_and_kinds_are_named_in_the_fingerprint_and_come_back_from_it(tmp_path, video_folder):
    cache = cached(tmp_path, video_folder, frame_token="gap", projected=False, num_layers=2, tower_dtype="bfloat16")
    named = {key: cache.fingerprint[f"tower.{key}"] for key in ("frame_token", "projected", "num_layers", "dtype")}
    assert named == {"frame_token": "gap", "projected": False, "num_layers": 2, "dtype": "bfloat16"}
    assert cache["v0"].frames.shape[2] == 256 + 512 == cache.fingerprint["tower.frame_dim"]
    again = EncodeConfig.from_fingerprint(cache.fingerprint)
    assert fingerprint_differences(Encoder(again).fingerprint, cache.fingerprint, names=("a", "b")) == ""
    with pytest.raises(FingerprintError, match=r"tower\.dtype: .*'bfloat16'.*'float32'"):
        require_same_cache(cache.fingerprint, cache.fingerprint | {"tower.dtype": "float32"}, "x")


def test_auto_stands_in_the_fingerprint_as_what_it_was_here(tmp_path, video_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert cached(tmp_path / "a", video_folder, tower_dtype="auto").fingerprint["tower.dtype"] == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert cached(tmp_path / "b", video_folder, tower_dtype="auto").fingerprint["tower.dtype"] == "float32"


def test_a_tower_of_another_dtype_makes_another_cache(tmp_path):
    fingerprint = Encoder(EncodeConfig(fps=2.0)).fingerprint
    create_or_check(tmp_path / "cache", fingerprint, {})
    with pytest.raises(FingerprintError, match=r"tower\.dtype"):
        create_or_check(tmp_path / "cache", fingerprint | {"tower.dtype": "bfloat16"}, {})
