"""`unloc predict`: what it prints and writes, its exit codes, and its errors."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest

from tests.conftest import render_video

QUERY = "a red circle rising"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder with two short videos."""
    folder = tmp_path_factory.mktemp("own") / "videos"
    folder.mkdir()
    for number in range(2):
        render_video(folder / f"v{number}.mp4", num_frames=40, seed=number)
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture(autouse=True)
def tokens(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("UNLOC_TOKENS", str(tmp_path_factory.getbasetemp() / "tokens_of_predict"))


def test_json_has_the_best_moments_of_each_query_and_stdout_nothing_else(videos, unloc):
    words = ("-q", QUERY, "--query", "a blue star", "--checkpoint", "toy", "--min-score", 0, "--top", 2)
    code, out, errors = unloc("predict", videos, *words, "--json")
    found = json.loads(out)
    assert code == 0 and [one["video_id"] for one in found] == ["v0", "v1"]
    for one in found:
        assert one["duration_seconds"] == pytest.approx(4.0) and one["task"] == "mr"
        assert [answer["text"] for answer in one["answers"]] == [QUERY, "a blue star"]
        for answer in one["answers"]:
            scores = [moment["score"] for moment in answer["moments"]]
            assert len(scores) == 2 and scores == sorted(scores, reverse=True)
            assert all(0 <= moment["start"] < moment["end"] <= 4.0 for moment in answer["moments"])
    assert errors.count("NOT a rendered video") == 2


def test_the_table_has_times_scores_and_texts(videos, unloc):
    code, out, _ = unloc("predict", videos / "v0.mp4", "-q", QUERY, "--checkpoint", "toy", "--min-score", 0)
    title, first, *_ = out.splitlines()
    assert code == 0 and title.endswith("00:04.0, seen whole")
    assert first.split(maxsplit=3)[3] == QUERY and first.split()[0].startswith("00:0")


def test_exit_code_3_says_that_nothing_was_found(videos, unloc):
    code, out, _ = unloc("predict", videos / "v0.mp4", "-q", QUERY, "--checkpoint", "toy", "--min-score", 1.1)
    assert code == 3 and "not found" in out
    code, out, _ = unloc("predict", videos / "v0.mp4", "-q", QUERY, "--checkpoint", "toy", "--min-score", 1.1, "--json")
    assert code == 3 and not json.loads(out)[0]["answers"][0]["found"]


@pytest.mark.parametrize("name", ["found.jsonl", "found.csv", "found.srt", "found.vtt"])
def test_files_are_written_by_their_ending(name, videos, tmp_path, unloc):
    out = tmp_path / name
    code, _, errors = unloc(
        "predict", videos / "v0.mp4", "-q", QUERY, "--checkpoint", "toy", "--min-score", 0, "-o", out
    )
    assert code == 0, errors
    text = out.read_text()
    assert QUERY in text
    if name == "found.jsonl":
        assert len(json.loads(text)["pred_relevant_windows"]) == 5


def test_a_page_and_labels_for_tools_are_written(videos, tmp_path, unloc):
    words = ("predict", videos, "-q", QUERY, "--checkpoint", "toy", "--min-score", 0, "-o")
    code, _, errors = unloc(*words, tmp_path / "page.html")
    assert code == 0 and QUERY in (tmp_path / "page.html").read_text(), errors
    code, _, errors = unloc(*words, tmp_path / "studio", "--format", "labelstudio")
    tasks = json.loads((tmp_path / "studio" / "tasks.json").read_text())
    assert code == 0 and [task["data"]["video"].rpartition("?d=")[2] for task in tasks] == ["v0.mp4", "v1.mp4"], errors
    assert {task["data"]["fps"] for task in tasks} == {10.0}
    assert unloc(*words, tmp_path / "fiftyone", "--format", "fiftyone")[0] == 0
    assert set(json.loads((tmp_path / "fiftyone" / "labels.json").read_text())["labels"]) == {"v0", "v1"}


def test_labels_and_queries_come_from_files(videos, tmp_path, unloc):
    (tmp_path / "labels.txt").write_text("red circle rising\nblue star\n\nblue star\n")
    labels = ("--labels", tmp_path / "labels.txt")
    code, out, _ = unloc("predict", videos / "v0.mp4", *labels, "--checkpoint", "toy", "--json")
    (found,) = json.loads(out)
    assert code == 0 and found["task"] == "tal"
    assert {answer["text"] for answer in found["answers"]} <= {"red circle rising", "blue star"}
    assert sum(len(answer["moments"]) for answer in found["answers"]) <= 5
    code, out, _ = unloc("predict", videos / "v0.mp4", "--queries", labels[1], "--checkpoint", "none", "--json")
    (found,) = json.loads(out)
    assert code == 0 and len(found["answers"]) == 2 and "without training" in found["how"]


def test_the_baseline_takes_labels_too_and_as_labels_every_frame(videos, tmp_path, unloc):
    (tmp_path / "labels.txt").write_text("red circle rising\nblue star\n")
    code, out, _ = unloc("predict", videos / "v0.mp4", "--checkpoint", "toy", "--json")  # its own classes
    assert code == 0 and json.loads(out)[0]["task"] == "tal"
    words = ("--labels", tmp_path / "labels.txt", "--checkpoint", "none", "--tower", "toy", "--json")
    code, out, _ = unloc("predict", videos / "v0.mp4", *words)
    assert code == 0 and json.loads(out)[0]["task"] == "tal"
    code, out, errors = unloc(
        "predict", videos / "v0.mp4", "--task", "as", "--checkpoint", "toy", "-o", tmp_path / "a.jsonl"
    )
    assert code in (0, 3), errors
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert len(row["labels"]) == len(row["times_seconds"]) == 16


def test_clips_are_videos_of_the_moments(videos, tmp_path, unloc):
    words = ("-q", QUERY, "--checkpoint", "toy", "--min-score", 0, "--top", 3, "--clips", tmp_path / "clips", "--json")
    code, out, errors = unloc("predict", videos / "v1.mp4", *words)
    assert code == 0, errors
    moments = json.loads(out)[0]["answers"][0]["moments"]
    files = sorted((tmp_path / "clips").iterdir())
    assert [file.name[:6] for file in files] == ["v1_01_", "v1_02_", "v1_03_"]
    for file, moment in zip(files, moments, strict=True):
        with av.open(str(file)) as container:
            frames = [frame.time for frame in container.decode(video=0)]
        length = moment["end"] - moment["start"]
        assert abs(frames[0]) < 0.11 and length - 0.15 <= frames[-1] - frames[0] + 0.1 <= length + 1.0


def test_a_url_and_a_folder_of_urls_are_read(videos, unloc):
    handler = partial(SimpleHTTPRequestHandler, directory=str(videos.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/videos"
        words = ("-q", QUERY, "--checkpoint", "none", "--json")
        one, folder = (unloc("predict", place, *words) for place in (f"{url}/v0.mp4", url))
        absent = unloc("predict", f"{url}/absent.mp4", *words)
        server.shutdown()
    for (code, out, errors), names in ((one, ["v0"]), (folder, ["v0", "v1"])):
        assert code in (0, 3), errors
        assert [found["video_id"] for found in json.loads(out)] == names
    assert absent[0] == 2 and "no video here" in absent[2]


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        (["absent.mp4", "-q", "x"], "no such video"),
        (["empty", "-q", "x"], "no video here"),
        (["videos/v0.mp4", "copies/v0.mp4", "-q", "x"], "two videos are called v0"),
        (["videos/v0.mp4", "-q", " "], "empty text"),
        (["videos/v0.mp4", "-q", "red " * 60], "tokens, the tower takes 32"),
        (["videos/v0.mp4", "--task", "mr"], "takes sentences"),
        (["videos/v0.mp4", "-q", "x", "--task", "tal"], "takes classes"),
        (["videos/v0.mp4", "-q", "x", "--labels", "labels.txt"], "give one of them"),
        (["videos/v0.mp4", "-q", "x", "-o", "out.xyz"], "--format"),
        (["videos/v0.mp4", "-q", "x", "-o", "videos/v0.mp4", "--format", "csv"], "is a video to read"),
        (["videos/v0.mp4", "-q", "x", "-o", "empty", "--format", "csv"], "is a folder"),
        (["videos/v0.mp4", "-q", "x", "--format", "srt"], "give --out"),
        (["videos/v0.mp4", "-q", "x", "--clips", "labels.txt"], "name a folder"),
        (["videos/v0.mp4", "-q", "x", "--min-score", "nan"], "--min-score nan"),
        (["videos/v0.mp4", "-q", "x", "--tower", "toy"], "belongs to --checkpoint none"),
        (["videos/v0.mp4", "-q", "x", "--task", "cls"], "trained for tal"),
        (["videos/v0.mp4", "--queries", "absent.txt"], "absent.txt"),
    ],
)
def test_a_mistake_is_one_line(words, saying, videos, tmp_path, monkeypatch, fails):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "copies"):
        Path(name).mkdir()
    Path("videos").symlink_to(videos)
    render_video(Path("copies/v0.mp4"), num_frames=5)
    Path("labels.txt").write_text("x\n")
    fails("predict", *words, "--checkpoint", "toy", saying=saying)


@pytest.mark.parametrize("name", ["text.mp4", "empty.mp4", "sound.mp4", "cut.mp4"])
def test_a_file_that_is_no_video_is_one_line_and_the_others_are_answered(name, videos, tmp_path, unloc):
    bad = tmp_path / name
    good = (videos / "v0.mp4").read_bytes()
    audio_only(bad) if name == "sound.mp4" else bad.write_bytes(
        {"text.mp4": b"no video at all", "empty.mp4": b"", "cut.mp4": good[: len(good) // 2]}[name]
    )
    code, out, errors = unloc("predict", bad, videos / "v0.mp4", "-q", QUERY, "--checkpoint", "toy", "--json")
    lines = [line for line in errors.splitlines() if not line.startswith("note:")]
    assert code == 2 and len(lines) == 2 and name in lines[0] and "1 of 2 videos" in lines[1], errors
    assert [one["video_id"] for one in json.loads(out)] == ["v0"]
