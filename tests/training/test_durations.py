"""Lengths of videos: stated, from a cache, measured from the files, and refused where nobody knows them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.training.test_trainer import recipe_for
from unloc.annotations.own import Media
from unloc.annotations.schema import (
    VideoRow,
    build_manifest,
    cached_durations,
    load_manifest,
    save_manifest,
)
from unloc.cache.opening import open_cache
from unloc.errors import InputError
from unloc.training.run import fit_recipe
from unloc.video.facts import scan

HEADER = '{"kind": "manifest", "version": 1, "name": "m", "tasks": ["mr"]}\n'


@pytest.fixture
def forgetful(token_world, tmp_path):
    """The manifest of the world of tokens, without durations."""
    loaded = load_manifest(token_world[0])
    save_manifest(replace(loaded, videos=loaded.videos.assign(duration_seconds=np.nan)), tmp_path / "null.jsonl")
    return tmp_path / "null.jsonl"


def report_of(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("task", ["mr", "tal", "as", "hd"])
def test_with_a_cache_unknown_durations_change_no_metric_and_no_floor(unloc, token_world, forgetful, tmp_path, task):
    stated, cache = token_world
    file = tmp_path / ("p.json" if task == "tal" else "p.jsonl")
    words = ("--split", "test", "--task", task)
    baseline = ("eval", "--baseline", *words, "--cache", cache)
    assert unloc(*baseline, "--manifest", stated, "--export", file, "--out", tmp_path / "a.json")[0] == 0
    assert unloc(*baseline, "--manifest", forgetful, "--out", tmp_path / "b.json")[0] == 0
    scored = ("eval", "--predictions", file, *words, "--manifest", forgetful, "--out", tmp_path / "c.json")
    code, _, err = unloc(*scored)
    assert code == 2 and "no duration" in err and "--cache" in err and err.count("\n") == 1
    assert not (tmp_path / "c.json").exists()
    assert unloc(*scored, "--cache", cache)[0] == 0
    first, *others = (report_of(tmp_path / f"{name}.json") for name in "abc")
    for other in others:
        assert other["metrics"] == pytest.approx(first["metrics"], nan_ok=True, abs=1e-4)
        assert other["floors"] == first["floors"]
    assert any(value > 0 for floor in first["floors"].values() for value in floor.values())


def test_floors_alone_take_durations_from_a_cache_too(unloc, token_world, forgetful):
    words = ("eval", "--floors-only", "--task", "mr", "--split", "test", "--manifest", forgetful)
    code, _, err = unloc(*words)
    assert code == 2 and "--cache" in err
    code, out, _ = unloc(*words, "--cache", token_world[1])
    assert code == 0 and "blind_constant" in out


def test_fit_takes_durations_from_the_cache(token_world, forgetful, tmp_path):
    stated, cache = token_world
    recipe = recipe_for("mr", "train.epochs=0.3")
    one, other = (
        fit_recipe(recipe, manifest, cache, tmp_path / name, threads=1)
        for name, manifest in (("a", stated), ("b", forgetful))
    )
    assert one == other


def test_fit_refuses_at_once_what_its_validation_could_not_score(token_world, forgetful, tmp_path):
    with forgetful.open("a") as file:
        file.write(json.dumps({"kind": "video"} | vars(VideoRow("gone", "val", None))) + "\n")
    with pytest.raises(InputError, match="1 of 11 videos"):
        fit_recipe(recipe_for("mr", "data.coverage=0.5"), forgetful, token_world[1], tmp_path / "run", threads=1)
    assert not (tmp_path / "run").exists()


def test_what_is_stated_stays_and_what_is_not_is_measured(token_world, video_folder):
    rows = [VideoRow("v0", "test", None), VideoRow("v0", "train", 99.0), VideoRow("v1", "test", None)]
    rows.append(VideoRow("gone", "test", None))
    manifest = build_manifest(name="m", tasks=("mr",), rows=rows)
    media = Media(videos=video_folder)
    found = media.measure(manifest, lambda done, total: None)
    ends = [scan(video_folder / f"v{n}.mp4").end_seconds for n in (0, 1)]
    assert found.videos["duration_seconds"].tolist() == pytest.approx([ends[0], 99.0, ends[1], np.nan], nan_ok=True)
    assert media.known.keys() == {"v0", "v1", "gone"} and not media.failed
    cached = cached_durations(
        build_manifest(name="m", tasks=("mr",), rows=[VideoRow("v0", "s", 0.0)]), open_cache(token_world[1])
    )
    assert cached.required_durations() == {"v0": 16.0}


def test_check_measures_unknown_durations_and_writes_them(unloc, video_folder, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/v0.mp4").symlink_to(video_folder / "v0.mp4")
    (tmp_path / "videos/bad.mp4").write_bytes(b"no video" * 100)
    rows = [{"kind": "video"} | vars(VideoRow(name, "test", None)) for name in ("v0", "bad", "gone")]
    rows.append({"kind": "query", "video_id": "v0", "split": "test", "qid": "1", "text": "a", "segments": [[0, 9]]})
    path, out = tmp_path / "m.jsonl", tmp_path / "new.jsonl"
    path.write_text(HEADER + "".join(json.dumps(row) + "\n" for row in rows))
    code, told, _ = unloc("data", "check", path, "--videos", tmp_path / "videos", "--out", out)
    assert code == 1 and "1 unknown durations measured" in told and "2 × unknown duration" in told
    assert f"{path}:5: segment past the video" in told
    assert f"{path}:3: unreadable video file: bad: " in told
    assert load_manifest(out).videos["duration_seconds"].tolist() == pytest.approx([1.5, np.nan, np.nan], nan_ok=True)
    code, _, err = unloc("data", "check", path, "--out", tmp_path / "other.jsonl")
    assert code == 2 and "--videos" in err and not (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize("words", [("data", "check"), ("eval", "--task", "mr", "--floors-only", "--manifest")])
def test_a_video_row_without_duration_names_the_key_and_the_line(unloc, tmp_path, words):
    path = tmp_path / "m.jsonl"
    path.write_text(HEADER + '{"kind": "video", "video_id": "v", "split": "test"}\n')
    code, _, err = unloc(*words, path)
    assert code == 2 and "lacks duration_seconds" in err and ("line 2" in err or ":2:" in err) and err.count("\n") == 1
