from dataclasses import replace

import numpy as np
import pytest
import torch

from unloc.cache.opening import open_cache
from unloc.cache.writing import VideoTokens, create_or_check, write_video_shard
from unloc.errors import InputError
from unloc.examples.sources import CachedTokens
from unloc.video.preprocess import PreprocessSpec, make_views, resize_and_crop, resize_for_crop
from unloc.video.reading import FrameSampling

SPEC = PreprocessSpec(image_size=28, mean=(0.5,) * 3, std=(0.25,) * 3)


def picture(height=60, width=90, seed=0):
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))


def views_of(names, content="a", image=None, spec=SPEC):
    return make_views(picture() if image is None else image, names, spec, content)


def test_the_centre_is_the_towers_own_crop_and_flip_its_mirror_image():
    centre, flip = views_of(("centre", "flip"))
    torch.testing.assert_close(centre, resize_and_crop(picture(), SPEC), atol=0, rtol=0)
    torch.testing.assert_close(flip, centre.flip(-1), atol=0, rtol=0)
    assert views_of(("centre",)).shape == (1, 3, 28, 28)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_a_crop_is_a_window_of_the_larger_picture_mirrored_or_not(mode):
    spec = replace(SPEC, resize_mode=mode)
    larger = resize_for_crop(picture(), replace(spec, image_size=32))
    windows = larger.unfold(1, 28, 1).unfold(2, 28, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
    crop = views_of(("centre", "crop0"), spec=spec)[1]
    assert any(torch.equal(crop, found) or torch.equal(crop.flip(-1), found) for found in windows)


def test_a_crop_is_one_choice_per_video_drawn_from_its_number_and_the_content():
    names = ("centre", "crop0", "crop1")
    one = views_of(names, "a")
    torch.testing.assert_close(views_of(names, "a"), one, atol=0, rtol=0)
    assert not torch.equal(one[1], one[2]) and not torch.equal(views_of(names, "b")[1], one[1])
    torch.testing.assert_close(views_of(("centre", "crop1"), "a")[1], one[2], atol=0, rtol=0)
    # The window is the same in every frame, so another picture gives another crop.
    assert not torch.equal(one[1], views_of(names, "a", picture()[:, ::-1].copy())[1])


def test_crops_are_all_over_the_picture_and_half_of_them_are_mirrored():
    ramp = np.broadcast_to(np.arange(320, dtype=np.uint8)[None, ::1, None] // 2, (320, 320, 3)).copy()
    spec = PreprocessSpec(image_size=280, mean=(0.5,) * 3, std=(0.25,) * 3)
    crops = [views_of(("centre", f"crop{n}"), "x", ramp, spec)[1].int() for n in range(60)]
    mirrored = [bool(crop[0, 0, 0] > crop[0, 0, -1]) for crop in crops]
    lefts = {int(min(crop[0, 0, 0], crop[0, 0, -1])) for crop in crops}
    assert 15 < sum(mirrored) < 45 and len(lefts) > 10


@pytest.mark.parametrize(
    "views", [(), ("flip",), ("centre", "centre"), ("centre", "crop"), ("centre", "crop01"), ("x",)]
)
def test_unknown_and_repeated_views_are_refused(views):
    with pytest.raises(InputError, match="--views"):
        FrameSampling(fps=1.0, views=views)


def test_training_draws_any_view_and_evaluation_reads_the_centre(tmp_path):
    tokens = np.stack([np.full((4, 8), view, np.float16) for view in range(3)], axis=1)
    meta = {"video_id": "a", "times_seconds": [0.0, 1.0, 2.0, 3.0], "duration_seconds": 4.0}
    create_or_check(tmp_path / "c", {"dtype": "float16", "views": ["centre", "flip", "crop0"]}, {})
    write_video_shard(tmp_path / "c", "00000", [VideoTokens(meta, tokens)], [], "float16")
    source = CachedTokens(open_cache(tmp_path / "c"))
    assert not source.frames("a", None)[0].any()
    drawn = {float(source.frames("a", np.random.default_rng(n))[0].mean()) for n in range(20)}
    assert drawn == {0.0, 1.0, 2.0}
