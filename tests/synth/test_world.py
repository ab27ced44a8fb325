import json
import math

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from unloc.annotations.converters import convert
from unloc.errors import InputError
from unloc.synth.events import plan_video
from unloc.synth.scenes import Scene
from unloc.synth.vocabulary import CLASS_ACTIONS
from unloc.synth.world import encode_video, render_video, render_world, video_frames
from unloc.video.locate import index_videos

SEED = 31


def test_videos_decode_to_the_planned_frames_rate_and_size(world):
    for index in range(3):
        plan = plan_video(SEED, index)
        with av.open(str(world / "videos" / f"{plan.video_id}.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert (stream.width, stream.height) == (plan.width, plan.height)
            times = [frame.time for frame in container.decode(stream)]
        np.testing.assert_allclose(times, np.arange(plan.num_frames) / float(plan.fps), atol=1e-3)


def test_a_video_is_smaller_than_a_megabyte(world):
    assert all(path.stat().st_size < 1_000_000 for path in (world / "videos").glob("*.mp4"))


def test_decoded_pixels_are_the_drawn_ones_but_for_compression(world):
    plan = plan_video(SEED, 0)
    drawn = next(video_frames(plan, SEED)).astype(float)
    with av.open(str(world / "videos" / f"{plan.video_id}.mp4")) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)
    assert np.abs(decoded - drawn).mean() < 12


def test_gop_and_b_frames_are_as_planned(tmp_path):
    plan = next(p for p in (plan_video(SEED, i) for i in range(99)) if p.num_b_frames == 2 and p.gop == 12)
    frames = (frame for frame, _ in zip(video_frames(plan, SEED), range(40), strict=False))
    encode_video(tmp_path / "part", plan, frames)
    with av.open(str(tmp_path / "part")) as container:
        kinds = [PictureType(frame.pict_type).name for frame in container.decode(video=0)]
    assert len(kinds) == 40
    assert all(kinds[number] == "I" for number in (0, 12, 24, 36)) and "B" in kinds


def test_a_video_is_the_same_to_the_byte_whoever_renders_it(world, tmp_path):
    path = tmp_path / f"{plan_video(SEED, 1).video_id}.mp4"
    render_video((SEED, 1, "studio", 0.0, math.inf, str(path)))
    [made] = tmp_path.iterdir()
    assert made.read_bytes() == (world / "videos" / made.name).read_bytes()


def test_worker_processes_give_the_same_world(world, tmp_path):
    render_world(tmp_path / "again", num_videos=3, seed=SEED, workers=2)
    for path in (path for path in world.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(world)).read_bytes()


def test_a_second_run_renders_only_what_is_missing(world):
    paths = sorted((world / "videos").iterdir())
    before = {path: path.stat().st_mtime_ns for path in paths}
    content = paths[1].read_bytes()
    paths[1].unlink()
    progress = []
    render_world(world, num_videos=3, seed=SEED, workers=0, on_progress=lambda *state: progress.append(state))
    assert progress == [(3, 3)]
    assert paths[1].read_bytes() == content
    assert all(path.stat().st_mtime_ns == before[path] for path in (paths[0], paths[2]))


def test_another_style_shows_the_same_events_in_other_pixels(world, tmp_path):
    out = tmp_path / "sketch"
    render_world(out, num_videos=2, seed=SEED, workers=0, style="sketch")
    plan = plan_video(SEED, 0)
    studio, sketch = (next(video_frames(plan, SEED, style)).astype(float) for style in ("studio", "sketch"))
    assert studio.shape == sketch.shape and np.abs(studio - sketch).mean() > 20
    with av.open(str(out / "videos" / f"{plan.video_id}.mp4")) as container:
        assert container.streams.video[0].frames == plan.num_frames
    render_world(tmp_path / "studio", num_videos=2, seed=SEED, workers=0)
    for path in (path for path in (tmp_path / "studio" / "annotations").rglob("*") if path.is_file()):
        assert path.read_bytes() == (out / path.relative_to(tmp_path / "studio")).read_bytes()
    with pytest.raises(InputError, match="overwrite"):
        render_world(out, num_videos=2, seed=SEED, workers=0)


def test_another_seed_is_refused_and_nothing_is_touched(world):
    before = sorted(world.rglob("*"))
    with pytest.raises(InputError, match="overwrite"):
        render_world(world, num_videos=1, seed=SEED + 1, workers=0)
    assert sorted(world.rglob("*")) == before


def test_a_folder_that_is_no_world_is_never_deleted(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="no world"):
        render_world(tmp_path, num_videos=1, seed=0, workers=0, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_annotations_cover_exactly_the_rendered_videos(world):
    database = json.loads((world / "annotations" / "coin.json").read_text())["database"]
    assert {f"{key}.mp4" for key in database} == {path.name for path in (world / "videos").iterdir()}
    assert {entry["subset"] for entry in database.values()} == {"training", "validation", "testing"}


def test_an_object_changes_its_pixels_and_the_light_changes_all():
    plan = plan_video(SEED, 0)
    scene = Scene(np.random.default_rng(0), plan.width, plan.height, plan.duration_seconds)
    event = plan.events[0]
    seconds = 0.5 * (event.start_seconds + event.end_seconds)
    objects = [item.sprite_at(seconds) for item in (*plan.distractors, *plan.events)]
    with_objects, without = scene.frame(seconds, objects).astype(int), scene.frame(seconds, []).astype(int)
    changed = (np.abs(with_objects - without).max(axis=-1) > 20).mean()
    assert 0.005 < changed < 0.4
    gains = np.array([scene.light(t) for t in np.arange(0, plan.duration_seconds, 0.5)])
    assert gains.max() / gains.min() > 1.1


def test_clips_show_the_labelled_events_of_their_videos(tmp_path):
    render_world(tmp_path, num_videos=1, seed=SEED, workers=0, clips=True)
    plan, manifest = plan_video(SEED, 0), convert("kinetics", [tmp_path / "annotations" / "kinetics.csv"])
    events = [event for event in plan.events if event.action in CLASS_ACTIONS]
    assert manifest.name == "synthetic_kinetics" and manifest.splits == [plan.split]
    assert set(manifest.instances["label"]) == {event.action.name for event in events}
    files, missing = index_videos(tmp_path / "clips").locate(manifest.videos)
    assert len(files) == len(manifest.videos) == len(list((tmp_path / "clips").iterdir())) and not missing
    start = int(events[0].start_seconds)
    drawn = next(video_frames(plan, SEED, "studio", start)).astype(float)
    path = next((tmp_path / "clips").glob(f"{plan.video_id}_{start:06d}_*.mp4"))
    with av.open(str(path)) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(float)
    assert np.abs(decoded - drawn).mean() < 12
