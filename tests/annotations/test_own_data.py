"""Own labels become a manifest: columns guessed, times read, splits made, durations measured, errors with lines."""

import json
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from unloc.annotations.converters import convert
from unloc.annotations.converters.own import seconds_of
from unloc.annotations.own import Media, split_videos, video_id_of
from unloc.annotations.reading import Problems
from unloc.annotations.schema import load_manifest
from unloc.errors import ManifestError, MissingError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def converted(folder, text, name="labels.csv", problems=None, **media):
    path = folder / name
    path.write_text(text)
    return convert("csv", [path], None, problems, Media(**media))


ROWS = "v1,1,2.5,jump\nv2,0,3,run\nv3,00:00:04,0:05.5,jump\n"


@pytest.mark.parametrize(
    "header",
    [
        "video,start,end,label",
        "Video ID,Start (s),End (s),Class",
        "file_name,start_time,end_time,action",
        "videoId;startTime;endTime;label_name",
        "clip\tbegin\tstop\tcategory",
        "\ufeffPath,From,To,Activity",
    ],
)
def test_usual_headers_and_separators_are_read_and_reported(folder, header):
    mark, problems = max(",;\t", key=header.count), Problems()
    manifest = converted(
        folder, f"{header}\n{ROWS.replace(',', mark)},,,\n".replace(",,,", mark * 3), problems=problems
    )
    found = manifest.instances[["video_id", "label", "start_seconds", "end_seconds"]]
    expected = [["v1", "jump", 1.0, 2.5], ["v2", "run", 0.0, 3.0], ["v3", "jump", 4.0, 5.5]]
    assert found.to_numpy().tolist() == expected
    assert manifest.classes == ("jump", "run") and manifest.tasks == ("tal", "as") and manifest.name == "labels"
    assert set(manifest.splits) == {"train", "val", "test"}
    (read,) = [kind for kind in problems.counts if "columns" in kind]
    assert "video from" in read and "start from" in read


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12.5", 12.5),
        (3, 3.0),
        ("1:02.5", 62.5),
        ("01:00:02", 3602.0),
        ("00:00:01,250", 1.25),
        ("4 s", 4.0),
        ("-1", -1.0),
    ],
)
def test_times_are_seconds_or_clock_times(value, expected):
    assert seconds_of(value) == expected


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("video,start,end,label\nv1,1,2,a\nv1,x,2,a\n", r"labels\.csv:3: times"),
        ("video,start,end,label\nv1,1,2,a\nv1,1,2\n", r"labels\.csv:3: fewer values"),
        ("video,start,end,label\nv1,1,2,a,b\n", r"labels\.csv:2: more values"),
        ("video,start,end,label\n,1,2,a\n", r"labels\.csv:2: no video"),
        ("video,start,end,label\nv1,1,,a\n", r"labels\.csv:2: expected a start and an end"),
        ("video,start,end,label\nv1,,,a\n", r"labels\.csv:2: 'a' has no start and end"),
        ("video,start,end,label\nv1,1,2,\n", r"labels\.csv:2: .*no label"),
        ("video,start,end,label,split\nv1,1,2,a,train\nv2,1,2,a,\n", r"labels\.csv:3: no split"),
        ("video,start,end\nv1,1,2\n", "expected video, start, end, label or query"),
        ("v1.mp4,1,2,jump\n", "expected video, start, end, label or query"),
        ("video,start,label\nv1,1,a\n", "expected a start and an end"),
        ("video,query\nv1,a cat\n", "expected a start and an end"),
        ("video,start,end,label\n", "no rows"),
    ],
)
def test_errors_name_file_and_line(folder, text, saying):
    with pytest.raises(ManifestError, match=saying):
        converted(folder, text)


def test_sentences_windows_and_null_queries_of_a_csv(folder):
    text = "video,start,end,query,split\nv1,1,2,a cat,Train\nv1,5,6,a cat,train\nv2,,,a dog,test\n"
    manifest = converted(folder, text)
    assert manifest.tasks == ("mr",) and manifest.splits == ["train", "test"]
    assert manifest.queries["segments"].tolist() == [[[1.0, 2.0], [5.0, 6.0]], []]


def test_json_lists_also_nested_ones_are_read_alike(folder):
    flat = [{"video": "v1", "segment": [1, 2], "caption": "a cat", "split": "all"}]
    nested = {"about": "cats", "videos": [{"video_id": "v1", "split": "all", "segments": []}]}
    nested["videos"][0]["segments"] = [{"start": 1, "end": "0:02", "caption": "a cat", "note": None}]
    for content in (flat, nested):
        manifest = converted(folder, json.dumps(content), "labels.json")
        assert manifest.queries[["video_id", "text"]].to_numpy().tolist() == [["v1", "a cat"]]
        assert manifest.queries["segments"].tolist() == [[[1.0, 2.0]]]


def test_videos_are_found_by_name_and_measured(folder, video_folder):
    text = "video,start,end,label\nsome/where/v0.mp4,0,1,a\nv1.mp4,0,1,b\nnowhere.mp4,0,1,b\n"
    problems = Problems()
    manifest = converted(folder, text, videos=video_folder, problems=problems)
    durations = manifest.stated_durations()
    assert durations["v0"] == pytest.approx(1.5) and durations["v1"] == pytest.approx(1.8)
    assert np.isnan(durations["nowhere"]) and problems.counts["video without a file in --videos"] == 1


def test_videos_of_a_web_server_are_measured_too(folder, video_folder):
    handler = partial(SimpleHTTPRequestHandler, directory=str(video_folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = Path(f"http://127.0.0.1:{server.server_address[1]}")
        manifest = converted(folder, "video,start,end,label\nv0.mp4,0,1,a\n", videos=url)
        server.shutdown()
    assert manifest.stated_durations() == {"v0": pytest.approx(1.5)}


def test_files_with_one_name_keep_their_folders(folder):
    manifest = converted(
        folder, "video,start,end,label,split\na/1.mp4,0,1,x,train\nb/1.mp4,0,1,x,test\nc.mp4,0,1,x,test\n"
    )
    found = manifest.videos[["video_id", "file"]].fillna("").to_numpy().tolist()
    assert found == [["a_1", "a/1.mp4"], ["b_1", "b/1.mp4"], ["c", ""]]
    assert video_id_of("C:\\clips\\my.clip.v2.MP4") == "my.clip.v2" and video_id_of("my.clip.v2") == "my.clip.v2"


def test_splits_are_by_video_seeded_and_stratified():
    labels = {f"v{n}": {f"class {n % 10}"} for n in range(100)}
    splits = split_videos(labels, 0)
    assert Counter(splits.values()) == {"train": 70, "val": 15, "test": 15}
    counts = Counter((*labels[name], split) for name, split in splits.items())
    assert all(counts[f"class {c}", split] for c in range(10) for split in ("train", "val", "test"))
    assert splits == split_videos(labels, 0) != split_videos(labels, 1)
    alone = split_videos({f"v{n}": {f"class {n}"} for n in range(13)} | {"w": set()}, 0)
    assert Counter(alone.values()) == {"train": 10, "val": 2, "test": 2}
    several = {f"v{n}": {"common", f"rare {n % 4}"} for n in range(12)}
    train = {label for name, split in split_videos(several, 3).items() if split == "train" for label in several[name]}
    assert train == {"common", "rare 0", "rare 1", "rare 2", "rare 3"}
    assert split_videos({"v": set()}, 0) == {"v": "train"}


def test_a_folder_of_clips_has_labels_of_whole_clips(folder, video_folder, unloc):
    for n, path in enumerate(sorted(video_folder.iterdir())):
        target = folder / "clips" / ("run", "jump")[n % 2] / ("clip.mp4" if n < 2 else path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    code, out, errors = unloc(
        *["data", "convert", "folder", "--annotations", "clips", "--out", "m.jsonl", "--seed", "3"]
    )
    assert code == 0 and "made by video" in out and "seed 3" in out, errors
    manifest = load_manifest(folder / "m.jsonl")
    assert manifest.tasks == ("cls",) and manifest.classes == ("jump", "run")
    first = manifest.instances.set_index("video_id").loc["run_clip"]
    assert first["end_seconds"] == pytest.approx(1.5) and len(manifest.instances) == 7
    code, out, _ = unloc(*["data", "check", "m.jsonl", "--videos", "clips"])
    assert code == 0 and "7 of 7 videos found" in out
    with pytest.raises(MissingError, match="no clips"):
        convert("folder", [video_folder])


def test_labels_of_whole_videos_need_their_durations(folder, video_folder):
    manifest = converted(folder, "video,label\nv0.mp4,a\n", videos=video_folder)
    assert manifest.tasks == ("cls",) and manifest.instances["end_seconds"].tolist() == [pytest.approx(1.5)]
    with pytest.raises(ManifestError, match="--videos"):
        converted(folder, "video,label\nv0.mp4,a\n")


@pytest.fixture
def frames(folder):
    """Three videos in MS-TCN's files, of which v0 is 15 frames at 10 fps."""
    for part in ("groundTruth", "splits"):
        (folder / "gtea" / part).mkdir(parents=True)
    for n in range(3):
        labels = ["background"] * 5 + ["cut"] * 6 + ["pour"] * (4 + 3 * n)
        (folder / f"gtea/groundTruth/v{n}.txt").write_text("\n".join(labels) + "\n")
    (folder / "gtea/mapping.txt").write_text("0 pour\n1 cut\n2 background\n3 stir\n")
    (folder / "gtea/splits/train.split1.bundle").write_text("v0.txt\nv1.txt\n")
    (folder / "gtea/splits/test.split1.bundle").write_text("v2.txt\nv9.txt\n")
    return folder / "gtea"


def test_frame_files_of_mstcn(frames, video_folder):
    problems = Problems()
    manifest = convert("mstcn", [frames], None, problems, Media(fps=10))
    assert manifest.classes == ("pour", "cut", "stir") and set(manifest.splits) == {"train", "test"}
    first = manifest.instances[manifest.instances["video_id"] == "v0"]
    found = first[["label", "start_seconds", "end_seconds"]].to_numpy().tolist()
    assert found == [["cut", 0.5, 1.1], ["pour", 1.1, 1.5]]
    assert problems.counts["video of a bundle without labels: left out"] == 1
    measured = convert("mstcn", [frames], None, None, Media(videos=video_folder))
    np.testing.assert_allclose(measured.instances["end_seconds"], manifest.instances["end_seconds"], atol=1e-6)
    with pytest.raises(ManifestError, match="--fps"):
        convert("mstcn", [frames])
    for side, names in (("train", "v2.txt\n"), ("test", "v0.txt\n")):
        (frames / f"splits/{side}.split2.bundle").write_text(names)
    assert set(convert("mstcn", [frames], None, None, Media(fps=10)).splits) == {"train1", "test1", "train2", "test2"}
    (frames / "groundTruth/v1.txt").write_text("cut\nsing\n")
    with pytest.raises(ManifestError, match=r"v1\.txt:2: label 'sing'"):
        convert("mstcn", [frames], None, None, Media(fps=10))


def test_the_hand_annotated_clips_become_a_manifest(shared, tmp_path, unloc):
    activity, out = shared / "videos/A/activity", tmp_path / "own.jsonl"
    source = shared / "videos/A/annotations.json"
    words = ("--annotations", source, "--videos", activity, "--out", out)
    code, printed, errors = unloc("data", "convert", "json", *words)
    assert code == 0 and "made by video" in printed, errors
    manifest = load_manifest(out)
    stated = json.loads(source.read_text())["videos"]
    assert manifest.tasks == ("mr",) and set(manifest.splits) == {"train", "val", "test"}
    assert sum(map(len, manifest.queries["segments"])) == sum(len(video["segments"]) for video in stated)
