"""Labels of action segmentation lie where their frames lie: from the cache through prediction and file to the score."""

import itertools
import json

import numpy as np
import pytest
import torch

from tests.video.rendered import X264, Kind, render, uneven_times
from unloc.annotations.schema import InstanceRow, VideoRow, build_manifest, cached_durations
from unloc.cache.opening import open_cache
from unloc.cache.writing import VideoTokens, create_or_check, token_checksum, write_texts, write_video_shard
from unloc.evaluation.evaluator import evaluate
from unloc.examples.examples import Examples, paint_steps
from unloc.examples.sources import CachedTokens
from unloc.examples.steps import token_spans
from unloc.inference.evaluate_run import baseline_predictions
from unloc.inference.load import CheckpointInfo, LoadedModel
from unloc.inference.predict import predict_split
from unloc.model.unloc import Outputs
from unloc.predictions.reading import read_predictions
from unloc.predictions.writing import write_frames
from unloc.recipes import load_recipe
from unloc.video.facts import scan
from unloc.video.reading import FrameSampling

CLASSES = ("open", "pour", "stir")


def shown_times(frame_times, sampling, last_seconds=0.04):
    """When the frames are shown that a sampling takes, and the end of the video."""
    end = frame_times[-1] + last_seconds
    wanted = sampling.times(frame_times[0], frame_times[-1], end)
    return frame_times[np.searchsorted(frame_times, wanted + 1e-9, side="right") - 1], end


TWO_FPS = FrameSampling(fps=2.0)
VIDEOS = {
    "three minutes of 25 fps": shown_times(np.arange(4500) / 25, TWO_FPS),
    "29.97 fps": shown_times(np.arange(1800) * 1001 / 30000, TWO_FPS),
    "uneven": shown_times(uneven_times(400) / 1000, TWO_FPS),
    "picture after the sound": shown_times(0.7 + np.arange(1000) / 25, TWO_FPS),
    "a number of frames, some repeated": shown_times(np.arange(40) / 2, FrameSampling(num_frames=64), 0.5),
    "one frame": (np.zeros(1), 2.0),
}


@pytest.fixture
def world(tmp_path):
    """(manifest without durations, cache) of videos whose frames are not evenly spaced, steps anywhere in them."""
    return world_of(tmp_path / "cache", VIDEOS)


def world_of(folder, videos):
    rng, tokens, rows = np.random.default_rng(0), [], []
    create_or_check(folder, {"tower.name": "made up"}, {})
    for video_id, (times, end) in videos.items():
        rows.append(VideoRow(video_id, "test", None))
        starts = np.sort(rng.uniform(0, end, max(1, int(end / 8))))
        for start in starts:
            rows.append(InstanceRow(video_id, "test", str(rng.choice(CLASSES)), [start, min(end, start + 5)]))
        stored = rng.normal(size=(len(times), 1, 4)).astype(np.float16)
        meta = {"video_id": video_id, "times_seconds": times.round(6).tolist(), "duration_seconds": end}
        tokens.append(VideoTokens(meta | {"tokens_sha256": token_checksum(stored)}, stored))
    write_video_shard(folder, "00000", tokens, [], "float16")
    write_texts(folder, [(name, np.ones((2, 4), dtype=np.float16)) for name in CLASSES], "float16")
    return build_manifest(name="m", tasks=("as",), rows=rows, classes=CLASSES), open_cache(folder)


def perfect_predictions(manifest, cache, monkeypatch):
    """What a model predicts whose logits are its own training targets."""
    recipe = load_recipe("synth_as", ["data.num_steps=32", "data.prompts=false"])

    labelled = Examples("as", manifest, CachedTokens(cache), recipe.data)

    def true_outputs(model, examples, texts, recipe):
        steps, own = [], [list(group) for _, group in itertools.groupby(examples, lambda example: example.video_id)]
        for windows in own:
            video = labelled.video(windows[0].video_id)
            spans = token_spans(video.times_seconds, video.duration_seconds)
            labels = paint_steps(spans, *labelled.instances(video.video_id))
            steps.append(np.resize(labels, (len(windows), recipe.data.num_steps)))  # what pads the last is masked
        logits = np.where(np.concatenate(steps)[:, None] == np.arange(len(CLASSES))[:, None], 1.0, -1.0)
        return Outputs(torch.from_numpy(logits), None, None)

    monkeypatch.setattr("unloc.inference.predict.class_outputs", true_outputs)
    info = CheckpointInfo(recipe=recipe, classes=CLASSES, frame_dim=4, text_dim=4, fingerprint={}, step=0)
    return predict_split(LoadedModel(torch.nn.Identity(), info), manifest, CachedTokens(cache))


def test_a_model_that_predicts_its_training_targets_scores_100_through_the_file(world, tmp_path, monkeypatch):
    manifest, cache = world
    write_frames(tmp_path / "p.jsonl", perfect_predictions(manifest, cache, monkeypatch))
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["times_seconds"] == np.unique(VIDEOS[row["video_id"]][0].round(6)).tolist() and "fps" not in row
    report = evaluate(
        "as", read_predictions(tmp_path / "p.jsonl", "as").predictions, cached_durations(manifest, cache), "test"
    )
    assert list(report["metrics"].values()) == pytest.approx([100.0] * 7)
    assert report["floors"]["all_background"]["frame_accuracy"] < 70


def test_labels_three_minutes_into_25_fps_at_2_fps_are_where_the_step_is(tmp_path, monkeypatch):
    _, cache = world_of(tmp_path / "c", {"v": VIDEOS["three minutes of 25 fps"]})
    late = build_manifest(
        name="m", tasks=("as",), classes=CLASSES,
        rows=[VideoRow("v", "test", 180.0), InstanceRow("v", "test", "pour", [170.0, 176.0])],
    )  # fmt: skip
    (found,) = perfect_predictions(late, cache, monkeypatch)
    poured = found.times_seconds[[label == "pour" for label in found.labels]]
    assert (poured[0], poured[-1]) == (170.0, 175.48)


def test_videos_from_their_files_to_a_perfect_score(tmp_path, monkeypatch):
    from pipeline.extract import ExtractOptions, extract
    from unloc.inference.encode import EncodeConfig

    kinds = {
        "even": Kind(".mp4", options=X264, num_frames=490),
        "uneven": Kind(".mp4", options=X264, times=uneven_times(120)),
        "late": Kind(".mkv", options=X264, first_stamp=700, num_frames=260),
    }
    files = {name: render(tmp_path / f"{name}{kind.suffix}", kind) for name, kind in kinds.items()}
    options = ExtractOptions(workers=0)
    extract(tmp_path / "cache", EncodeConfig(fps=2.0), options, files, [], list(CLASSES))
    cache = open_cache(tmp_path / "cache")
    assert len(set(np.diff(cache["even"].times_seconds).round(3))) == 2  # 0.48 and 0.52
    rows = [VideoRow(name, "test", scan(path).end_seconds) for name, path in files.items()]
    rows += [InstanceRow(name, "test", CLASSES[n], [2.3 + 3 * n, 4.1 + 3 * n]) for name in files for n in range(2)]
    manifest = build_manifest(name="m", tasks=("as",), rows=rows, classes=CLASSES)
    found = evaluate("as", perfect_predictions(manifest, cache, monkeypatch), manifest, "test")
    assert found["metrics"].pop("mAP_all_classes") == pytest.approx(200 / 3)  # one of three classes never occurs
    assert set(found["metrics"].values()) == {100.0}


def test_the_baseline_places_frames_and_segments_at_true_times(tmp_path):
    times, end = VIDEOS["three minutes of 25 fps"]
    manifest, cache = world_of(tmp_path / "c", {"v": (times, end)})
    (found,) = baseline_predictions("as", manifest, cache)
    np.testing.assert_allclose(found.times_seconds, times)
    bounds = baseline_predictions("tal", manifest, cache)[["start_seconds", "end_seconds"]].to_numpy()
    assert len(bounds) and np.isin(bounds.round(6), np.append(times, end).round(6)).all()
