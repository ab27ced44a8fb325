"""Augmentation: one draw per clip, from the generator alone; without one, what extract makes of the frames."""

import numpy as np
import pytest
import torch

from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest
from unloc.examples.augment import (
    OPERATIONS,
    AugmentConfig,
    ClipTransform,
    augment,
    centre_crop,
    directed_videos,
    randaugment,
)
from unloc.video.preprocess import PreprocessSpec, normalise, resize_and_crop

SPEC = PreprocessSpec(image_size=56, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))  # short side 64 before the crop
FULL = AugmentConfig(scale_jitter=True, randaugment_layers=3)


def rng(seed=0):
    return np.random.default_rng(seed)


def clip(count=4, height=64, width=96, seed=0):
    """Smooth random pictures, as videos are."""
    small = torch.rand(count, 3, 6, 9, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(0, 1) * 255).byte()


@pytest.mark.parametrize("config", [AugmentConfig(), FULL], ids=["crop and flip", "all"])
@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (40, 40), (300, 420)])
def test_clips_are_uint8_of_the_towers_size_and_only_the_generator_decides_them(config, shape):
    frames = clip(3, *shape)
    before, seen = frames.clone(), set()
    for seed in range(20):
        found = augment(frames, SPEC, config, rng(seed))
        assert found.dtype == torch.uint8 and found.shape == (3, 3, 56, 56) and found.is_contiguous()
        assert torch.equal(found, augment(frames, SPEC, config, rng(seed)))
        seen.add(found.numpy().tobytes())
    assert len(seen) > 15 and torch.equal(frames, before)


@pytest.mark.parametrize("seed", range(30))
def test_all_frames_of_a_clip_get_the_same_draw(seed):
    """Equal frames stay equal, whatever was drawn."""
    frames = clip(1).repeat(4, 1, 1, 1)
    found = augment(frames, SPEC, FULL, rng(seed))
    assert torch.equal(found, found[:1].expand_as(found))


def test_a_plain_crop_is_a_window_of_the_frames_mirrored_or_not():
    frames, mirrored, places = clip(2), 0, set()
    windows = frames.unfold(2, 56, 1).unfold(3, 56, 1)  # (T, 3, rows, columns, S, S)
    for seed in range(60):
        found = augment(frames, SPEC, AugmentConfig(), rng(seed))
        for candidate, is_flip in ((found, False), (found.flip(-1), True)):
            same = (windows == candidate[:, :, None, None]).flatten(4).all(-1).all(0).all(0)
            if same.any():
                mirrored += is_flip
                places.add(tuple(same.nonzero()[0].tolist()))
                break
        else:
            raise AssertionError("no window of the frames")
    assert 15 < mirrored < 45 and len(places) > 30


def test_scale_jitter_changes_height_and_width_on_their_own():
    """A picture whose columns and rows are ramps tells the scale of both."""
    rows = torch.linspace(0, 255, 128)[:, None].expand(128, 128)
    frames = torch.stack([rows, rows.T, rows]).byte()[None]
    spec = PreprocessSpec(image_size=112, mean=(0.5,) * 3, std=(0.5,) * 3)
    scales = []
    for seed in range(80):
        found = augment(frames, spec, AugmentConfig(scale_jitter=True, flip=0.0), rng(seed))[0].float()
        down, right = found[0, 10:-10].mean(1).diff().mean(), found[1, :, 10:-10].mean(0).diff().mean()
        scales.append([2 / float(down), 2 / float(right)])
    scales = np.array(scales)
    assert scales.min() > 0.85 and scales.max() < 1.37 and (np.ptp(scales, axis=0) > 0.3).all()
    assert abs(np.corrcoef(scales.T)[0, 1]) < 0.3


def test_videos_with_a_direction_in_their_texts_are_not_mirrored_unless_asked():
    texts = {
        "q1": "the man walks to the left",
        "q2": "Turning RIGHT at the corner",
        "q3": "someone leaves a bright room, upright",
        "q4": "moves a dial counterclockwise",
        "q5": "the leftmost box",
    }
    rows = [VideoRow(key, "t", 9.0) for key in [*texts, "i1", "i2"]]
    rows += [QueryRow(key, "t", key, text, [[0.0, 1.0]]) for key, text in texts.items()]
    rows += [InstanceRow(key, "t", label, [0, 1]) for key, label in (("i1", "turn_left"), ("i2", "jump"))]
    manifest = build_manifest(name="m", tasks=("mr", "tal"), rows=rows, classes=("turn_left", "jump"))
    directed = directed_videos(manifest)
    assert directed == {"q1", "q2", "q4", "q5", "i1"}
    frames = clip()
    config = AugmentConfig(flip=1.0)
    kept = ClipTransform(SPEC, config, directed)(frames, "q1", rng())
    mirrored = ClipTransform(SPEC, config, directed)(frames, "q3", rng())
    assert torch.equal(kept.flip(-1), mirrored) and not torch.equal(kept, mirrored)
    asked = ClipTransform(SPEC, AugmentConfig(flip=1.0, flip_directed=True), directed)
    assert torch.equal(asked(frames, "q1", rng()), mirrored)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_without_a_generator_clips_are_what_extract_makes_of_their_frames(mode):
    spec = PreprocessSpec(image_size=56, mean=SPEC.mean, std=SPEC.std, resize_mode=mode)
    frames = clip()
    found = ClipTransform(spec, FULL)(frames, "x", None)
    for frame, made in zip(frames, found, strict=True):
        assert torch.equal(made, resize_and_crop(frame.permute(1, 2, 0).numpy(), spec))
    same = clip(2, 56, 70)  # already of the right size: nothing is resized
    assert torch.equal(centre_crop(same, SPEC), same[..., 7:63])


def expected_operations(images):
    """The operations at magnitude 10, written out in numpy on (T, 3, H, W) float64."""
    low, high = images.min((0, 2, 3), keepdims=True), images.max((0, 2, 3), keepdims=True)
    grey = (images * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdims=True)
    return {
        0: (images - low) * 255 / (high - low),
        2: 255 - images,
        3: images // 16 * 16,
        4: grey + 1.9 * (images - grey),
        5: grey.mean() + 1.9 * (images - grey.mean()),
        6: 1.9 * images,
        8: np.where(images < 128, images + 110, images),
    }


class Draws:
    """A generator that draws given operations, then the real one's numbers."""

    def __init__(self, *operations):
        self.operations, self.rng = operations, rng()

    def integers(self, high, size=None):
        return np.array(self.operations) if size is not None else self.rng.integers(high)


def test_the_operations_are_those_of_randaugment_at_magnitude_10():
    frames = clip(3) // 2 + 40
    for number, expected in expected_operations(frames.numpy().astype(np.float64)).items():
        found = randaugment(frames, 1, Draws(number)).numpy()
        assert np.abs(found - np.clip(expected, 0, 255)).max() <= 2, number
    equalized = randaugment(frames, 1, Draws(1)).numpy()
    assert np.abs(np.histogram(equalized[:, 0], 8, (0, 256))[0] / equalized[:, 0].size - 1 / 8).max() < 0.05
    sharper = randaugment(frames, 1, Draws(7)).float()
    assert sharper.diff(dim=-1).abs().mean() > frames.float().diff(dim=-1).abs().mean()
    for number in (len(OPERATIONS) + 1, len(OPERATIONS) + 2):
        assert torch.equal(randaugment(frames, 1, Draws(number)), frames)


def test_cutout_blackens_one_square_at_the_same_place_in_all_frames():
    frames = clip(3, 224, 224).clamp(min=1)
    cut = randaugment(frames, 1, Draws(len(OPERATIONS)))
    black = cut == 0
    assert black.any() and torch.equal(black, black[:1, :1].expand_as(black))
    rows, columns = black[0, 0].any(1).sum(), black[0, 0].any(0).sum()
    assert rows * columns == black[0, 0].sum() and 40 <= rows <= 80 and 40 <= columns <= 80
    assert torch.equal(cut[~black], frames[~black])


def test_every_operation_is_drawn_as_often():
    frames, kinds = clip(1, 16, 16), {}
    for seed in range(400):
        kinds[randaugment(frames, 1, rng(seed)).numpy().tobytes()] = seed
    drawn = rng(3).integers(len(OPERATIONS) + 3, size=12_000)
    assert (np.bincount(drawn) > 850).all() and len(np.bincount(drawn)) == 12 and len(kinds) > 9


def test_clips_become_floats_by_the_towers_own_constants():
    frames = clip()[:, :, :56, :56]
    found = normalise(frames[None], SPEC)
    mean, std = torch.tensor(SPEC.mean).view(3, 1, 1), torch.tensor(SPEC.std).view(3, 1, 1)
    torch.testing.assert_close(found, ((frames.float() / 255 - mean) / std)[None], atol=1e-5, rtol=1e-5)
