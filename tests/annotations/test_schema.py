"""Manifests on disk: what is written is read again, what cannot be read names file and line."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, load_manifest, save_manifest
from unloc.errors import InputError, ManifestError, MissingError

HEADER = '{"kind": "manifest", "version": 1, "name": "x", "tasks": ["mr"]}'
VIDEO = {"kind": "video", "video_id": "v", "split": "t", "duration_seconds": 9}
QUERY = {"kind": "query", "video_id": "v", "split": "t", "qid": "1", "text": "q", "segments": [[0, 1]]}
INSTANCE = {"kind": "instance", "video_id": "v", "split": "t", "label": "a", "segment": [0, 1]}

name = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
time = st.floats(-1e6, 1e6)
segment = st.lists(time, min_size=2, max_size=2)


@settings(max_examples=40, deadline=None)
@given(name, name, st.floats(1e-3, 1e6) | st.none(), st.lists(segment), name, st.none() | st.lists(st.integers(0, 99)))
def test_what_is_written_is_read_again(tmp_path_factory, video_id, text, duration, segments, label, clips):
    scores = clips and [[0, 2, 4] for _ in clips]
    rows = [
        VideoRow(video_id, "t", duration),
        QueryRow(video_id, "t", "1", text, segments, clips, scores),
        *(InstanceRow(video_id, "t", label, [start, end]) for start, end in segments),
    ]
    manifest = build_manifest(name=text, tasks=("mr", "tal"), rows=rows, classes=[label], source=text)
    path = tmp_path_factory.getbasetemp() / "manifest.jsonl"
    save_manifest(manifest, path)
    again = load_manifest(path)
    assert (again.name, again.tasks, again.classes, again.source) == (text, ("mr", "tal"), (label,), text)
    for key in ("videos", "queries", "instances"):
        assert getattr(again, key).equals(getattr(manifest, key))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "m.jsonl is empty"),
        (HEADER, "describes no video"),
        ("[1, 2]", "m.jsonl:1: .*kind"),
        (HEADER.replace("1,", "2,"), "m.jsonl:1: .*version 1"),
        (HEADER.replace("mr", "ocr"), "m.jsonl:1: .*'ocr'"),
        (json.dumps(VIDEO), "m.jsonl:1: .*'manifest'"),
        (f"{HEADER}\n\n{HEADER}", "m.jsonl:3: .*'manifest'"),
        (f'{HEADER}\n{{"kind": "video"}}', "m.jsonl:2: .*video_id, split, duration_seconds"),
        (f"{HEADER}\n{'[' * 100_000}", "m.jsonl:2: not JSON"),
    ],
)
def test_a_file_that_is_no_manifest_names_file_and_line(tmp_path, content, words):
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(ManifestError, match=words):
        load_manifest(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (VIDEO | {"kind": "clip"}, "expected .*kind"),
        (VIDEO | {"video_id": ""}, "video_id"),
        (VIDEO | {"duration_seconds": "9"}, "duration_seconds"),
        (VIDEO | {"file": 3}, "file"),
        (QUERY | {"text": None}, "text"),
        (QUERY | {"qid": 1.5}, "qid"),
        (QUERY | {"segments": [0, 1]}, "segments.0."),
        (QUERY | {"relevant_clip_ids": ["a"]}, "relevant_clip_ids.0."),
        (QUERY | {"saliency_scores": [1]}, "saliency_scores.0."),
        (INSTANCE | {"segment": [0, 1, 2]}, "segment must"),
        (INSTANCE | {"segment": [0, True]}, "segment must"),
        (INSTANCE | {"label": None}, "label"),
    ],
)
def test_a_row_that_cannot_be_read_stops_a_reader_or_is_reported_to_a_checker(tmp_path, row, words):
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join([HEADER, json.dumps(VIDEO), json.dumps(row)]))
    with pytest.raises(ManifestError, match=f"m.jsonl:3: {words}"):
        load_manifest(path)
    unreadable = {}
    assert len(load_manifest(path, unreadable).videos) == 1
    assert list(unreadable) == [3] and re.search(words, unreadable[3])


def test_a_missing_file_a_folder_and_a_binary_file_are_errors(tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        load_manifest(tmp_path / "nowhere.jsonl")
    with pytest.raises(ManifestError, match="is a folder"):
        load_manifest(tmp_path)
    (tmp_path / "video.mp4").write_bytes(b"\x00\xff\xfe")
    with pytest.raises(ManifestError, match="not text"):
        load_manifest(tmp_path / "video.mp4")


def test_half_a_character_is_an_error_and_leaves_nothing_behind(tmp_path):
    manifest = build_manifest(name="x", tasks=("mr",), rows=[VideoRow("\ud83d", "t", 9)])
    with pytest.raises(InputError, match="cannot be written"):
        save_manifest(manifest, tmp_path / "m.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_split_is_selected_in_all_tables_and_an_unknown_one_names_those_that_exist():
    rows = [*(VideoRow("v", split, 9) for split in "tu"), *(InstanceRow("v", split, "a", [0, 1]) for split in "tu")]
    rows.append(QueryRow("v", "t", "1", "q", [[0, 1]]))
    manifest = build_manifest(name="x", tasks=("mr",), rows=rows, classes=["a"])
    part = manifest.select("u")
    assert (len(part.videos), len(part.queries), len(part.instances)) == (1, 0, 1)
    assert manifest.select(None) is manifest
    with pytest.raises(MissingError, match=r"'val'.*'x'.*t, u"):
        manifest.select("val")
