import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unloc.examples.examples import windows_of
from unloc.examples.sources import VideoFrames
from unloc.examples.steps import TimeGrid, linspace_steps, nearest_index


@given(st.floats(-10, 100), st.floats(0.01, 10), st.lists(st.floats(-1e4, 1e4), min_size=1))
def test_steps_and_seconds_are_inverse(start, spacing, seconds):
    grid = TimeGrid(start, spacing)
    np.testing.assert_allclose(grid.to_seconds(grid.to_steps(seconds)), seconds, atol=1e-6)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20, unique=True), st.lists(st.floats(-5, 105), min_size=1))
def test_nearest_index_is_the_nearest(times, wanted):
    times = np.sort(times)
    chosen = nearest_index(times, np.asarray(wanted))
    best = np.abs(times[None] - np.asarray(wanted)[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(times[chosen] - wanted), best)


def test_linspace_over_as_many_tokens_as_steps_takes_each_once():
    times = np.linspace(0, 12.7, 128)
    grid, chosen = linspace_steps(times, 128)
    assert chosen.tolist() == list(range(128))
    assert grid.seconds_per_step == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("num_tokens", "num_steps"), [(1179, 128), (300, 128), (37, 128), (128, 128), (151, 144), (1, 4)]
)
def test_floor_takes_the_frame_that_the_official_sampling_counts_to(num_tokens, num_steps):
    times = np.floor(np.arange(num_tokens) * 2.5) / 25  # frames of a 25 fps video shown at 10 per second: uneven
    grid, chosen = linspace_steps(times, num_steps, pick="floor")
    last = num_tokens - 1
    assert chosen.tolist() == [step * last // (num_steps - 1) for step in range(num_steps)]
    nearest_grid, nearest = linspace_steps(times, num_steps)
    assert grid == nearest_grid and (nearest >= chosen - 1).all()
    assert (nearest != chosen).any() == (num_tokens not in (128, 1))


def test_floor_of_a_crop_or_a_jittered_step_is_the_last_frame_before_it():
    times = np.arange(100) * 0.1
    grid, chosen = linspace_steps(times, 20, crop=(2.05, 5.0), pick="floor")
    wanted = grid.to_seconds(np.arange(20))
    assert (times[chosen] <= wanted + 1e-5).all() and (times[chosen + 1] > wanted).all()
    _, jittered = linspace_steps(times, 20, rng=np.random.default_rng(0), pick="floor")
    assert jittered.min() >= 0 and (jittered != linspace_steps(times, 20, pick="floor")[1]).any()


def test_a_short_video_repeats_tokens_and_a_single_token_still_has_a_grid():
    _, chosen = linspace_steps(np.array([0.0, 1.0]), 4)
    assert chosen.tolist() == [0, 0, 1, 1]
    grid, chosen = linspace_steps(np.array([0.5]), 4)
    assert chosen.tolist() == [0, 0, 0, 0] and grid.seconds_per_step > 0


def test_jitter_stays_within_half_a_step():
    times = np.arange(0, 100, 0.1)
    grid, chosen = linspace_steps(times, 50, rng=np.random.default_rng(0))
    shift = times[chosen] - grid.to_seconds(np.arange(50))
    assert np.abs(shift).max() <= 0.5 * grid.seconds_per_step + 0.06
    assert np.abs(shift).max() > 0.2 * grid.seconds_per_step


def test_windows_cover_every_token_once_and_mask_the_rest():
    video = VideoFrames("v", np.arange(10.0)[:, None], np.arange(10.0), 10.0)
    seen = [value for window in windows_of(video, 4) for value in window.frames[window.frame_mask].flatten()]
    assert seen == list(range(10))
