"""What a log is told of long work."""

import re

from unloc.cli import progress


def test_a_line_has_videos_rate_failures_and_the_time_left():
    line = progress.progress_line(25, 100, 600, 3, 60.0)
    assert line == "25/100 videos, 10.0 frames/s, 3 failed, time left 0:03:00"
    assert "time left unknown" in progress.progress_line(0, 100, 0, 0, 30.0)


def test_without_a_terminal_lines_are_written_while_the_work_goes_on(capfd, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.01)
    with progress.video_progress() as on_progress:
        on_progress(1, 4, 32, 0)
        while "1/4 videos" not in (told := capfd.readouterr().err):
            pass
        on_progress(2, 4, 64, 1)
        while not re.search(r"2/4 videos, .* frames/s, 1 failed, time left", told):
            told = capfd.readouterr().err
    capfd.readouterr()
    assert capfd.readouterr().err == ""  # and none after it
