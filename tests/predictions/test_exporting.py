"""Exports: what goes to Label Studio or FiftyOne comes back with the same seconds, and hostile texts stay texts."""

import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from unloc.annotations.converters import convert
from unloc.annotations.own import Media
from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, load_manifest, save_manifest
from unloc.errors import ManifestError
from unloc.predictions.exporting import SPAN_COLUMNS, best_spans, export_spans, spans_of
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table
from unloc.predictions.writing import write_detections, write_moments

HOSTILE = 'a "cat" <b>&amp;</b> --> "dog"'


def table(*rows):
    """Spans from (video, kind, text, start, end, score)."""
    return pd.DataFrame([(*row, "") for row in rows], columns=SPAN_COLUMNS)


def random_spans(seed, kind, videos=("v0", "v3", "v5")):
    rng = np.random.default_rng(seed)
    starts, lengths = rng.uniform(0, 1, (2, 12))
    return [
        (videos[n % 3], kind, f"text {n % 4}", float(start), float(start + length / 2), 0.5)
        for n, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]


def times_of(manifest):
    """{(video, text): rising (start, end)}."""
    rows = [(row["video_id"], row["text"], *w) for row in manifest.queries.to_dict("records") for w in row["segments"]]
    columns = ["video_id", "label", "start_seconds", "end_seconds"]
    return sorted([*rows, *manifest.instances[columns].itertuples(index=False, name=None)])


@pytest.mark.parametrize("kind", ["label", "query"])
@pytest.mark.parametrize("tool", ["labelstudio", "fiftyone"])
@pytest.mark.parametrize("media", ["videos", "fps"])
def test_a_round_trip_keeps_the_seconds_within_half_a_frame(tmp_path, video_folder, tool, kind, media):
    spans = random_spans(1, kind)
    of = {"videos": Media(videos=video_folder), "fps": Media(fps=29.97)}
    export_spans(tool, best_spans(table(*spans), 99, -1.0), tmp_path / "out", of[media])
    again = {"videos": Media(videos=video_folder), "fps": Media(fps=29.97)}[media]
    files = [tmp_path / "out/tasks.json"] if tool == "labelstudio" else [tmp_path / "out/labels.json"]
    manifest = convert(tool, files, "all", None, again)
    assert manifest.tasks == (("tal", "as") if kind == "label" else ("mr",))
    expected = sorted((video, text, start, end) for video, _, text, start, end, _ in spans)
    found = times_of(manifest)
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    half = 0.5 / (10 if media == "videos" else 29.97) + 1e-9
    for text in {row[:2] for row in expected}:  # rounded starts may be in another order
        for place in (2, 3):
            one, other = (sorted(row[place] for row in rows if row[:2] == text) for rows in (found, expected))
            np.testing.assert_allclose(one, other, atol=half * (1.0 if tool == "labelstudio" else 1.2))


def test_what_annotators_corrected_counts_and_uploads_lose_their_prefix(tmp_path):
    region = {"type": "timelinelabels", "from_name": "label", "value": {"timelinelabels": ["run"]}}
    region["value"]["ranges"] = [{"start": 26, "end": 50}]
    box = {"type": "videorectangle", "value": {"labels": ["man"]}}
    task = {"data": {"video": "/data/upload/1/1a2b3c4d-my.clip.mp4", "fps": 25}, "predictions": [{"result": [region]}]}
    corrected = json.loads(json.dumps(region))
    corrected["value"]["ranges"][0]["end"] = 75
    skipped = {"was_cancelled": True, "result": []}
    task["annotations"] = [{"result": [corrected, box]}, skipped]
    other = {"video": "/data/local-files/?d=clips/b.mp4", "label": [corrected["value"]]}  # JSON-MIN
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task]))
    assert times_of(convert("labelstudio", [path], "all")) == [("my.clip", "run", 1.0, 3.0)]
    path.write_text(json.dumps([other]))
    assert times_of(convert("labelstudio", [path], "all", None, Media(fps=50))) == [("b", "run", 0.5, 1.5)]
    with pytest.raises(ManifestError, match="--fps"):
        convert("labelstudio", [path], "all")


def test_fiftyone_in_time_stamps_and_class_ids(tmp_path):
    path = tmp_path / "labels.json"
    detections = [{"label": 1, "timestamps": [0.5, 2]}, {"label": "cat", "support": [11, 21], "confidence": 0.5}]
    path.write_text(json.dumps({"classes": ["cat", "dog"], "labels": {"a/v1.mp4": detections, "v2": None}}))
    manifest = convert("fiftyone", [path], "all", None, Media(fps=10))
    assert times_of(manifest) == [("v1", "cat", 1.0, 2.0), ("v1", "dog", 0.5, 2.0)] and len(manifest.videos) == 2


def test_label_studio_gets_the_frame_rate_and_every_text_once(tmp_path):
    spans = table(("v1", "label", HOSTILE, 1.0, 2.0, 0.25), ("v2", "label", HOSTILE, 0.0, 0.01, np.nan))
    export_spans("labelstudio", spans, tmp_path, Media(fps=25))
    view = ElementTree.fromstring((tmp_path / "config.xml").read_text())
    assert view.find("Video").get("framerate") == "25" and len(view.findall("TimelineLabels/Label")) == 1
    first, second = json.loads((tmp_path / "tasks.json").read_text())
    (result,) = first["predictions"][0]["result"]
    assert result["value"] == {"ranges": [{"start": 26, "end": 50}], "timelinelabels": [HOSTILE]}
    assert (
        result["score"] == 0.25 and first["data"].keys() == {"video", "video_id", "fps"} and first["data"]["fps"] == 25
    )
    (result,) = second["predictions"][0]["result"]
    assert result["value"]["ranges"] == [{"start": 1, "end": 1}] and "score" not in result


def test_subtitles_and_chapters(tmp_path):
    spans = table(("../v", "label", "b", 0, 1, 0.5), ("../v", "query", HOSTILE, 3661.5, 3662.0, 0.9))
    srt, vtt = (export_spans(tool, spans, tmp_path, Media())[0] for tool in ("srt", "vtt"))
    assert srt.parent == vtt.parent == tmp_path
    assert srt.read_text() == (f"1\n00:00:00,000 --> 00:00:01,000\nb\n\n2\n01:01:01,500 --> 01:01:02,000\n{HOSTILE}\n")
    assert vtt.read_text().startswith("WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nb\n\n01:01:01.500 --> ")
    assert 'a "cat" &lt;b&gt;&amp;amp;&lt;/b&gt; --&gt; "dog"\n' in vtt.read_text()


def test_spans_of_every_kind_of_prediction_and_the_best_of_them():
    detections = detections_table([("v1", "r\x00\nun", 0, 1, 0.5), ("v1", "jump", 2, 3, 0.9), ("v1", "run", 4, 5, 0.1)])
    assert best_spans(spans_of(detections), 5, 0.2)["text"].tolist() == ["r un", "jump"]
    assert best_spans(spans_of(detections), 1, -1.0)["text"].tolist() == ["jump"]
    windows = np.array([[0, 1, 0.5], [1, 2, 0.4], [np.nan, 2, 0.9]])
    moments = [MomentPrediction(qid=str(n), video_id="v1", query=f"query {n}", windows=windows) for n in range(2)]
    assert len(best_spans(spans_of(moments), 1, -1.0)) == 2
    frames = FramePrediction(video_id="v1", labels=[None, "a", "a", None, "b"], fps=2.0)
    found = spans_of([frames])[["text", "start", "end"]].to_numpy().tolist()
    assert found == [["a", 0.5, 1.5], ["b", 2.0, 2.5]]


def test_the_command_exports_predictions_and_manifests(tmp_path, monkeypatch, unloc, video_folder):
    monkeypatch.chdir(tmp_path)
    write_detections(
        tmp_path / "tal.json", detections_table([("v0", "run", 0, 1, 0.5), ("v1", "jump", 0.5, 1.25, 0.9)])
    )
    windows = np.array([[0.25, 1.0, 0.5]])
    write_moments(tmp_path / "mr.jsonl", [MomentPrediction(qid="1", video_id="v0", query="a cat", windows=windows)])
    rows = [VideoRow("v0", "train", 1.5), QueryRow("v0", "train", "1", "a cat, a dog", [[0.5, 1.25]])]
    rows.append(InstanceRow("v0", "train", "run", [0.0, 0.7]))
    save_manifest(build_manifest(name="m", tasks=("mr",), rows=rows, classes=("run",)), tmp_path / "m.jsonl")
    for line in (
        f"labelstudio tal.json --videos {video_folder} --out studio",
        "fiftyone mr.jsonl --fps 10 --out labels.json",
        "vtt tal.json --out chapters",
        "srt mr.jsonl --out v0.srt",
        "csv m.jsonl --out labels.csv",
    ):
        code, out, errors = unloc("data", "export", *line.split())
        assert code == 0 and "wrote" in out, errors
    assert sorted(path.name for path in (tmp_path / "chapters").iterdir()) == ["v0.vtt", "v1.vtt"]
    code, out, errors = unloc(*["data", "convert", "csv", "--annotations", "labels.csv", "--out", "again.jsonl"])
    again = load_manifest(tmp_path / "again.jsonl")
    assert code == 0 and again.queries["segments"].tolist() == [[[0.5, 1.25]]] and again.splits == ["train"], errors
    assert again.instances[["label", "end_seconds"]].to_numpy().tolist() == [["run", 0.7]]
    code, _, errors = unloc(*["data", "export", "srt", "tal.json", "--min-score", "0.95", "--out", "x.srt"])
    assert code == 2 and "no segment" in errors
