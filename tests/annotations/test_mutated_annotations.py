"""Whatever is in an annotation file or a manifest: it can be checked, repaired and written, or is one clear error."""

import json

import pytest

from tests.mutations import GONE, changed, places
from unloc.annotations.check import check_manifest
from unloc.annotations.converters import convert
from unloc.annotations.own import Media
from unloc.annotations.schema import load_manifest, save_manifest
from unloc.errors import UnlocError

ENTRY = {"duration": 10, "subset": "training", "annotations": [{"segment": [1, 2.5], "label": "Run"}]}
STEPS = {"duration": 9, "subset": "training", "class": "Tea"}
STEPS |= {"annotation": [{"id": "1", "segment": [0, 1], "label": "pour"}]}
QUERY = {"qid": 7, "query": "q", "duration": 10, "vid": "x", "relevant_windows": [[2, 4]]}
QUERY |= {"relevant_clip_ids": [1], "saliency_scores": [[3]]}
REGION = {"from_name": "label", "value": {"ranges": [{"start": 1, "end": 9}], "timelinelabels": ["Run"]}}
FILES = {
    "activitynet": ("a.json", {"database": {"v1": ENTRY}}),
    "thumos14": ("a.json", {"database": {"v1": ENTRY | {"subset": "Test"}}}),
    "coin": ("a.json", {"database": {"v1": STEPS}}),
    "activitynet-captions": ("val_1.json", {"v_a": {"duration": 9, "timestamps": [[0, 3]], "sentences": ["One."]}}),
    "qvhighlights": ("highlight_val.jsonl", QUERY),
    "gmr": ("test.jsonl", {"qid": 7, "vid": "x", "query": "q", "duration": 10, "relevant_windows": [[2, 4]]}),
    "json": ("a.json", [{"video": "v1", "start": 1, "end": 2, "label": "Run", "split": "train"}]),
    "labelstudio": ("a.json", [{"data": {"video": "a.mp4", "fps": 25}, "annotations": [{"result": [REGION]}]}]),
    "fiftyone": ("a.json", {"classes": ["Run"], "labels": {"v1": [{"label": 0, "support": [1, 5]}]}}),
    "timelens": ("a.json", {"v.mp4": {"duration": 9, "spans": [[1, 2]], "queries": ["q"]}, "v>>>q>>>[1, 2]": {}}),
}
VALUES = [None, "", -1, 10**400, float("nan"), [], {}, [None, None], "\ud83d", GONE]


def mutations(content):
    for path in places(content):
        for value in VALUES:
            if path or value is not GONE:
                yield changed(content, path, value)


def write(path, content):
    path.write_text("\n".join(map(json.dumps, content)) if isinstance(content, tuple) else json.dumps(content))
    return path


def check(manifest, folder):
    for rule in ("repair", "drop"):
        save_manifest(check_manifest(manifest, rule)[0], folder / "result.jsonl")
        assert all(item.is_note for item in check_manifest(load_manifest(folder / "result.jsonl"))[1])


@pytest.mark.parametrize("name", FILES)
def test_any_value_anywhere_in_annotations_is_converted_or_refused_in_one_line(name, tmp_path):
    file_name, content = FILES[name]
    check(convert(name, [write(tmp_path / file_name, content)], media=Media(fps=10)), tmp_path)
    refused = 0
    for mutated in mutations(content):
        try:
            check(convert(name, [write(tmp_path / file_name, mutated)], media=Media(fps=10)), tmp_path)
        except UnlocError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > (4 if name == "gmr" else 20)  # GMR's own code reads nearly everything


HEADER = {"kind": "manifest", "version": 1, "name": "x", "tasks": ["mr"], "classes": ["a", "b"]}
ROWS = [
    {"kind": "video", "video_id": "v", "split": "t", "duration_seconds": 9},
    {"kind": "query", "video_id": "v", "split": "t", "qid": "1", "text": "q", "segments": [[0, 2]]},
    {"kind": "instance", "video_id": "v", "split": "t", "label": "a", "segment": [0, 1]},
]
ROWS[1] |= {"relevant_clip_ids": [0], "saliency_scores": [[3]]}


@pytest.mark.parametrize("number", range(3))
def test_any_value_anywhere_in_a_row_is_a_finding_an_unreadable_line_or_harmless(number, tmp_path):
    found = 0
    for mutated in mutations(ROWS[number]):
        rows, unreadable = [HEADER, *ROWS, ROWS[0] | {"video_id": "w"}], {}
        rows[number + 1] = mutated
        try:
            manifest = load_manifest(write(tmp_path / "m.jsonl", tuple(rows)), unreadable)
            found += bool(unreadable or check_manifest(manifest)[1])
            check(manifest, tmp_path)
        except UnlocError as error:
            assert "\n" not in str(error)
    assert found > 20
