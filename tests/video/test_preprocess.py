"""Our preprocessing is open_clip's own, within two grey levels."""

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from unloc.errors import TowerError
from unloc.video.preprocess import PreprocessSpec, normalise, resize_and_crop

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def natural_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes, hard edges and some grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(4, 60) + y / rng.uniform(4, 60)) for _ in range(3)]
    image = 128 + 90 * np.stack(waves, axis=-1)
    image[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 255, 3)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def by_open_clip(image: np.ndarray, spec: PreprocessSpec) -> torch.Tensor:
    transform = image_transform(
        spec.image_size, is_train=False, mean=spec.mean, std=spec.std,
        interpolation=spec.interpolation, resize_mode=spec.resize_mode,
    )  # fmt: skip
    return transform(Image.fromarray(image))


@pytest.mark.parametrize("size", [(360, 640), (640, 360), (224, 224), (240, 320), (1080, 1920), (97, 161)])
@pytest.mark.parametrize(("interpolation", "resize_mode"), [("bicubic", "shortest"), ("bilinear", "squash")])
def test_pixels_equal_open_clips_transform_within_two_grey_levels(size, interpolation, resize_mode):
    spec = PreprocessSpec(image_size=224, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=resize_mode)
    image = natural_image(*size)
    ours = normalise(resize_and_crop(image, spec)[None], spec)[0]
    theirs = by_open_clip(image, spec)
    assert ours.shape == theirs.shape == (3, 224, 224)
    grey_levels = (ours - theirs) * torch.tensor(STD).view(3, 1, 1) * 255
    assert grey_levels.abs().max() <= 2.01
    assert 10 * torch.log10(255**2 / grey_levels.square().mean().clamp_min(1e-12)) > 70


def test_tiny_images_enlarged_stay_within_two_grey_levels():
    spec = PreprocessSpec(image_size=224, mean=MEAN, std=STD)
    image = natural_image(121, 64)
    grey_levels = (normalise(resize_and_crop(image, spec)[None], spec)[0] - by_open_clip(image, spec)) * 255 * 0.27
    assert grey_levels.abs().max() <= 2.1


def test_the_crop_is_the_middle_of_the_long_side():
    spec = PreprocessSpec(image_size=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    image = np.zeros((32, 96, 3), dtype=np.uint8)
    image[:, 32:64] = 255
    assert (resize_and_crop(image, spec) == 255).all()


def test_black_white_and_one_pixel_survive():
    spec = PreprocessSpec(image_size=32, mean=MEAN, std=STD)
    for value in (0, 255):
        pixels = resize_and_crop(np.full((1, 1, 3), value, dtype=np.uint8), spec)
        assert pixels.shape == (3, 32, 32)
        assert (pixels == value).all()


def test_an_unknown_interpolation_is_an_error():
    with pytest.raises(TowerError, match="'nearest'"):
        PreprocessSpec(image_size=32, mean=MEAN, std=STD, interpolation="nearest")
