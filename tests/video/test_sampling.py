"""The times at which frames are sampled."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unloc.errors import InputError
from unloc.video.reading import FrameSampling


def test_by_number_frames_lie_evenly_from_the_first_to_the_last_frame():
    assert FrameSampling(num_frames=5).times(1.0, 9.0, 9.04).tolist() == [1.0, 3.0, 5.0, 7.0, 9.0]


def test_by_fps_times_are_multiples_from_the_first_frame_on_and_end_before_the_video_does():
    assert FrameSampling(fps=2.0).times(0.0, 1.96, 2.0).tolist() == [0.0, 0.5, 1.0, 1.5]
    assert FrameSampling(fps=2.0).times(0.3, 1.26, 1.31).tolist() == pytest.approx([0.3, 0.8, 1.3])


def test_one_frame_is_the_first():
    assert FrameSampling(num_frames=1).times(0.2, 5.0, 5.1).tolist() == [0.2]


def test_a_video_of_one_frame_gives_as_many_as_asked_for_by_number_and_one_by_fps():
    assert FrameSampling(num_frames=4).times(0.0, 0.0, 0.04).tolist() == [0.0] * 4
    assert FrameSampling(fps=2.0).times(0.0, 0.0, 0.04).tolist() == [0.0]


def test_a_video_without_any_length_still_gives_its_frame():
    assert FrameSampling(fps=2.0).times(0.0, 0.0, 0.0).tolist() == [0.0]


@given(fps=st.floats(0.1, 60), first=st.floats(0, 100), length=st.floats(0.02, 500))
def test_by_fps_all_times_lie_inside_and_none_is_missing(fps, first, length):
    times = FrameSampling(fps=fps).times(first, first + length * 0.99, first + length)
    assert times[0] == first
    assert (np.diff(times) > 0).all()
    assert times[-1] < first + length or len(times) == 1
    assert first + len(times) / fps >= first + length - 1e-4


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_rate_is_an_error(fps):
    with pytest.raises(InputError, match="--fps"):
        FrameSampling(fps=fps)


def test_no_frames_and_both_and_neither_are_errors():
    with pytest.raises(InputError, match="--frames"):
        FrameSampling(num_frames=0)
    with pytest.raises(InputError, match="--fps and --frames"):
        FrameSampling()
    with pytest.raises(InputError, match="--fps and --frames"):
        FrameSampling(fps=1.0, num_frames=3)
