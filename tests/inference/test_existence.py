"""Whether a query is in a video at all: the calibration of fit, what predict and eval make of it."""

import json

import numpy as np
import pytest

from tests.training.test_trainer import recipe_for
from unloc.annotations.schema import load_manifest
from unloc.cache.opening import open_cache
from unloc.errors import InputError
from unloc.examples.sources import CachedTokens
from unloc.inference.calibrate import best_threshold, calibrate, fit_logistic
from unloc.inference.existence import (
    Calibration,
    best_score,
    evidence,
    mean_direction,
    read_calibration,
    write_calibration,
)
from unloc.inference.load import load_model
from unloc.inference.predict import predict_split
from unloc.inference.video_model import load
from unloc.synth import toy_unloc_folder
from unloc.synth.world import render_world
from unloc.training.run import fit_recipe


def test_the_logistic_fit_separates_and_a_useless_column_gets_no_weight():
    rng = np.random.default_rng(0)
    is_there = np.arange(400) % 4 == 0
    columns = np.column_stack([3.0 * is_there + rng.normal(size=400), rng.normal(size=400), np.zeros(400)])
    weights, bias = fit_logistic(columns, is_there)
    assert weights[0] > 1.0 and abs(weights[1]) < 0.3 and weights[2] == pytest.approx(0.0, abs=1e-6)
    scores = 1 / (1 + np.exp(-(columns @ weights + bias)))
    assert scores[is_there].mean() > 0.8 > 0.2 > scores[~is_there].mean()
    # Balanced: with three times as many that are not there, 0.5 still lies between the two means.
    assert 1 / (1 + np.exp(-(1.5 * weights[0] + bias))) == pytest.approx(0.5, abs=0.06)
    threshold = best_threshold(scores, is_there)
    assert (scores[is_there] >= threshold).mean() > 0.85 and (scores[~is_there] < threshold).mean() > 0.85


def test_evidence_is_the_best_score_and_the_similarity_above_that_with_other_videos():
    frames, text = np.eye(4, dtype=np.float16)[[0, 0, 0, 1, 2, 3]], np.stack([np.ones(4), np.eye(4)[0]])
    background = np.array([0.1, 0.5, 0.0, 0.0])
    np.testing.assert_allclose(evidence(0.5, frames, text, background), [0.0, 0.9, 0.4], atol=1e-6)
    assert evidence(0.0, frames, text, background)[0] < -6 and best_score(np.zeros((0, 3))) == 0.0
    assert (evidence(0.0, frames, np.ones((2, 8)), background)[1:] == 0).all()  # of another width
    np.testing.assert_allclose(mean_direction(3 * frames), [0.5, 1 / 6, 1 / 6, 1 / 6], atol=1e-6)


@pytest.mark.usefixtures("undrawn")
def test_fit_calibrates_the_best_checkpoint_and_predictions_state_existence(token_world, tmp_path):
    run, (manifest, cache) = tmp_path / "run", token_world
    fit_recipe(recipe_for("mr", "train.epochs=1"), *token_world, run, threads=1)
    loaded, source = load_model(run), CachedTokens(open_cache(cache))
    assert loaded.calibration.fitted_on["split"] == "val" and 0 < loaded.calibration.threshold < 1
    assert loaded.calibration == calibrate(loaded, load_manifest(manifest).select("val"), source)
    found = predict_split(loaded, load_manifest(manifest).select("test"), source)
    assert all(0 <= item.existence <= 1 for item in found)
    assert np.mean([item.existence >= loaded.calibration.threshold for item in found]) > 0.7
    assert load_model(run / "checkpoints" / "last").info.step > 0  # a checkpoint alone loads with it or without


@pytest.mark.usefixtures("undrawn")
def test_without_enough_queries_or_validation_there_is_no_calibration(token_world, tmp_path):
    manifest, cache = load_manifest(token_world[0]), CachedTokens(open_cache(token_world[1]))
    fit_recipe(recipe_for("mr", "train.epochs=0.2", "data.val_split="), *token_world, tmp_path / "run", threads=1)
    loaded = load_model(tmp_path / "run")
    assert loaded.calibration is None
    few = manifest.select("val").filter(lambda table: table["video_id"] == "v40")
    assert calibrate(loaded, few, cache) is None


def test_a_calibration_is_read_as_it_was_written_and_a_damaged_one_refused(tmp_path):
    one = Calibration(
        weights=(1.0, 2.0, 3.0), bias=-1.0, background=(0.5, 0.1), threshold=0.4, fitted_on={"split": "val"}
    )
    write_calibration(tmp_path, "mr", one)
    write_calibration(tmp_path, "hd", one)
    assert read_calibration(tmp_path, "mr") == read_calibration(tmp_path, "hd") == one
    assert read_calibration(tmp_path, "tal") is None
    (tmp_path / "calibration.json").write_text('{"mr": 3}')
    with pytest.raises(InputError, match="calibration"):
        read_calibration(tmp_path, "mr")


def test_toy_says_which_of_two_queries_is_in_the_video(tmp_path_factory, unloc, monkeypatch):
    folder = tmp_path_factory.mktemp("existence")
    render_world(folder / "world", num_videos=1, seed=31, workers=0)
    (video,) = (folder / "world" / "videos").iterdir()
    captions = json.loads((folder / "world/annotations/activitynet_captions/train.json").read_text())
    sentences = captions[video.stem]["sentences"]
    model = load("toy", cache=folder / "cache")
    assert load_model(toy_unloc_folder("mr")).calibration.threshold == model.loaded.calibration.threshold
    there = model.predict(video, sentences)
    shown = {word for text in sentences for word in text.lower().split()}
    colours = [one for one in ("red", "yellow", "green", "blue", "purple", "black") if one not in shown]
    absent = model.predict(video, [f"A {colour} star blinks in the picture" for colour in colours])
    assert np.mean(list(there.existence.values())) > np.mean(list(absent.existence.values())) + 0.2
    text = max(there.existence, key=there.existence.get)
    words = ("predict", video, "-q", text, "--checkpoint", "toy", "--cache", folder / "cache", "--json")
    code, out, _ = unloc(*words)
    (found,) = json.loads(out)
    assert code == 0 and found["threshold"] == model.loaded.calibration.threshold
    assert found["answers"][0]["existence"] == pytest.approx(there.existence[text], abs=1e-5)
