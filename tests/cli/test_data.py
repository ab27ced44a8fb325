"""`unloc data`: what is printed and written, and one line with a code that is not 0 for whatever cannot be done."""

import json

import pytest

from unloc.annotations.schema import load_manifest

ENTRY = {"duration": 10.0, "subset": "train", "annotations": [{"segment": [1, 2], "label": "cat"}]}
OTHER = {"duration": 10.0, "subset": "test", "annotations": [{"segment": [8, 12], "label": "dog"}]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in: annotations, lists, a manifest with one bad row, one broken line and two videos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anet.json").write_text(json.dumps({"database": {"v1": ENTRY, "v2": OTHER}}))
    (tmp_path / "blocked.txt").write_text("v_v1\nv9\n")
    (tmp_path / "foreign.txt").write_text("v7\n")
    (tmp_path / "cut.json").write_text('{"database": {"v1"')
    (tmp_path / "wrong.json").write_text('{"a": 1}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jsonl").write_text("")
    rows = [
        {"kind": "manifest", "version": 1, "name": "small", "tasks": ["mr"], "classes": ["cat", "dog"]},
        {"kind": "video", "video_id": "v1", "split": "test", "duration_seconds": 5},
        {"kind": "query", "video_id": "v1", "split": "test", "qid": 1, "text": "a cat", "segments": [[0, 9]]},
    ]
    lines = [*map(json.dumps, rows), "{oops"]
    (tmp_path / "m.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("train", "test"):
        (tmp_path / "lists" / name).mkdir(parents=True)
    (tmp_path / "lists/train/split_0.list").write_text("cat\n")
    (tmp_path / "lists/test/split_0.list").write_text("dog\n")
    return tmp_path


CONVERT = "data convert activitynet --annotations"


@pytest.mark.parametrize(
    ("words", "saying"),
    [
        ("data check nowhere.jsonl", "nowhere.jsonl does not exist"),
        ("data check empty", "empty is a folder"),
        ("data check empty.jsonl", "empty.jsonl is empty"),
        ("data check wrong.json", "wrong.json:1: "),
        ("data check cut.json", "cut.json:1: not JSON"),
        ("data check m.jsonl --videos nowhere", "--videos: folder nowhere"),
        ("data check m.jsonl --bad-rows fix", "'keep', 'repair', 'drop'"),
        ("data check m.jsonl --out new.jsonl", "--bad-rows repair or drop"),
        ("data check m.jsonl --bad-rows drop --out empty", "empty is a folder"),
        ("data check m.jsonl --no-such-option", "`unloc data check --help`"),
        ("data check", "Missing argument"),
        ("data convert tacos --annotations wrong.json --out new.jsonl", "format 'tacos'"),
        ("data convert activitynet --out new.jsonl", "Missing option '--annotations'"),
        (f"{CONVERT} nowhere --out new.jsonl", "nowhere do not exist"),
        (f"{CONVERT} empty --out new.jsonl", "activity*net*.json"),
        (f"{CONVERT} wrong.json --out new.jsonl", "wrong.json: lacks database"),
        (f"{CONVERT} cut.json --out new.jsonl", "cut.json: not JSON"),
        (
            f"{CONVERT} anet.json --split val --out new.jsonl",
            "have train (1",
        ),
        (f"{CONVERT} anet.json --bad-rows no --out new.jsonl", "'no' is not one of"),
        (f"{CONVERT} anet.json --out anet.json", "anet.json is one of"),
        (f"{CONVERT} anet.json --out empty", "empty is a folder"),
        (f"{CONVERT} anet.json --out new.jsonl --without nowhere.txt", "nowhere.txt does not exist"),
        (f"{CONVERT} anet.json --out new.jsonl --without wrong.csv", "wrong.csv does not exist"),
        (f"{CONVERT} anet.json --out new.jsonl --only foreign.txt", "--only foreign.txt: "),
        ("data zero-shot m.jsonl --lists nowhere --split test --out z", "m.jsonl:4: not JSON"),
        ("data zero-shot nowhere.jsonl --lists lists --split test --out z", "nowhere.jsonl does not exist"),
        ("data synth wrong.json", "wrong.json"),
        ("data synth new --videos many", "Invalid value for '--videos'"),
        ("data nothing", "`unloc data --help`"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2_and_nothing_is_written(unloc, folder, words, saying):
    before = sorted(folder.rglob("*"))
    code, out, err = unloc(*words.split())
    assert (code, out) == (2, "") and err.startswith("error: ") and saying in err and err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


def test_convert_prints_counts_and_bad_rows_with_their_place_in_what_it_wrote(unloc, folder):
    code, out, _ = unloc(*CONVERT.split(), "anet.json", "--out", "new.jsonl")
    assert code == 0 and "  train: 1 videos, 0 queries with 0 windows, 1 instances\n" in out
    assert "1 × segment past the video (first: new.jsonl:5: v2 of test: dog [8.0, 12.0] in" in out
    assert "wrote new.jsonl" in out.splitlines()[-1]
    assert json.loads((folder / "new.jsonl").read_text().split("\n")[4])["segment"] == [8, 12]


def test_convert_reports_what_lists_and_rules_changed(unloc, folder):
    words = ("--out", "new.jsonl", "--without", "blocked.txt", "--bad-rows", "repair", "--changes", "changes.jsonl")
    code, out, _ = unloc(*CONVERT.split(), "anet.json", *words)
    assert code == 0 and "--without blocked.txt (first: v1)" in out
    changes = [json.loads(line) for line in (folder / "changes.jsonl").read_text().splitlines()]
    assert changes == [
        {"change": "video left out by --without blocked.txt", "place": "v1"},
        {
            "change": "segment past the video: cut to the video",
            "place": "v2 of test: dog [8.0, 12.0] in a video of 10.0 s",
        },
    ]
    assert load_manifest(folder / "new.jsonl").instances["end_seconds"].tolist() == [10.0]


def test_several_annotation_files_may_follow_one_flag(unloc, folder):
    (folder / "charades_sta_test.txt").write_text("A 0.0 1.0##a cat.\n")
    (folder / "lengths.csv").write_text("id,length\nA,2.0\n")
    files = ("charades_sta_test.txt", "lengths.csv")
    code, out, _ = unloc("data", "convert", "charades-sta", "--annotations", *files, "--out", "new.jsonl")
    assert code == 0 and "test: 1 videos, 1 queries" in out
    assert unloc("data", "check", "new.jsonl")[:2] == (0, f"{out.rpartition('wrote')[0]}no bad rows\n")


def test_check_names_every_bad_row_and_the_coverage_of_the_folder(unloc, folder):
    (folder / "videos").mkdir()
    (folder / "videos/other.mp4").write_bytes(b"x")
    code, out, _ = unloc("data", "check", "m.jsonl", "--videos", "videos")
    assert code == 1
    lines = out.splitlines()
    for start in (
        "m.jsonl:2: missing video: v1",
        "m.jsonl:3: segment past the video: v1 of test: query 1 [0.0, 9.0]",
        "m.jsonl:4: unreadable row: ",
        "3 bad rows, 0 notes",
        "videos: 0 of 1 videos found, 1 missing, 0 empty; 1 video files",
    ):
        assert any(line.startswith(start) for line in lines), start


def test_check_as_json_is_json_whatever_else_is_said(unloc, folder):
    code, out, err = unloc("data", "check", "m.jsonl", "--json", "--bad-rows", "drop")
    assert code == 1 and "1 × segment past the video: segment dropped" in err
    assert [(row["file"], row["line"], row["action"]) for row in json.loads(out)] == [
        ("m.jsonl", 3, "segment dropped"),
        ("m.jsonl", 3, "dropped"),
        ("m.jsonl", 4, "dropped"),
    ]


def test_a_rule_writes_only_where_asked_and_leaves_the_manifest_as_it_was(unloc, folder):
    before = (folder / "m.jsonl").read_text()
    code, out, _ = unloc("data", "check", "m.jsonl", "--bad-rows", "repair")
    assert code == 1 and "cut to the video (first: v1 of test: query 1 " in out
    code, out, _ = unloc("data", "check", "m.jsonl", "--bad-rows", "repair", "--out", "new.jsonl")
    assert code == 0 and "1 × unreadable row: dropped" in out
    assert (folder / "m.jsonl").read_text() == before
    assert load_manifest(folder / "new.jsonl").queries["segments"].tolist() == [[[0, 5]]]
    assert unloc("data", "check", "new.jsonl")[0] == 0


def test_zero_shot_writes_a_seen_and_an_unseen_manifest_a_split(unloc, folder):
    unloc(*CONVERT.split(), "anet.json", "--out", "new.jsonl")
    code, out, _ = unloc("data", "zero-shot", "new.jsonl", "--lists", "lists", "--split", "test", "--out", "zero")
    assert code == 0
    assert out.startswith("zero/split_0: ") and out.count("1 of 1 listed classes, 1 videos, 1 instances") == 2
    assert load_manifest(folder / "zero/split_0/seen.jsonl").classes == ("cat",)
    assert list(load_manifest(folder / "zero/split_0/unseen.jsonl").videos["video_id"]) == ["v2"]
    nonsense = load_manifest(folder / "zero/split_0/nonsense.jsonl")
    assert nonsense.classes != ("dog",) and list(nonsense.instances["label"]) == list(nonsense.classes)


def test_an_interrupt_is_one_line_and_code_130(unloc, folder, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unloc.annotations.check.load_manifest", interrupt)
    code, _, err = unloc("data", "check", "m.jsonl")
    assert code == 130 and err.startswith("interrupted; ") and err.count("\n") == 1
