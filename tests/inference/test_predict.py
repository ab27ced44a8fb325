"""Prediction from frames, their true times and texts alone is what `predict_split` gives for a manifest."""

import numpy as np
import pytest

from tests.training.test_trainer import recipe_for
from unloc.annotations.schema import load_manifest
from unloc.cache.opening import open_cache
from unloc.examples.sources import CachedTokens, ClassTexts, VideoFrames
from unloc.inference.load import load_model
from unloc.inference.predict import predict_detections, predict_frames, predict_moments, predict_split
from unloc.inference.windows import Window, moments_in, windows_over
from unloc.training.run import fit_recipe


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("task", ["mr", "hd", "tal", "as"])
def test_frames_times_and_texts_are_enough(token_world, tmp_path, task):
    fit_recipe(recipe_for(task, "train.epochs=0.2"), *token_world, tmp_path / "run", threads=1)
    loaded, cache = load_model(tmp_path / "run"), open_cache(token_world[1])
    manifest = load_manifest(token_world[0]).select("test")
    expected = predict_split(loaded, manifest, CachedTokens(cache))
    cached = cache["v50"]
    video = VideoFrames("mine", cached.frames[0], cached.times_seconds, 16.0)
    if task in ("mr", "hd"):
        wanted = [prediction for prediction in expected if prediction.video_id == "v50"]
        texts = cache.texts([prediction.query for prediction in wanted])
        found = predict_moments(loaded, [video] * len(texts), texts)
        for (windows, saliency), prediction in zip(found, wanted, strict=True):
            np.testing.assert_allclose(windows, prediction.windows, atol=1e-4)
            assert windows[:, :2].min() >= 0 and windows[:, :2].max() <= 16.0
            assert (saliency is None) == (task == "mr")
            if saliency is not None:
                np.testing.assert_allclose(saliency, prediction.saliency, atol=1e-4)
        whole = moments_in(loaded, video, texts, [[Window()]] * len(texts))
        parts = moments_in(loaded, video, texts, [windows_over(0.0, 15.5, 6.0)] * len(texts))
        for index, (windows, saliency) in enumerate(found):
            own = [window for text, window in whole.kept() if text == index]
            np.testing.assert_allclose(own, windows, atol=1e-4)
            assert (np.diff(parts.curve(index).times_seconds) > 0).all()
            if saliency is not None:
                np.testing.assert_allclose(whole.saliency[index], saliency, atol=1e-4)
                assert parts.saliency[index].shape == (8,) and np.isfinite(parts.saliency[index]).all()
        return
    classes = ClassTexts(loaded.info.classes, CachedTokens(cache), loaded.info.recipe.data)
    if task == "tal":
        (found,) = predict_detections(loaded, [video], classes)
        rows = expected[expected["video_id"] == "v50"]
        windows = np.array([window for _, window in found])
        np.testing.assert_allclose(windows, rows[["start_seconds", "end_seconds", "score"]].to_numpy(), atol=1e-4)
        assert [loaded.info.classes[label] for label, _ in found] == list(rows["label"])
    else:
        ((times, logits),) = predict_frames(loaded, [video], classes)
        (wanted,) = [prediction for prediction in expected if prediction.video_id == "v50"]
        np.testing.assert_array_equal(times, wanted.times_seconds)
        np.testing.assert_allclose(logits, wanted.scores, atol=1e-4)
