import pytest

from unloc.synth.events import plan_video
from unloc.synth.world import render_world

SEED = 31


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A rendered world of three videos, one per split."""
    out = tmp_path_factory.mktemp("synth") / "world"
    render_world(out, num_videos=3, seed=SEED, workers=0)
    return out


@pytest.fixture(scope="session")
def plans():
    return [plan_video(SEED, index) for index in range(120)]
