"""Whatever happens to a decoding process costs one video at most, and the failure has the true reason."""

import ctypes
import faulthandler
import hashlib
import os
import re
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import pytest

from pipeline import decoding
from pipeline.decoding import GuardedDecoder, Job, Limits, Retried
from tests.conftest import render_video
from unloc.cache.shards import Failure
from unloc.files import file_identity
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video import facts, pyav_reader
from unloc.video.reading import VideoReading

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


def index_error() -> None:
    raise IndexError("Out of bound indices: [36]")


def end_of_file() -> None:
    raise av.error.EOFError(541478725, "End of file")


def leave() -> None:
    os.write(2, b"assertion of the codec failed\n")
    os._exit(3)


class Hostile(VideoReading):
    """A video named like one of the functions above calls it after its first frame; `…_once` only the first time."""

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
    """Decode videos of these names with `Hostile`; (events by id, pids of the decoders)."""
    monkeypatch.setattr(decoding, "VideoReading", Hostile)

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
                pids.update([decoder.process.pid] if isinstance(event, dict) else [])
        return events, pids

    return run


def kinds(events: list) -> list[type]:
    return [type(event) for event in events]


WHOLE = [tuple, dict]  # frames, row


@pytest.mark.parametrize(
    ("deed", "reason", "words"),
    [
        ("crash", "signal", "SIGSEGV"),
        ("abort", "signal", "SIGABRT"),
        ("leave", "crash", r"code 3 \(assertion of the codec failed\)"),
    ],
)
def test_a_second_death_quarantines_the_video_and_the_next_one_is_decoded(decode, deed, reason, words):
    events, _ = decode("before", deed, "after")
    assert kinds(events["before"]) == kinds(events["after"]) == WHOLE
    broken = events[deed][-1]
    assert Counter(kinds(events[deed]))[Retried] == 1 and isinstance(broken, Failure)
    assert (broken.reason, broken.attempts) == (reason, 2)
    assert broken.message.endswith("2 times: quarantined")
    assert re.search(words, broken.message)


@pytest.mark.parametrize("deed", ["hang", "hang_in_c"])
def test_a_hang_is_ended_at_its_timeout_and_the_next_video_is_decoded(decode, deed):
    started = time.monotonic()
    events, _ = decode(deed, "after", limits=Limits(timeout_seconds=2.0))
    assert events[deed][-1].reason == "timeout" and "2 s (--timeout)" in events[deed][-1].message
    assert kinds(events["after"]) == WHOLE
    assert time.monotonic() - started > 4.0


def test_frames_that_flow_do_not_time_out_however_long_they_take_together(spec, monkeypatch, video_folder):
    class Slow(VideoReading):
        def frames(self):
            for frame in super().frames():
                time.sleep(0.2)
                yield frame

    monkeypatch.setattr(decoding, "VideoReading", Slow)
    with GuardedDecoder(spec, Limits(timeout_seconds=1.5)) as decoder:
        events = [event for _, event in decoder.events([Job("v6", video_folder / "v6.mp4")])]
    assert isinstance(events[-1], dict) and events[-1]["seconds_waiting"] > 1.5
    assert Retried not in kinds(events)


@pytest.mark.parametrize("stage", ["scan", "in_order", "by_plan"])
def test_a_long_reading_of_which_no_frame_is_wanted_yet_does_not_time_out(monkeypatch, tmp_path, stage):
    path = render_video(tmp_path / "long.mp4", num_frames=40)
    module, name = {
        "scan": (facts, "is_damaged"),
        "in_order": (pyav_reader.PyAVReader, "_by_own_stamps"),
        "by_plan": (pyav_reader, "packets_of"),
    }[stage]
    real = getattr(module, name)

    def slow(*arguments):
        result = real(*arguments)
        if stage == "scan":
            time.sleep(0.05)
            return result
        return (time.sleep(0.05) or item for item in result)

    monkeypatch.setattr(module, name, slow)
    if stage == "in_order":
        monkeypatch.setattr(pyav_reader, "make_plan", lambda *_: None)
    spec = Encoder(EncodeConfig(num_frames=2)).read_spec
    with GuardedDecoder(spec, Limits(timeout_seconds=1.0)) as decoder:
        events = [event for _, event in decoder.events([Job("long", path)])]
    assert isinstance(events[-1], dict) and events[-1]["seconds_waiting"] > 1.0
    assert Retried not in kinds(events)


@pytest.mark.parametrize(
    ("deed", "words"), [("index_error", "IndexError: Out of bound indices"), ("end_of_file", "EOFError: .*End of file")]
)
def test_an_exception_of_a_decoder_is_the_failure_of_its_video(decode, deed, words):
    events, pids = decode(deed, "after")
    assert events[deed][-1].reason == "decode_error" and re.search(words, events[deed][-1].message)
    assert kinds(events["after"]) == WHOLE and len(pids) == 1


@pytest.mark.parametrize("how", ["replaced", "rewritten", "same_size_and_time"])
def test_a_file_that_changes_while_it_is_decoded_is_decoded_again_and_its_row_is_of_one_file(
    spec, monkeypatch, video_folder, tmp_path, how
):
    path, other = tmp_path / "v.mp4", video_folder / "v6.mp4"
    path.write_bytes((video_folder / "v0.mp4").read_bytes())

    class Changing(VideoReading):
        num_changed = 0

        def frames(self):
            frames = super().frames()
            yield next(frames)
            if Changing.num_changed == 0:
                Changing.num_changed += 1
                before = path.stat()
                if how == "rewritten":
                    path.write_bytes(other.read_bytes())
                else:
                    (tmp_path / "new").write_bytes(other.read_bytes())
                    (tmp_path / "new").replace(path)
                if how == "same_size_and_time":
                    os.truncate(path, before.st_size) if path.stat().st_size > before.st_size else None
                    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            yield from frames

    monkeypatch.setattr(decoding, "VideoReading", Changing)
    monkeypatch.setattr(decoding, "FRAMES_PER_MESSAGE", 1)
    whole = GuardedDecoder(spec._replace(sampling=replace(spec.sampling, allow_partial=True)), LIMITS)
    with whole as decoder:
        events = [event for _, event in decoder.events([Job("v", path)])]
    assert Retried in kinds(events)
    if isinstance(events[-1], dict):
        assert events[-1]["content_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert events[-1]["file_bytes"] == path.stat().st_size
    else:
        assert events[-1].file_identity == file_identity(path)


def test_a_file_that_never_stops_changing_is_a_failure_that_the_next_run_tries_again(
    spec, monkeypatch, video_folder, tmp_path
):
    path = tmp_path / "v.mp4"
    path.write_bytes((video_folder / "v0.mp4").read_bytes())

    class Growing(VideoReading):
        def frames(self):
            yield from super().frames()
            with path.open("ab") as handle:
                handle.write(b"\0\0\0\x08free")

    monkeypatch.setattr(decoding, "VideoReading", Growing)
    with GuardedDecoder(spec, LIMITS) as decoder:
        *_, last = (event for _, event in decoder.events([Job("v", path)]))
    assert (last.reason, last.attempts) == ("changed", 3)
    assert last.file_bytes < path.stat().st_size


def test_memory_beyond_the_limit_is_the_reason_without_a_kill(decode):
    events, pids = decode("swallow", "after")
    assert events["swallow"][-1].reason == "out_of_memory" and "--memory" in events["swallow"][-1].message
    assert kinds(events["after"]) == WHOLE and len(pids) == 1


def test_a_kill_that_does_not_come_again_costs_nothing(decode):
    events, _ = decode("crash_once", "after")
    assert kinds(events["crash_once"])[-3:] == [Retried, *WHOLE]
    assert kinds(events["after"]) == WHOLE


def test_a_video_survives_four_kills_from_outside(decode):
    events, _ = decode("be_killed", "after")
    assert Counter(kinds(events["be_killed"]))[Retried] == 4
    assert (events["be_killed"][-1].reason, events["be_killed"][-1].attempts) == ("signal", 5)
    assert "SIGKILL from outside" in events["be_killed"][-1].message and kinds(events["after"]) == WHOLE


def test_deaths_of_its_decoder_count_for_one_video_only(decode):
    events, _ = decode("crash_once", "hang_once", "abort_once", limits=Limits(timeout_seconds=2.0))
    assert all(isinstance(those[-1], dict) for those in events.values())


def test_a_decoder_is_replaced_after_some_videos(decode):
    _, pids = decode(*(f"v{n}" for n in range(7)), limits=Limits(recycle_videos=3))
    assert len(pids) == 3


def test_a_decoder_that_grows_is_replaced(decode):
    _, pids = decode(*(f"v{n}" for n in range(5)), limits=Limits(recycle_bytes=-(1 << 40)))
    assert len(pids) > 1


def test_the_decoder_ends_with_the_process_that_started_it(spec, video_folder, tmp_path):
    child = os.fork()
    if child == 0:
        decoder = GuardedDecoder(spec, LIMITS)
        next(decoder.events([Job("v0", video_folder / "v0.mp4")]))
        (tmp_path / "pid").write_text(str(decoder.process.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    orphan = Path("/proc") / (tmp_path / "pid").read_text() / "status"
    deadline = time.monotonic() + 60
    try:
        while "State:\tZ" not in orphan.read_text():
            assert time.monotonic() < deadline, "the decoder outlives its parent"
    except (FileNotFoundError, ProcessLookupError):
        pass  # gone
