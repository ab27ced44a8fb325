"""Files of predictions: formats are recognised, bad entries are counted once, writing then reading is a round trip."""

import gzip
import json
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from unloc.annotations.reading import Problems
from unloc.errors import InputError, MissingError, PredictionError
from unloc.predictions.reading import read_predictions
from unloc.predictions.records import FramePrediction, MomentPrediction, detections_table
from unloc.predictions.writing import export_predictions, write_csv, write_detections, write_frames, write_moments

ROWS = [("v1", "Long jump", 0.1, 1 / 3, 0.9), ("v1", "Run", 2.0, 3.5, 0.1), ("vé", 'comma, "quote"', -1.0, 2.0, 1e-7)]
MOMENTS = [
    MomentPrediction(
        qid="12", video_id="v1", query="a cat, sleeping\u2028soundly", windows=np.array([[0.0, 1 / 3, 0.7]])
    ),
    MomentPrediction(qid="a-1", video_id="v2", query='"quoted"', windows=np.zeros((0, 3))),
]
DETECTION = {"label": "Run", "score": 0.5, "segment": [0, 1]}


def tal_file(path, results, **rest):
    path.write_text(json.dumps({"version": "VERSION 1.3", "results": results} | rest))
    return path


# -- formats and packings -------------------------------------------------------------------------------------------


def test_every_format_is_recognised_by_its_content_whatever_its_name(tmp_path):
    write_detections(tmp_path / "a.txt", detections_table(ROWS))
    write_csv(tmp_path / "b.txt", detections_table(ROWS))
    write_moments(tmp_path / "c.txt", MOMENTS)
    write_csv(tmp_path / "d.txt", MOMENTS)
    write_frames(tmp_path / "e.txt", [FramePrediction(video_id="v", fps=1.0, labels=["a", None])])
    formats = [("a", "tal"), ("b", "tal"), ("c", "mr"), ("d", "mr"), ("e", "as")]
    found = [read_predictions(tmp_path / f"{name}.txt", task).format for name, task in formats]
    assert found == [
        "ActivityNet JSON",
        "csv of detections",
        "QVHighlights JSON lines",
        "csv of windows",
        "AS JSON lines",
    ]


def test_a_format_of_another_task_is_refused_by_name(tmp_path):
    write_moments(tmp_path / "p.jsonl", MOMENTS)
    with pytest.raises(PredictionError, match=r"QVHighlights.*ActivityNet"):
        read_predictions(tmp_path / "p.jsonl", "tal")


def test_gzip_a_byte_order_mark_and_windows_lines_are_read(tmp_path):
    write_moments(tmp_path / "p.jsonl", MOMENTS)
    content = (tmp_path / "p.jsonl").read_bytes()
    (tmp_path / "p.gz").write_bytes(gzip.compress(content))
    (tmp_path / "p.bom").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert read_predictions(tmp_path / "p.gz", "mr").format == "QVHighlights JSON lines, gzipped"
    assert [item.query for item in read_predictions(tmp_path / "p.bom", "mr").predictions] == [
        item.query for item in MOMENTS
    ]


def test_of_a_zip_the_file_of_the_split_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for split, qid in (("val", 1), ("test", 2)):
            row = {"qid": qid, "query": "q", "vid": "v", "pred_relevant_windows": [[0, 2, 1.0]]}
            archive.writestr(f"submission/hl_{split}_submission.jsonl", json.dumps(row))
        archive.writestr("__MACOSX/._hl_val_submission.jsonl", b"\x00")
    found = read_predictions(tmp_path / "s.zip", "hd", split="test")
    assert "(submission/hl_test_submission.jsonl)" in found.format and found.predictions[0].qid == "2"
    with pytest.raises(PredictionError, match="split train"):
        read_predictions(tmp_path / "s.zip", "hd", split="train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"   \n", "is empty"),
        (b"hello", "not a known format"),
        (b"[1, 2]", "not a known format"),
        (b"\xff\xfe{\x00", "not text"),
        (b'{"results": {"v": [{"label": "Run", "sc', "not JSON.*cut off"),
        (b'{"results": [1]}', "ActivityNet submission"),
        (b'{"results": ' + b"[" * 100_000 + b"}", "not JSON"),
        (b'{"results": {"v": [' + b"1" * 5000 + b"]}}", "not JSON"),
        # mtime fixed: the bytes name the test, and every worker of the test run must name it alike
        (gzip.compress(b'{"results": {}}', mtime=0)[:-9], "cannot be unpacked"),
        (b"PK\x05\x06" + bytes(18), "one .jsonl file"),
    ],
)
def test_a_file_that_is_none_is_one_clear_error(tmp_path, content, words):
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(PredictionError, match=words) as raised:
        read_predictions(tmp_path / "p.json", "tal", problems=Problems())
    assert str(tmp_path / "p.json") in str(raised.value) and "\n" not in str(raised.value)


def test_a_damaged_member_of_a_zip_is_one_clear_error(tmp_path):
    path = tmp_path / "p.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", '{"qid": 1, "vid": "v", "pred_relevant_windows": []}\n' * 50)
    content = bytearray(path.read_bytes())
    content[45:60] = bytes(15)
    path.write_bytes(content)
    with pytest.raises(PredictionError, match="cannot be unpacked"):
        read_predictions(path, "mr")


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        read_predictions(tmp_path / "gone.json", "tal")
    with pytest.raises(PredictionError, match="is a folder"):
        read_predictions(tmp_path, "tal")


# -- bad entries ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [
        {"label": "Run", "score": 0.5},
        {"label": "Run", "segment": [0, 1]},
        {"score": 0.5, "segment": [0, 1]},
        {"label": "Run", "score": "high", "segment": [0, 1]},
        {"label": "Run", "score": [0.5], "segment": [0, 1]},
        {"label": "Run", "score": 0.5, "segment": [0, 1, 2]},
        {"label": "Run", "score": 0.5, "segment": "0-1"},
        {"label": "Run", "score": 0.5, "segment": "01"},
        {"label": "Run", "score": 0.5, "segment": {"start": 0, "end": 1}},
        {"label": "Run", "score": 0.5, "segment": {"0": "start", "1": "end"}},
        {"label": "Run", "score": 0.5, "segment": None},
        {"label": "Run", "score": 10**400, "segment": [0, 1]},
        "Run",
        7,
        None,
        [],
    ],
)
def test_a_detection_that_cannot_be_read_is_logged_and_skipped_or_an_error_without_a_log(tmp_path, entry):
    path, problems = tal_file(tmp_path / "p.json", {"v": [DETECTION, entry, DETECTION]}), Problems()
    found = read_predictions(path, "tal", problems=problems).predictions
    assert len(found) == 2 and list(problems.counts.values()) == [1]
    assert "results['v'][1]" in next(iter(problems.places.values()))[0]
    with pytest.raises(PredictionError, match=r"results\['v'\]\[1\]"):
        read_predictions(path, "tal")


def test_a_repeated_video_is_logged_once_and_the_last_counts(tmp_path):
    first, last = json.dumps([DETECTION]), json.dumps([DETECTION | {"score": 0.9}])
    path = tmp_path / "p.json"
    path.write_text(f'{{"results": {{"v": {first}, "w": [], "v": {last}}}}}')
    problems = Problems()
    found = read_predictions(path, "tal", problems=problems).predictions
    assert found["score"].tolist() == [0.9]
    assert [line.split(":")[0] for line in problems.lines()] == ["1 × duplicate id", "1 × empty list"]


@pytest.mark.parametrize(
    "line",
    [
        '{"qid": 1, "vid": "v", "pred_relevant_wind',
        "[1, 2]",
        '{"qid": 1, "query": "q"}',
        '{"vid": "v", "pred_relevant_windows": []}',
        '{"qid": 1, "vid": "v", "pred_relevant_windows": [[0, 1]]}',
        '{"qid": 1, "vid": "v", "pred_relevant_windows": [[0, 1, "x"]]}',
        '{"qid": 1, "vid": "v", "pred_relevant_windows": [{"start": 0}]}',
        '{"qid": 1, "vid": "v", "pred_relevant_windows": 3}',
        '{"qid": 1, "vid": "v", "pred_relevant_windows": [], "pred_saliency_scores": [[1, 2]]}',
        '{"qid": 1, "vid": "v", "pred_relevant_windows": [], "pred_saliency_scores": 5}',
    ],
)
def test_a_line_that_cannot_be_read_is_logged_with_its_number(tmp_path, line):
    path, good = tmp_path / "p.jsonl", '{"qid": 0, "vid": "v", "pred_relevant_windows": [[0, 1, 0.5]]}'
    path.write_text(f"{good}\n{line}\n{good}\n")
    problems = Problems()
    assert len(read_predictions(path, "mr", problems=problems).predictions) == 2
    assert list(problems.counts.values()) == [1] and f"{path}:2:" in next(iter(problems.places.values()))[0]
    with pytest.raises(PredictionError, match=r"p\.jsonl:2:"):
        read_predictions(path, "mr")


def test_a_qid_is_the_same_as_number_and_as_text(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(f'{{"qid": {qid}, "vid": "v"}}\n' for qid in ("7", '"7"', "7.0")))
    assert [item.qid for item in read_predictions(path, "mr").predictions] == ["7"] * 3


@pytest.mark.parametrize(
    "row",
    [
        {"video_id": "v", "labels": []},
        {"video_id": "v", "fps": 0, "labels": []},
        {"video_id": "v", "fps": "1", "labels": []},
        {"video_id": "v", "fps": float("nan"), "labels": []},
        {"video_id": "v", "fps": 1e9, "labels": []},
        {"video_id": "v", "fps": 1, "labels": "ab"},
        {"video_id": "v", "fps": 1, "labels": [1]},
        {"video_id": "v", "fps": 1, "labels": [["a"]]},
        {"video_id": "v", "times_seconds": [0], "labels": ["a", "b"]},
        {"video_id": "v", "times_seconds": [0, 2, 1], "labels": ["a", "b", None]},
        {"video_id": "v", "times_seconds": [0, 1, 1], "labels": ["a", "b", None]},
        {"video_id": "v", "times_seconds": [0, float("nan")], "labels": ["a", "b"]},
        {"video_id": "v", "times_seconds": ["0"], "labels": ["a"]},
        {"video_id": "v", "times_seconds": [2**53, 2**53 + 1], "labels": ["a", "b"]},
        {"video_id": "v", "times_seconds": 1, "labels": ["a"]},
        {"video_id": "v", "times_seconds": [0], "fps": 1, "labels": ["a"]},
    ],
)
def test_labels_of_frames_that_cannot_be_read_are_logged(tmp_path, row):
    path, problems = tmp_path / "p.jsonl", Problems()
    path.write_text(json.dumps(row) + "\n" + json.dumps({"video_id": "w", "fps": 1, "labels": ["a", None]}))
    assert [item.video_id for item in read_predictions(path, "as", problems=problems).predictions] == ["w"]
    assert list(problems.counts.values()) == [1]


def test_scores_files_that_are_none_are_one_clear_error(tmp_path):
    def of(name):
        row = {"video_id": "v", "fps": 1, "labels": ["a"], "scores_file": name}
        (tmp_path / "p.jsonl").write_text(json.dumps(row))
        return tmp_path / "p.jsonl"

    with pytest.raises(MissingError, match="does not exist"):
        read_predictions(of("gone.npz"), "as")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(PredictionError, match="cannot be read"):
        read_predictions(of("text.npz"), "as")
    np.save(tmp_path / "one.npy", np.zeros((1, 1)))
    with pytest.raises(PredictionError, match="one array"):
        read_predictions(of("one.npy"), "as")
    np.savez(tmp_path / "objects.npz", v=np.array([{}], dtype=object))
    with pytest.raises(PredictionError, match="cannot be read"):
        read_predictions(of("objects.npz"), "as")


def test_a_csv_row_without_numbers_is_logged(tmp_path):
    path, problems = tmp_path / "p.csv", Problems()
    path.write_text("video_id,label,start_seconds,end_seconds,score\nv,Run,0,1,0.5\nv,Run,a,1,0.5\nv,Run,0,,0.5\n")
    found = read_predictions(path, "tal", problems=problems).predictions
    assert len(found) == 2 and np.isnan(found["end_seconds"][1]) and list(problems.counts.values()) == [1]


# -- writing then reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.json", "p.csv"])
def test_detections_are_the_same_to_the_bit_after_writing_and_reading(tmp_path, name):
    export_predictions(tmp_path / name, "tal", detections_table(ROWS), "validation")
    pd.testing.assert_frame_equal(
        read_predictions(tmp_path / name, "tal").predictions, detections_table(ROWS), check_dtype=False
    )


@pytest.mark.parametrize("name", ["p.jsonl", "p.zip", "p.csv"])
def test_moments_are_the_same_to_the_bit_after_writing_and_reading(tmp_path, name):
    export_predictions(tmp_path / name, "mr", MOMENTS, "val")
    for ours, read in zip(MOMENTS, read_predictions(tmp_path / name, "mr").predictions, strict=True):
        assert (ours.qid, ours.video_id, ours.query) == (read.qid, read.video_id, read.query)
        np.testing.assert_array_equal(ours.windows, read.windows)


def test_saliency_and_frames_are_the_same_after_writing_and_reading(tmp_path):
    clips = MomentPrediction(qid="1", video_id="v", query="q", saliency=np.array([0.1, -1 / 3]))
    export_predictions(tmp_path / "p.zip", "hd", [clips], "test")
    np.testing.assert_array_equal(read_predictions(tmp_path / "p.zip", "mr").predictions[0].saliency, clips.saliency)
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        assert archive.namelist() == ["hl_test_submission.jsonl"]
    for scores in ([[0.25, 1], [0.5, 0]], [[1 / 3, 1 / 3 + 1e-12], [1e300, np.inf]]):
        frames = FramePrediction(video_id="v", fps=2.5, labels=["a", None], scores=np.array(scores))
        export_predictions(tmp_path / "f.jsonl", "as", [frames], "test")
        read = read_predictions(tmp_path / "f.jsonl", "as").predictions[0]
        assert (read.fps, read.times_seconds, read.labels) == (2.5, None, ["a", None])
        np.testing.assert_array_equal(read.scores, frames.scores)
        timed = replace(frames, fps=None, times_seconds=[0.1 + 0.2, 1 / 3])
        export_predictions(tmp_path / "t.jsonl", "as", [timed], "test")
        read = read_predictions(tmp_path / "t.jsonl", "as").predictions[0]
        assert read.fps is None and read.times_seconds.tolist() == [0.1 + 0.2, 1 / 3]


def test_times_that_do_not_rise_are_an_error_with_their_place(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"video_id": "v", "times_seconds": [0, 2, 1], "labels": [null, "a", "b"]}')
    with pytest.raises(PredictionError, match=r"p\.jsonl:1: .*times_seconds"):
        read_predictions(tmp_path / "p.jsonl", "as")


def test_the_activitynet_submission_states_its_version_and_external_data(tmp_path):
    for used in (False, True):
        export_predictions(tmp_path / "p.json", "tal", detections_table(ROWS), "validation", external_labels=used)
        content = json.loads((tmp_path / "p.json").read_text())
        assert list(content) == ["version", "results", "external_data"] and content["version"] == "VERSION 1.3"
        assert read_predictions(tmp_path / "p.json", "tal").external_labels is used


@pytest.mark.parametrize(("task", "name"), [("tal", "p.zip"), ("hd", "p.csv"), ("as", "p.json"), ("mr", "p")])
def test_a_form_that_a_task_does_not_have_is_refused(tmp_path, task, name):
    with pytest.raises(InputError, match="are written as"):
        export_predictions(tmp_path / name, task, [], "val")
    assert not list(tmp_path.iterdir())
