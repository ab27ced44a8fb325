"""A model over any video file: what `unloc eval` predicts of the cached video, in windows where it is long."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import unloc as library
from tests.conftest import render_video
from unloc.cache.opening import open_cache
from unloc.cache.writing import audit_cache
from unloc.examples.sources import VideoFrames
from unloc.inference import video_model
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.load import load_model
from unloc.inference.predict import predict_detections, predict_moments
from unloc.inference.video_model import load
from unloc.inference.windows import Window, best_windows, moments_in, windows_over
from unloc.synth import toy_unloc_folder
from unloc.synth.world import render_world

QUERY = "a red circle rising"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two rendered videos with annotations."""
    out = tmp_path_factory.mktemp("own") / "world"
    render_world(out, num_videos=2, seed=31, workers=0)
    return out


@pytest.fixture(scope="module")
def video(world):
    return sorted(world.glob("videos/*.mp4"))[0]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return load("toy", cache=tmp_path_factory.mktemp("tokens") / "cache")


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """Four minutes at one frame a second, which is longer than any video of the training."""
    return render_video(tmp_path_factory.mktemp("long") / "long.mp4", num_frames=240, fps=1)


@pytest.mark.parametrize("task", ["mr", "tal", "as"])
def test_predictions_of_a_file_are_those_of_eval_on_its_cached_tokens(task, world, tmp_path, monkeypatch, unloc):
    monkeypatch.chdir(tmp_path)
    source = {"mr": "activitynet_captions", "tal": "activitynet.json", "as": "coin.json"}[task]
    kind = {"mr": "activitynet-captions", "tal": "activitynet", "as": "coin"}[task]
    assert unloc("data", "convert", kind, "--annotations", world / "annotations" / source, "--out", "m.jsonl")[0] == 0
    assert unloc("extract", "m.jsonl", "--videos", world / "videos", "--cache", "c", "--fps", 4, "--workers", 0)[0] == 0
    first = json.loads(Path("m.jsonl").read_text().splitlines()[1])
    checkpoint, name = toy_unloc_folder(task), first["video_id"]
    of_split = ["--manifest", "m.jsonl", "--cache", "c", "--split", first["split"]]
    suffix = "json" if task == "tal" else "jsonl"
    code, _, errors = unloc("eval", checkpoint, *of_split, "--out", "e", "--export", f"eval.{suffix}")
    assert code == 0, errors
    asked = []
    if task == "mr":
        rows = [json.loads(line) for line in Path("m.jsonl").read_text().splitlines()]
        asked = [
            word for row in rows if row["kind"] == "query" and row["video_id"] == name for word in ("-q", row["text"])
        ]
    file = next(
        path for path in (world / "videos").iterdir() if path.stem.removeprefix("v_") == name.removeprefix("v_")
    )
    options = ["--checkpoint", checkpoint, "--cache", "own", "--top", 1000, "--min-score", 0]
    code, _, errors = unloc("predict", file, *asked, *options, "-o", f"predict.{suffix}")
    assert code == 0, errors
    if task == "tal":
        expected, found = (json.loads(Path(f"{which}.json").read_text())["results"] for which in ("eval", "predict"))
        expected, found = expected[name], found[file.stem]
        assert [row["label"] for row in found] == [row["label"] for row in expected]
        np.testing.assert_allclose([row["segment"] for row in found], [row["segment"] for row in expected], atol=0.02)
        np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in expected], atol=1e-5)
        return
    lines = (
        [json.loads(line) for line in Path(f"{which}.jsonl").read_text().splitlines()] for which in ("eval", "predict")
    )
    expected, found = lines
    if task == "as":
        (expected,) = [row for row in expected if row["video_id"] == name]
        assert found[0]["labels"] == expected["labels"] and found[0]["times_seconds"] == expected["times_seconds"]
        return
    monkeypatch.setattr(Encoder, "encode_video", None)  # a cache of extract has the tokens
    again = [
        "predict",
        file,
        *asked,
        *options[:2],
        "--cache",
        "c",
        "--top",
        1000,
        "--min-score",
        0,
        "-o",
        "again.jsonl",
    ]
    assert unloc(*again)[0] == 0 and Path("again.jsonl").read_text() == Path("predict.jsonl").read_text()
    by_query = {row["query"]: row["pred_relevant_windows"] for row in expected if row["vid"] == name}
    assert len(found) == len(by_query) > 1
    for row in found:
        wanted = by_query[row["query"]]
        assert len(row["pred_relevant_windows"]) == len(wanted)
        np.testing.assert_allclose(row["pred_relevant_windows"], wanted, atol=0.02)


def test_the_second_query_reads_no_video_and_a_copy_has_the_same_tokens(toy, video, tmp_path, monkeypatch):
    first = toy.predict(video, [QUERY])

    def fails(*args, **options):
        raise AssertionError("decoded again")

    monkeypatch.setattr(type(toy.encoder), "encode_video", fails)
    assert toy.predict(str(video), QUERY).moments == first.moments
    copy = tmp_path / "another name.mp4"
    copy.write_bytes(video.read_bytes())
    found = toy.predict(copy, [QUERY, "a blue star"])
    own = found.to_pandas().query("label == @QUERY")
    np.testing.assert_allclose(own.iloc[:, 2:], first.to_pandas().iloc[:, 2:], atol=1e-4)
    assert found.video_id == "another name"


def test_a_file_that_changes_is_read_again(toy, tmp_path):
    path = render_video(tmp_path / "v.mp4", num_frames=12, seed=1)
    before = toy.predict(path, [QUERY])
    render_video(path, num_frames=18, seed=2)
    assert toy.predict(path, [QUERY]).duration_seconds > before.duration_seconds


def test_tokens_that_cannot_be_kept_are_used_all_the_same(video, tmp_path, caplog):
    from unloc.files import folder_lock

    model = load("toy", cache=tmp_path / "cache")
    expected = model.predict(video, [QUERY])
    other = load("toy", cache=tmp_path / "other")
    (tmp_path / "other").mkdir()
    with folder_lock(tmp_path / "other"):
        assert other.predict(video, [QUERY]).moments == expected.moments
    assert "not kept" in caplog.text


def test_several_that_predict_at_once_wait_for_each_other_to_write_the_cache(video, tmp_path, caplog):
    models = [load("toy", cache=tmp_path / "cache") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda model: model.predict(video, [QUERY]).moments, models)
    assert others == [first, first] and "not kept" not in caplog.text
    assert not audit_cache(tmp_path / "cache").damages


def test_a_prediction_is_a_table_a_picture_and_a_sequence(toy, video):
    found = toy.predict(video, [QUERY, "a blue star"])
    table = found.to_pandas()
    assert len(table) == len(found) and list(table["label"].unique()) == [QUERY, "a blue star"]
    assert found[0].end > found[0].start >= 0 and found[0].text == QUERY
    curve = found.curves[QUERY]
    assert (np.diff(curve.times_seconds) > 0).all() and 0 <= curve.relevance.min() <= curve.relevance.max() <= 1
    assert curve.relevance.max() == pytest.approx(found[0].score, abs=1e-6)
    assert all(0 < score < 1 for score in found.existence.values()) and 0 < found.threshold < 1
    assert len(found.show().axes) == 2
    assert [len(found.best(top=2, min_score=0.0)), len(found.best(min_score=1.1))] == [4, 0]
    kept = {text for text, score in found.existence.items() if score >= found.threshold}
    assert {one.text for one in found.best()} == kept


def test_load_needs_no_torch_until_it_is_called():
    assert library.load is load


# -- windows


def test_windows_overlap_by_half_and_own_the_whole_video_once():
    windows = windows_over(0.0, 100.0, 40.0)
    assert windows[0].start == 0.0 and windows[-1].end == 100.0
    for one, following in pairwise(windows):
        assert 0 < following.start - one.start <= 20.0 and one.own_end == following.own_start
        assert one.start < one.own_end < one.end
        # A segment of half a window whose middle is its own is inside of it.
        assert one.own_end + 10.0 <= one.end + 1e-9 and following.own_start - 10.0 >= following.start - 1e-9
    assert windows_over(0.0, 39.0, 40.0) == [Window()]


def test_one_window_gives_what_predict_moments_gives(token_video):
    loaded, video, texts = token_video
    found = moments_in(loaded, video, texts, [[Window()]] * len(texts)).kept()
    for index, (windows, _) in enumerate(predict_moments(loaded, [video] * len(texts), texts)):
        np.testing.assert_allclose([window for text, window in found if text == index], windows, atol=1e-5)


@pytest.fixture(scope="module")
def token_video(toy, video):
    tokens = toy.tokens.of(video)
    frames = VideoFrames("v", tokens.frames[0], tokens.times_seconds, tokens.meta["duration_seconds"])
    return toy.loaded, frames, toy.encode_texts([QUERY, "a blue star", "a green cross falling"])


def test_a_moment_is_found_once_wherever_the_borders_of_windows_are(token_video):
    """A video behind pauses of different lengths: its best moment moves with it, and no second one is as good."""
    loaded, video, texts = token_video
    ((_, best), *_) = moments_in(loaded, video, texts[:1], [[Window()]]).kept()
    step = video.times_seconds[1] - video.times_seconds[0]
    for pause in (40, 47, 53):
        count = round(pause / step)
        frames = np.concatenate([np.repeat(video.frames[:1], count, axis=0), video.frames])
        frames = np.concatenate([frames, np.repeat(video.frames[-1:], 200, axis=0)])
        times = np.arange(len(frames)) * step
        moved = VideoFrames("long", frames, times, float(times[-1] + step))
        windows = windows_over(times[0], times[-1], video.duration_seconds)
        found = [window for _, window in moments_in(loaded, moved, texts[:1], [windows]).kept()]
        overlaps = [min(w[1], best[1] + pause) - max(w[0], best[0] + pause) for w in found]
        whole = [w for w, o in zip(found, overlaps, strict=True) if o > 0.6 * (max(w[1] - w[0], best[1] - best[0]))]
        assert whole, pause
        assert sum(w[2] > 0.7 * whole[0][2] for w in whole) == 1


def test_long_videos_are_seen_in_windows_and_searched_from_ten_minutes_on(toy, long_video, monkeypatch):
    found = toy.predict(long_video, [QUERY])
    assert found.windows == found.grounded > 10 and "windows of" in found.how
    monkeypatch.setattr(video_model, "SEARCHED_FROM_SECONDS", 200.0)
    monkeypatch.setattr(video_model, "GROUNDED_WINDOWS", 3)
    searched = toy.predict(long_video, [QUERY, "a blue star"])
    assert (searched.windows, searched.grounded) == (found.windows, 3) and "ranked by similarity" in searched.how
    assert len(searched.curves[QUERY].times_seconds) < len(found.curves[QUERY].times_seconds)


def test_a_model_of_a_number_of_frames_has_that_number_in_each_window_of_a_long_video(video, long_video, tmp_path):
    toy = load_model(toy_unloc_folder("mr"))
    sampling = {"sampling.num_frames": 96, "sampling.fps": None}
    loaded = replace(toy, info=replace(toy.info, fingerprint=toy.info.fingerprint | sampling))
    model = video_model.VideoModel("even", loaded, Encoder(EncodeConfig(num_frames=96)), tmp_path / "cache")
    assert model.predict(video, [QUERY]).windows == 1
    found = model.predict(long_video, [QUERY])
    assert found.windows > 10
    assert len(found.row["times_seconds"]) == pytest.approx(240 * 96 / 39.5, rel=0.01)
    assert model.predict(long_video, [QUERY]).moments == found.moments
    assert len(model.predict(video, [QUERY]).row["times_seconds"]) == 96


def test_the_windows_with_the_most_similar_frames_are_chosen():
    windows, times = windows_over(0.0, 100.0, 20.0), np.arange(0, 101.0)
    similarity = np.where((times > 50) & (times < 54), 1.0, 0.0)
    (chosen,) = best_windows(windows, times, similarity, 1)
    assert chosen.own_start <= 52 < chosen.own_end
    assert best_windows(windows, times, similarity, 99) == windows


def test_classes_in_parts_give_what_all_at_once_give(toy, video, monkeypatch):
    model = load("toy", task="tal", cache=toy.cache)
    expected = model.predict(video)
    monkeypatch.setattr(video_model, "CLASSES_AT_ONCE", 7)
    monkeypatch.setattr(video_model, "MANY_TEXTS", 5)
    found = model.predict(video)
    assert [one.text for one in found] == [one.text for one in expected]
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], atol=1e-5)
    loaded = load_model(toy_unloc_folder("tal"))
    assert len(found) == len(predict_detections(loaded, [frames_of(model, video)], class_texts(model))[0])


def frames_of(model, video):
    tokens = model.tokens.of(video)
    return VideoFrames("v", tokens.frames[0], tokens.times_seconds, tokens.meta["duration_seconds"])


def class_texts(model):
    from unloc.examples.sources import ClassTexts

    return ClassTexts(model.classes, model, model.loaded.info.recipe.data)


def test_the_tokens_are_a_cache_that_the_cache_commands_read(toy, video):
    toy.predict(video, [QUERY])
    cache = open_cache(toy.cache)
    assert cache.fingerprint == toy.encoder.fingerprint
    assert any(cache.row(video_id)["file"] == video.name for video_id in cache.places)
