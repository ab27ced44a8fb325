import subprocess
import sys

import pytest
from typer.testing import CliRunner

from unloc.cli import app

runner = CliRunner()


def test_synth_renders_a_world(tmp_path):
    result = runner.invoke(app, ["data", "synth", str(tmp_path / "w"), "--videos", "1", "--workers", "1"])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "w" / "videos").glob("*.mp4"))) == 1
    assert (tmp_path / "w" / "annotations" / "activitynet.json").is_file()


def test_another_seed_in_the_same_folder_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "world.json").write_text('{"world_version": 1, "seed": 0}')
    words = [sys.executable, "-m", "unloc", "data", "synth", str(tmp_path), "--videos", "1", "--seed", "9"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error:") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--videos", "0"], ["--seed", "-1"], ["--workers", "-1"], ["--style", "oil"]])
def test_impossible_values_are_refused_and_nothing_is_written(tmp_path, arguments):
    result = runner.invoke(app, ["data", "synth", str(tmp_path / "w"), *arguments])
    assert result.exit_code == 2 and arguments[0] in result.output
    assert not (tmp_path / "w").exists()


def test_help_has_an_example():
    result = runner.invoke(app, ["data", "synth", "--help"])
    assert result.exit_code == 0 and "Example: unloc data synth" in result.output
