import json

import pytest

from unloc.annotations.check import check_manifest
from unloc.annotations.converters import CONVERTERS, convert
from unloc.annotations.reading import Problems
from unloc.errors import InputError, ManifestError, MissingError
from unloc.examples.sources import prompted


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


ENTRY = {"duration": 10.0, "subset": "training", "annotations": [{"segment": [1.0, 2.5], "label": "Running"}]}


def test_activitynet_keeps_subsets_as_splits_and_sorts_classes(tmp_path):
    other = ENTRY | {"subset": "validation", "annotations": [{"segment": [0, 3], "label": "Archery"}]}
    path = write(tmp_path / "a.json", {"version": "1.3", "taxonomy": [], "database": {"v1": ENTRY, "v2": other}})
    manifest = convert("activitynet", [path])
    assert manifest.classes == ("Archery", "Running") and manifest.splits == ["training", "validation"]
    only = convert("activitynet", [path], "validation")
    assert list(only.videos["video_id"]) == ["v2"] and only.classes == ("Archery", "Running")


def test_classes_of_the_taxonomy_that_no_video_shows_are_classes_too(tmp_path):
    nodes = [("Root", None), ("Sports", "Root"), ("Running", "Sports"), ("Rowing", "Sports")]
    taxonomy = [{"nodeName": name, "parentName": parent} for name, parent in nodes]
    path = write(tmp_path / "a.json", {"taxonomy": taxonomy, "database": {"v1": ENTRY}})
    assert convert("activitynet", [path]).classes == ("Rowing", "Running")
    for odd in (7, [7, None, {"nodeName": 3}, {"parentName": []}]):
        write(path, {"taxonomy": odd, "database": {"v1": ENTRY}})
        assert convert("activitynet", [path]).classes == ("Running",)


def test_activitynet_captions_take_the_split_of_the_name_and_clean_the_sentences(tmp_path):
    content = {"v_a": {"duration": 9.0, "timestamps": [[0, 3], [3, 9]], "sentences": [" One.", "Two\nlines. "]}}
    manifest = convert("activitynet-captions", [write(tmp_path / "val_2.json", content)])
    assert manifest.splits == ["val_2"] and list(manifest.queries["text"]) == ["One.", "Two lines."]


def test_charades_reads_lines_and_lengths_and_says_what_is_missing(tmp_path):
    text = write(tmp_path / "charades_sta_test.txt", "ABC 1.0 4.5##a person sits.\nABC 2.0 9.0##a person stands.\n")
    lengths = write(tmp_path / "Charades_v1_test.csv", "id,subject,length\nABC,S,8.25\n")
    manifest = convert("charades-sta", [text, lengths])
    assert manifest.queries["segments"].tolist() == [[[1.0, 4.5]], [[2.0, 9.0]]]
    assert manifest.videos["duration_seconds"].tolist() == [8.25]
    with pytest.raises(ManifestError, match=r"no length.*'ABC'"):
        convert("charades-sta", [text])
    broken = write(tmp_path / "charades_sta_train.txt", "ABC 1.0##a person sits.\n")
    with pytest.raises(ManifestError, match=r"charades_sta_train\.txt:1"):
        convert("charades-sta", [broken, lengths])


def test_qvhighlights_keeps_windows_and_ratings(tmp_path):
    row = {"qid": 7, "query": "q", "duration": 10, "vid": "x", "relevant_windows": [[2, 6]]}
    row |= {"relevant_clip_ids": [1, 2], "saliency_scores": [[1, 2, 3], [4, 4, 4]]}
    manifest = convert("qvhighlights", [write(tmp_path / "highlight_val_release.jsonl", json.dumps(row) + "\n")])
    assert manifest.queries.iloc[0]["saliency_scores"] == [[1, 2, 3], [4, 4, 4]] and manifest.tasks == ("mr", "hd")
    assert not check_manifest(manifest)[1]


def test_coin_orders_classes_by_step_id_and_adds_the_task_to_shared_names(tmp_path):
    def video(task, steps):
        annotation = [{"id": key, "segment": [n, n + 1.0], "label": label} for n, (key, label) in enumerate(steps)]
        return {"duration": 9, "subset": "training", "class": task, "annotation": annotation}

    database = {"a": video("Tea", [("2", "pour"), ("10", "stir")]), "b": video("Soup", [("1", "pour")])}
    manifest = convert("coin", [write(tmp_path / "COIN.json", {"database": database})])
    assert manifest.classes == ("pour (Soup)", "pour (Tea)", "stir")


def test_coin_has_its_778_classes_whichever_steps_its_files_show(tmp_path):
    steps = [("506", "pull out the screen connector and remove the screen"), ("508", "reset and screw on the screws")]
    annotation = [{"id": key, "segment": [n, n + 1.0], "label": label} for n, (key, label) in enumerate(steps)]
    entry = {"duration": 9, "subset": "testing", "class": "ReplaceLaptopScreen", "annotation": annotation}
    manifest = convert("coin", [write(tmp_path / "COIN.json", {"database": {"a": entry}})])
    assert len(manifest.classes) == len(set(manifest.classes)) == 778
    assert [manifest.classes.index(label) for label in manifest.instances["label"]] == [505, 507]  # in order of ids


@pytest.mark.parametrize("rendered", [True, False])
def test_a_rendered_world_is_called_synthetic_by_its_manifest(tmp_path, rendered):
    video = "v_synth7_00003" if rendered else "v_QOlSCBRmfWY"
    entry = {"duration": 9, "timestamps": [[0, 1]], "sentences": ["a cat"]}
    manifest = convert("activitynet-captions", [write(tmp_path / "val.json", {video: entry})])
    names = (
        "synthetic_activitynet_captions",
        "synthetic world rendered by unloc, annotations in the format activitynet-captions",
    )
    assert (manifest.name, manifest.source) == (names if rendered else ("activitynet_captions", "ActivityNet Captions"))


def test_of_several_lengths_the_first_is_used_and_logged(tmp_path):
    write(tmp_path / "charades_sta_test.txt", "ABC 1.0 4.5##a person sits.\n")
    write(tmp_path / "Charades_a.csv", "id,length\nABC,8\nABC,8.0\n")
    write(tmp_path / "Charades_b.csv", "id,length\nABC,9\n")
    write(tmp_path / "LICENSE.txt", "not annotations")
    problems = Problems()
    assert convert("charades-sta", [tmp_path], None, problems).videos["duration_seconds"].tolist() == [8.0]
    assert problems.places == {
        "video with several lengths: the first is used": [f"{tmp_path / 'Charades_b.csv'}:2: 'ABC'"]
    }


@pytest.mark.parametrize("name", CONVERTERS)
def test_a_cut_off_or_foreign_file_is_one_clear_error(name, tmp_path):
    path = write(tmp_path / "train.json", '{"database": {"v1": {"dur')
    with pytest.raises(ManifestError, match=r"train\.json"):
        convert(name, [path])
    with pytest.raises(MissingError, match="do not exist"):
        convert(name, [tmp_path / "nowhere.json"])


def test_an_unknown_format_and_an_unknown_split_name_are_errors(tmp_path):
    with pytest.raises(InputError, match="one of activitynet"):
        convert("tacos", [tmp_path])
    path = write(tmp_path / "mine.json", {"v_a": {"duration": 1, "timestamps": [], "sentences": []}})
    with pytest.raises(ManifestError, match="give --split"):
        convert("activitynet-captions", [path])
    with pytest.raises(InputError, match="--split"):
        convert("activitynet", [tmp_path / "a.json"], split=" ")


def test_there_are_28_different_prompts():
    prompts = prompted("long_jump")
    assert len(set(prompts)) == 28 and all("long jump" in prompt for prompt in prompts)


EVENT = {"query": "a dog >>> runs", "span": [[1, 2.5]]}


@pytest.mark.parametrize(
    ("name", "content", "split"),
    [
        ("test.json", {"v_x.mp4": {"duration": 9, "spans": [[1, 2.5]], "queries": ["a dog >>> runs"]}}, "test"),
        ("data.jsonl", {"video_path": "v_x.mp4", "duration": 9, "events": [EVENT]}, "train"),
        ("answers.json", {"v_x.mp4>>>a dog >>> runs>>>[1.0, 2.5]": {"timestamps": [[0, 1]], "duration": 9}}, "test"),
        ("list.json", ["v_x.mp4>>>a dog >>> runs>>>(1.0, 2.5)"], "test"),
        ("lines.txt", "v_x.mp4>>>a dog >>> runs>>>[1.0, 2.5]\n", "test"),
        ("lines_val.jsonl", '"v_x.mp4>>>a dog >>> runs>>>[[1.0, 2.5]]"\n', "val"),
    ],
)
def test_timelens_is_read_in_every_form_it_is_found_in(tmp_path, name, content, split):
    manifest = convert("timelens", [write(tmp_path / name, content)])
    assert manifest.videos[["video_id", "file", "split"]].to_numpy().tolist() == [["v_x", "v_x.mp4", split]]
    assert manifest.queries[["text", "segments"]].to_numpy().tolist() == [["a dog >>> runs", [[1.0, 2.5]]]]


@pytest.mark.parametrize("line", ["v>>>[1, 2]", "v>>>q>>>soon", "v>>>q>>>[1]", ">>>q>>>[1, 2]", '["v", 1]'])
def test_a_timelens_line_that_is_none_is_an_error_with_its_file(tmp_path, line):
    with pytest.raises(ManifestError, match=r"lines\.txt"):
        convert("timelens", [write(tmp_path / "lines.txt", line)])


def test_kinetics_clips_have_the_names_of_their_files_and_all_classes_of_the_lists(tmp_path):
    header, problems = "label,youtube_id,time_start,time_end,split,is_cc\n", Problems()
    write(
        tmp_path / "train.csv",
        f'{header}"petting animal (not cat)",---0dWlqevI,19,29,train,0\nabseiling,_x,0.0,9.5,train,1\n',
    )
    write(tmp_path / "val.csv", f"{header}abseiling,-3B32lodo2M,59,69,validate,0\n")
    write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\nzz,2,12,test\n")
    write(tmp_path / "labels.txt", "zumba\nabseiling\n")
    manifest = convert("kinetics", [tmp_path, tmp_path / "labels.txt"], None, problems)
    assert manifest.tasks == ("cls",) and manifest.classes == ("abseiling", "petting animal (not cat)", "zumba")
    rows = manifest.videos[["video_id", "split", "duration_seconds"]].to_numpy().tolist()
    assert rows[0] == ["zz_000002_000012", "test", 10.0] and rows[2] == ["_x_000000_000009", "train", 9.5]
    assert {row[1] for row in rows} == {"train", "val", "test"} and len(manifest.instances) == 3
    assert manifest.instances[["start_seconds", "end_seconds"]].to_numpy().tolist()[1] == [0.0, 9.5]
    assert sorted(problems.counts) == ["clip without a label", "split 'validate': written 'val'"]
    assert not check_manifest(manifest)[1] or {item.kind for item in check_manifest(manifest)[1]} == {
        "class without instances"
    }
    assert convert("kinetics", [tmp_path], "val").splits == ["val"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("label,youtube_id,time_start\na,b,1\n", "lacks the columns time_end"),
        ("label,youtube_id,time_start,time_end,split\na,b,1,x,train\n", r"k\.csv:2: times"),
        ("label,youtube_id,time_start,time_end\na,b,1,2\n", r"k\.csv:2: no split"),
    ],
)
def test_a_row_of_kinetics_that_cannot_be_read_is_an_error_with_its_line(tmp_path, text, words):
    with pytest.raises(ManifestError, match=words):
        convert("kinetics", [write(tmp_path / "k.csv", text)])


@pytest.mark.parametrize("count", [400, 600, 700])
def test_the_class_lists_of_kinetics_are_alphabetical_so_that_labels_alone_give_their_order(shared, tmp_path, count):
    listed = shared / "annotations" / "kinetics" / f"label_map_k{count}.txt"
    names = listed.read_text().splitlines()
    csv = write(tmp_path / "k.csv", f"label,youtube_id,time_start,time_end,split\n{names[-1]},b,1,2,train\n")
    assert convert("kinetics", [csv, listed]).classes == tuple(names) and len(names) == count
