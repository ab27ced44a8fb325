import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unloc.data.steps import TimeGrid, linspace_steps, nearest_index, window_offsets, window_steps
from unloc.errors import InputError


@given(st.floats(-10, 100), st.floats(0.01, 10), st.lists(st.floats(-1e4, 1e4), min_size=1))
def test_steps_and_seconds_are_inverse(start, spacing, seconds):
    grid = TimeGrid(start, spacing)
    np.testing.assert_allclose(grid.to_seconds(grid.to_steps(seconds)), seconds, atol=1e-6)


def test_a_grid_without_extent_is_refused():
    with pytest.raises(InputError, match="positive"):
        TimeGrid(0.0, 0.0)


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
    times = np.arange(10) * 0.5
    seen = []
    for offset in window_offsets(10, 4):
        grid, index, mask = window_steps(times, 4, offset)
        assert grid.start_seconds == times[offset] and grid.seconds_per_step == 0.5
        seen += index[mask].tolist()
    assert seen == list(range(10))
