"""Renders a world: videos in H.264 through PyAV, and their annotations in the official formats.

    OUT/world.json  OUT/videos/*.mp4  OUT/annotations/…  and where asked for OUT/clips/*.mp4, one of each labelled event

Each video is a function of (seed, index) and the style, to the byte; what happens in it does not depend on the style. A
second run renders only the videos that are missing.
"""

import json
import math
import multiprocessing
import shutil
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import av
import numpy as np

from unloc.callbacks import OnProgress
from unloc.errors import InputError
from unloc.files import replacing, write_file
from unloc.synth.events import VideoPlan, plan_video, video_generator
from unloc.synth.formats import all_annotations, clip_annotations, labelled_clips
from unloc.synth.scenes import Scene

WORLD_VERSION = 1  # to be raised with every change of a pixel or an annotation


def render_world(
    out: Path,
    *,
    num_videos: int,
    seed: int,
    workers: int,
    style: str = "studio",
    overwrite: bool = False,
    clips: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> None:
    """Render videos 0 … num_videos-1 of the world `seed` into `out`, and their `clips`, with annotations of these.

    `workers` is the number of processes (0 or 1: this process alone); `on_progress` is called with videos done and all.
    Raises InputError where `out` holds anything but this world (unless it is another world and `overwrite` empties it
    first). `style` is one of `scenes.STYLES`.
    """
    wanted, found, record = {"world_version": WORLD_VERSION, "seed": seed}, None, out / "world.json"
    wanted |= {"style": style} if style != "studio" else {}
    with suppress(OSError, ValueError):
        found = json.loads(record.read_text(encoding="utf-8"))
    if found != wanted:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            if not found:
                raise InputError(f"{out} is not empty and holds no world; asked for {wanted}: give another folder")
            if not overwrite:
                advice = "give --overwrite to delete it, or another folder"
                raise InputError(f"{out} holds the world {found}; asked for {wanted}: {advice}")
            shutil.rmtree(out)
        write_file(record, json.dumps(wanted) + "\n")
    plans = [plan_video(seed, index) for index in range(num_videos)]
    files = {out / "videos" / f"{plan.video_id}.mp4": (plan.index, 0.0, math.inf) for plan in plans}
    for plan in plans if clips else ():
        files |= {out / "clips" / f"{key}.mp4": (plan.index, *span) for key, (_, *span) in labelled_clips(plan).items()}
    jobs = [
        (seed, index, style, start, end, str(path)) for path, (index, start, end) in files.items() if not path.is_file()
    ]
    workers = min(workers, len(jobs))
    with multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else nullcontext() as pool:
        rendered = pool.imap_unordered(render_video, jobs) if pool else map(render_video, jobs)
        for done, _ in enumerate(rendered, start=len(files) - len(jobs) + 1):
            on_progress(done, len(files))
    for path, text in (all_annotations(plans, seed) | (clip_annotations(plans) if clips else {})).items():
        write_file(out / "annotations" / path, text)


def render_video(job: tuple[int, int, str, float, float, str]) -> None:
    """Render (seed, index, style, start, end, path): the part of a video between two times in seconds."""
    seed, index, style, start, end, path = job
    plan = plan_video(seed, index)
    with replacing(Path(path), sync=False) as part:
        encode_video(part, plan, video_frames(plan, seed, style, start, end))


def video_frames(
    plan: VideoPlan, seed: int, style: str = "studio", start: float = 0.0, end: float = math.inf
) -> Iterator[np.ndarray]:
    """All frames of a video, or of a part of it, in order, uint8 (H, W, 3) RGB; frame i shows the time i / fps, events
    over distractors.
    """
    scene = Scene(video_generator(seed, plan.index, 1), plan.width, plan.height, plan.duration_seconds, style)
    times = (float(number / plan.fps) for number in range(plan.num_frames))
    for seconds in (seconds for seconds in times if start <= seconds < end):
        yield scene.frame(seconds, (item.sprite_at(seconds) for item in (*plan.distractors, *plan.events)))


def encode_video(path: Path, plan: VideoPlan, frames: Iterable[np.ndarray]) -> None:
    """Write frames as H.264 in MP4 with the plan's rate, size, GOP and number of B-frames; closed GOPs, one thread."""
    # Presets with look-ahead (veryfast and slower) give other bytes in each run on frames as small as these.
    options = {"preset": "superfast", "crf": "28", "threads": "1", "x264-params": "open-gop=0:scenecut=0:weightp=0"}
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=plan.fps, options=options)
        stream.width, stream.height, stream.pix_fmt = plan.width, plan.height, "yuv420p"
        stream.gop_size, stream.max_b_frames = plan.gop, plan.num_b_frames
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
