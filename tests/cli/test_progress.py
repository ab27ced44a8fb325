"""What long work shows on a terminal and in a log."""

import logging
import re
import sys
from itertools import count

from unloc.cli import progress


def test_in_a_log_lines_with_rate_details_and_time_left_are_written_while_nothing_completes(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    wanted = r"extracting: 3 of 4 videos, +[\d.]+ videos/s, failed=1, \d\d:\d\d elapsed, \d\d:\d\d left"
    with progress.progress("extracting", "videos") as report:
        report(1, 4, failed=0)
        report(3, 4, failed=1)
        lines = []
        while len([line for line in lines if re.fullmatch(wanted, line)]) < 3:
            lines += capfd.readouterr().err.splitlines()
            assert len(lines) < 1000
    assert all("\r" not in line for line in lines)
    capfd.readouterr()
    assert capfd.readouterr().err == ""  # none after it


def test_slow_work_says_how_long_each_takes(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    seconds = count(0, 2)
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))
    with progress.progress("extracting", "videos") as report:
        report(1, 4)
        report(2, 4)
        shown = ""
        while "2 of 4" not in shown:
            shown = capfd.readouterr().err
    assert re.search(r"2 of 4 videos, +\d+\.\d\d s each, ", shown)


def test_short_work_leaves_no_line_in_a_log(capfd):
    with progress.progress("packing", "shards") as report:
        report(1, 1)
    with progress.progress("packing", "shards"):
        pass
    assert capfd.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_that_starts_where_a_resumed_job_does(capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress("training", "steps") as report:
        report(50, 100, loss="0.5")
        report(51, 100, loss="0.4")
    shown = capfd.readouterr().err
    assert "training:  50%" in shown and "51/100" in shown and "\r" in shown


def test_quiet_shows_no_progress_and_verbose_the_log(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(progress, "shown_level", logging.ERROR)
    with progress.progress("packing", "shards") as report, progress.shown_warnings("unloc"):
        report(1, 2)
        logging.getLogger("unloc.some").warning("a warning")
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(progress, "shown_level", logging.INFO)
    with progress.shown_warnings("unloc"):
        logging.getLogger("unloc.some").info("a detail")
    assert capfd.readouterr().err == "note: a detail\n"
