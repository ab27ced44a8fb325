"""Whatever a decoder does to its process costs one video, and the ledger has the true reason."""

import ctypes
import faulthandler
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import pipeline.decode_child as decode_child
from pipeline.decode_child import Broken, Ended, Frames, Job, Opened
from pipeline.decoding import GuardedDecoder, Limits, Retried
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.reading import VideoReading

LIMITS = Limits(timeout_seconds=20.0, memory_bytes=1 << 30)


def hang() -> None:
    signal.pause()


def hang_in_c() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    ctypes.CDLL(None).select(0, None, None, None, None)


def crash() -> None:
    faulthandler.disable()
    os.kill(os.getpid(), signal.SIGSEGV)


def abort() -> None:
    faulthandler.disable()
    os.abort()


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def swallow() -> None:
    bytearray(8 << 30)


def leave() -> None:
    os.write(2, b"assertion of the codec failed\n")
    os._exit(3)


class Hostile(VideoReading):
    """Videos called like a misdeed do it, in the middle of their frames; `…_once` only the first time."""

    def frames(self):
        name = self.source.stem
        frames = super().frames()
        yield next(frames)
        deed, marker = name.removesuffix("_once"), self.source.with_suffix(".done")
        if deed in globals() and not (name.endswith("_once") and marker.exists()):
            marker.touch()
            globals()[deed]()
        yield from frames


@pytest.fixture(scope="module")
def spec():
    return Encoder(EncodeConfig(fps=10.0)).read_spec


@pytest.fixture
def decode(spec, monkeypatch, video_folder, tmp_path):
    """Decode videos of these names, made hostile by them; (events by id, pids seen)."""
    monkeypatch.setattr(decode_child, "VideoReading", Hostile)

    def run(*names: str, limits: Limits = LIMITS):
        jobs = []
        for name in names:
            path = tmp_path / f"{name}.mp4"
            path.write_bytes((video_folder / "v0.mp4").read_bytes())
            jobs.append(Job(name, path))
        events, pids = {name: [] for name in names}, Counter()
        with GuardedDecoder(spec, limits) as decoder:
            for job, event in decoder.events(jobs):
                events[job.video_id].append(event)
                pids.update([decoder._child.process.pid] if isinstance(event, Ended) else [])
        return events, pids

    return run


def kinds(events: list) -> list[type]:
    return [type(event) for event in events]


WHOLE = [Opened, Frames, Ended]


@pytest.mark.parametrize(
    ("deed", "reason", "words"),
    [
        ("crash", "signal", "SIGSEGV"),
        ("abort", "signal", "SIGABRT"),
        ("leave", "crash", r"exit code 3 \(assertion of the codec failed\)"),
    ],
)
def test_a_second_death_quarantines_the_video_and_the_next_one_is_decoded(decode, deed, reason, words):
    events, _ = decode("before", deed, "after")
    assert kinds(events["before"]) == kinds(events["after"]) == WHOLE
    broken = events[deed][-1]
    assert Counter(kinds(events[deed]))[Retried] == 1 and isinstance(broken, Broken)
    assert (broken.reason, broken.attempts) == (reason, 2)
    assert broken.message.endswith("2 times: quarantined")
    assert re.search(words, broken.message)


@pytest.mark.parametrize("deed", ["hang", "hang_in_c"])
def test_a_hang_is_ended_at_its_timeout_and_the_next_video_is_decoded(decode, deed):
    started = time.monotonic()
    events, _ = decode(deed, "after", limits=Limits(timeout_seconds=2.0))
    assert events[deed][-1].reason == "timeout" and "not decoded within 2 s (--timeout)" in events[deed][-1].message
    assert kinds(events["after"]) == WHOLE
    assert time.monotonic() - started > 4.0


def test_memory_beyond_the_limit_is_the_reason_without_a_kill(decode):
    events, pids = decode("swallow", "after")
    assert events["swallow"][-1].reason == "out_of_memory" and "--memory" in events["swallow"][-1].message
    assert kinds(events["after"]) == WHOLE and len(pids) == 1


def test_a_kill_that_does_not_come_again_costs_nothing(decode):
    events, _ = decode("crash_once", "after")
    assert kinds(events["crash_once"])[-4:] == [Retried, *WHOLE]
    assert kinds(events["after"]) == WHOLE


def test_kills_from_outside_are_not_soon_held_against_a_video(decode):
    events, _ = decode("be_killed", "after")
    assert Counter(kinds(events["be_killed"]))[Retried] == 4
    assert (events["be_killed"][-1].reason, events["be_killed"][-1].attempts) == ("signal", 5)
    assert "SIGKILL from outside" in events["be_killed"][-1].message and kinds(events["after"]) == WHOLE


def test_what_happened_to_one_video_is_not_held_against_another(decode):
    events, _ = decode("crash_once", "hang_once", "abort_once", limits=Limits(timeout_seconds=2.0))
    assert all(isinstance(those[-1], Ended) for those in events.values())


def test_a_decoder_is_replaced_after_some_videos(decode):
    _, pids = decode(*(f"v{n}" for n in range(7)), limits=Limits(recycle_videos=3))
    assert len(pids) == 3


def test_a_decoder_that_grows_is_replaced(decode):
    _, pids = decode(*(f"v{n}" for n in range(5)), limits=Limits(recycle_bytes=-1))
    assert len(pids) > 1


def test_the_decoder_ends_with_the_process_that_started_it(spec, video_folder, tmp_path):
    child = os.fork()
    if child == 0:
        decoder = GuardedDecoder(spec, LIMITS)
        next(decoder.events([Job("v0", video_folder / "v0.mp4")]))
        (tmp_path / "pid").write_text(str(decoder._child.process.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    orphan = Path("/proc") / (tmp_path / "pid").read_text()
    for _ in range(1000):
        if not orphan.exists() or "State:\tZ" in (orphan / "status").read_text():
            return
        os.sched_yield()
    pytest.fail("the decoder outlives its parent")
