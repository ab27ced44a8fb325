"""What a user types: help, errors in one line, exit codes."""

import logging
import subprocess
import sys

import pytest
import torch

from tests.conftest import write_manifest
from unloc.annotations.schema import QueryRow, VideoRow
from unloc.cli import doctor, progress


def test_a_process_ends_with_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "unloc", "eval", "--predictions", "gone", "--manifest", "gone.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    debugged = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert debugged.returncode == 1 and "Traceback" in debugged.stderr


def test_help_and_version_import_no_torch_and_no_pandas():
    code = (
        "import sys; sys.argv = ['unloc', {!r}]\n"
        "from unloc.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({{'torch', 'pandas', 'ray', 'open_clip', 'numpy'}} & set(sys.modules)))"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code.format(option)], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("[]"), done.stdout


@pytest.mark.parametrize(
    "verb",
    [
        "data",
        "data synth",
        "data convert",
        "data check",
        "data zero-shot",
        "extract",
        "cache info",
        "cache verify",
        "fit",
        "eval",
        "doctor",
    ],
)
def test_every_verb_explains_itself(unloc, verb):
    code, out, _ = unloc(*verb.split(), "--help")
    assert code == 0 and "Usage:" in out
    assert unloc(*verb.split(), "-h")[1] == out
    assert verb == "data" or "Example: unloc " in out.replace("\n", " ").replace("  ", " ")


def test_quiet_leaves_results_and_errors_and_verbose_adds_the_log(unloc, manifest, video_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "shown_level", progress.shown_level)  # put back at the end

    def extract(option, cache):
        words = ["extract", manifest, "--videos", video_folder, "--cache", tmp_path / cache, "--workers", 0]
        return unloc(*option, *words, "--frames", 2)

    code, shown, _ = extract(["-q"], "a")
    assert code == 0 and "1 of 1 cached" in shown
    code, _, stderr = unloc(
        "-q", "extract", tmp_path / "gone.jsonl", "--videos", video_folder, "--cache", tmp_path / "c"
    )
    assert code == 2 and stderr.startswith("error: ")
    levels = []
    for option in (["-q"], [], ["-v"]):
        extract(option, "a")
        levels.append(progress.shown_level)
    assert levels == [logging.ERROR, logging.WARNING, logging.INFO]
    assert unloc("-q", "-v", "doctor")[0] == 2


def test_doctor_names_what_is_missing(unloc, monkeypatch):
    code, shown, _ = unloc("doctor")
    assert code == 0 and "torch" in shown and "CPU cores" in shown
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda package: None if package in ("zarr", "s3fs") else version(package))
    code, shown, stderr = unloc("doctor")
    assert code == 1 and "pip install zarr" in stderr and "unloc[s3]" in shown


def test_a_full_gpu_is_one_line(unloc, monkeypatch):
    def fails(package):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 4 GiB.")

    monkeypatch.setattr(doctor, "_version", fails)
    code, _, stderr = unloc("doctor")
    assert code == 2 and stderr.count("\n") == 1 and "CUDA out of memory" in stderr and "train.accumulate" in stderr


@pytest.fixture
def manifest(tmp_path):
    rows = VideoRow("v0", "test", 1.5), QueryRow("v0", "test", "1", "a cat", [[0, 1]])
    return write_manifest(tmp_path / "m.jsonl", *rows)


def test_bad_input_to_extract_is_one_line(fails, manifest, video_folder, tmp_path):
    cache = ("--cache", tmp_path / "cache")
    fails("extract", manifest, "--videos", tmp_path / "gone", *cache, saying="does not exist")
    fails("extract", tmp_path / "gone.jsonl", "--videos", video_folder, *cache, saying="does not exist")
    fails("extract", manifest, "--videos", video_folder, *cache, "--fps", "-2", saying="--fps: got -2.0")
    fails("extract", manifest, "--videos", video_folder, *cache, "--split", "train", saying="it has: test")
    fails("extract", manifest, "--videos", video_folder, *cache, "--tower", "ViT-Z", saying="ViT-Z")
    fails("extract", manifest, "--videos", video_folder, *cache, "--timeout", "inf", saying="--timeout")
    (tmp_path / "empty.jsonl").write_text("")
    beyond = tmp_path / "empty.jsonl" / "cache"
    fails("extract", manifest, "--videos", video_folder, "--cache", beyond, saying="Not a directory")
    fails("extract", tmp_path / "empty.jsonl", "--videos", video_folder, *cache, saying="is empty")
    assert not (tmp_path / "cache").exists()


def test_an_unreadable_video_is_named_and_the_exit_code_is_not_zero(unloc, manifest, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v0.mp4").write_bytes(b"no video")
    words = ("extract", manifest, "--videos", tmp_path / "videos", "--cache", tmp_path / "cache", "--workers", 0)
    code, _, errors = unloc(*words)
    assert code == 2 and "v0: unreadable" in errors
    assert "unreadable" in (tmp_path / "cache" / "ledger.jsonl").read_text()


def test_bad_input_to_fit_is_one_line(fails, manifest, tmp_path):
    rest = ("--manifest", manifest, "--cache", tmp_path / "cache", "--work-dir", tmp_path / "run")
    fails("fit", "synth_mr", "optim.lrr=1", *rest, saying="did you mean optim.lr?")
    fails("fit", "synth_rm", *rest, saying="synth_mr")
    fails("fit", "synth_mr", *rest, saying="cache")
    assert not (tmp_path / "run").exists()


def test_eval_says_what_it_needs(fails, manifest, tmp_path):
    fails("eval", saying="--predictions FILE or --baseline")
    fails("eval", tmp_path, "--manifest", manifest, saying="--cache")
    gone = tmp_path / "gone.jsonl"
    fails("eval", "--predictions", gone, "--manifest", manifest, "--task", "mr", saying="does not exist")
    words = ("--manifest", manifest, "--task", "mr", "--split", "val")
    fails("eval", "--predictions", gone, *words, saying="it has: test")
