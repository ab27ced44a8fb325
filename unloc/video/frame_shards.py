"""Frames of videos as JPEGs in WebDataset tar shards: decoded once, read in any order while an image tower trains.

    OUT/frames-000000.tar     of each video NUMBER.json, then NUMBER.0000.jpg and so on, one for each sampled moment
    OUT/frames-000000.jsonl   how the shard was packed; then, for each video, its JSON and where its JPEGs are in the
                              tar file, or why it failed

NUMBER is the video's place in the manifest, as WebDataset would cut ids at a dot. The same manifest and files give the
same bytes. A shard appears, index first, when it is complete; an existing one is not written again.
"""

import io
import json
import multiprocessing
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from unloc.callbacks import OnProgress
from unloc.child_process import start_worker
from unloc.errors import CacheError, CoverageError, InputError, MissingError, VideoError, one_line
from unloc.files import replacing, write_file
from unloc.video.preprocess import PreprocessSpec, resize_for_crop
from unloc.video.reading import FrameSampling, ReadSpec, VideoReading
from unloc.video.video_file import VideoFile, on_disk

SHARD_NAME = "frames-{:06d}.tar"
VIDEOS_PER_SHARD = 256
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
KEPT = ("video_id", "file", "file_bytes", "content_sha256", "duration_seconds", "covered_seconds", "times_seconds")
KEPT += ("truncated", "decoder", "codec", "width", "height", "sample_aspect_ratio")
DECODING_ERRORS = (ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
Job = tuple[str, VideoFile | None, "FrameSpec"]
Packed = tuple[dict, list[bytes]]  # a video's row and JPEGs; none where the row says why it failed


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """Which frames of a video are packed, and how large they are."""

    sampling: FrameSampling
    size: int = 256  # most pixels of the short side; smaller videos keep their size

    def to_dict(self) -> dict:
        """What the index states."""
        return {"fps": self.sampling.fps, "num_frames": self.sampling.num_frames, "size": self.size}


def sampled_frames(
    video_id: str, file: VideoFile, spec: FrameSpec, convert: Callable[[Tensor], Any] = Tensor.numpy
) -> tuple[dict, list]:
    """A video's row, and each frame that `unloc extract` would encode, (3, H, W) uint8, converted. Raises VideoError.
    Where the stream changes size, later frames are cropped or padded about their centre to the size of the first.
    """
    preprocess = PreprocessSpec(image_size=spec.size, mean=(0.0,) * 3, std=(1.0,) * 3)
    with on_disk(file) as path:
        reading, shape = VideoReading(path, ReadSpec(spec.sampling, preprocess), file), None
        frames = [None] * len(reading.wanted_seconds)
        for shown in reading.reader.frames_at(reading.wanted_seconds):
            reading.times_seconds[shown.positions] = shown.time_seconds
            if shape is None:
                preprocess = replace(preprocess, image_size=min(preprocess.image_size, *shown.image.shape[:2]))
            pixels = resize_for_crop(shown.image, preprocess)
            shape = shape or list(pixels.shape[1:])
            converted = convert(F.center_crop(pixels, shape))
            for position in shown.positions:
                frames[position] = converted
        row = reading.row(video_id)
    shape = {"frame_height": shape[0], "frame_width": shape[1]}
    return {key: row[key] for key in KEPT} | shape | spec.to_dict(), frames


def _pack_video(job: Job) -> Packed:
    """A video's row and JPEGs; its faults are data. OSError stops the job: it may be no fault of the video."""
    video_id, file, spec = job

    def to_jpeg(pixels: Tensor) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, **JPEG)
        return buffer.getvalue()

    try:
        if file is None:
            raise VideoError("the manifest's video has no file", reason="not_found")
        return sampled_frames(video_id, file, spec, to_jpeg)
    except VideoError as error:
        return {"video_id": video_id, "reason": error.reason, "message": str(error)}, []
    except (av.error.FFmpegError, *DECODING_ERRORS) as error:
        message = f"{file}: {type(error).__name__}: {one_line(error)}"
        return {"video_id": video_id, "reason": "decode_error", "message": message}, []


def pack_frames(
    video_ids: list[str],
    files: dict[str, VideoFile],
    out: Path,
    spec: FrameSpec,
    *,
    workers: int = 1,
    videos_per_shard: int = VIDEOS_PER_SHARD,
    on_progress: OnProgress = lambda done, total: None,
) -> list[dict]:
    """Pack videos with `workers` processes (1: this one alone); their rows, with `reason` and `message` of failures.
    Raises InputError where there is nothing to pack, or OUT has shards of other videos or another packing.
    """
    if not files:
        raise InputError(f"{out}: no video of the manifest was found; nothing is packed")
    parts = [video_ids[start : start + videos_per_shard] for start in range(0, len(video_ids), videos_per_shard)]
    paths = [out / SHARD_NAME.format(number) for number in range(len(parts))]
    if strays := sorted({*out.glob("frames-*.tar")} - {*paths}):
        raise InputError(f"{out}: has shards of another packing (first: {strays[0].name}); pack into a new folder")
    all_rows: list[dict] = []
    for path, part in zip(paths, parts, strict=True):
        if path.is_file():
            header, rows = read_index(path)
            if header["packing"] != spec.to_dict() or [row["video_id"] for row in rows] != part:
                raise InputError(f"{path}: holds other videos or another packing of them; pack into a new folder")
            all_rows += rows
        else:
            packed = _pack_all([(video_id, files.get(video_id), spec) for video_id in part], workers)
            for row in _write_shard(path, len(all_rows), spec, packed):
                all_rows.append(row)
                on_progress(len(all_rows), len(video_ids))
        on_progress(len(all_rows), len(video_ids))
    return all_rows


def require_coverage(rows: list[dict], share: float) -> None:
    """Raises CoverageError where a smaller share of the videos is packed."""
    failed = [row for row in rows if "reason" in row]
    if (len(rows) - len(failed)) / len(rows) < share:
        counts = f"{len(rows) - len(failed)} of {len(rows)} videos are packed, --coverage asks for {share:.0%}"
        first = f"{failed[0]['video_id']}: {failed[0]['reason']}"
        raise CoverageError(f"{counts} (first: {first}); delete a shard to try its failed videos again")


def _pack_all(jobs: list[Job], workers: int) -> Iterator[Packed]:
    """`_pack_video` of all jobs in their order. A job whose process died is tried alone, then counts as failed."""
    if workers <= 1:
        yield from map(_pack_video, jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, start_worker)
    try:
        for job, future in [(job, pool.submit(_pack_video, job)) for job in jobs]:
            try:
                yield future.result()
            except BrokenProcessPool:
                with ProcessPoolExecutor(1, context, start_worker) as alone:
                    try:
                        yield alone.submit(_pack_video, job).result()
                    except BrokenProcessPool:
                        message = f"{job[1]}: the decoding process died"
                        yield {"video_id": job[0], "reason": "crash", "message": message}, []
    finally:
        pool.shutdown(cancel_futures=True)


def _write_shard(path: Path, first: int, spec: FrameSpec, packed: Iterable[Packed]) -> Iterator[dict]:
    """Write a shard and its index; yields the index's row of each video once the tar file has it."""
    rows = []
    with replacing(path) as part:
        with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, (row, jpegs) in enumerate(packed, start=first):
                if jpegs:
                    _add(tar, f"{number:08d}.json", json.dumps(row).encode())
                    offsets = [_add(tar, f"{number:08d}.{index:04d}.jpg", jpeg) for index, jpeg in enumerate(jpegs)]
                    row = row | {"frame_offsets": offsets, "frame_bytes": [len(jpeg) for jpeg in jpegs]}
                rows.append(row)
                yield row
        header = {"kind": "frames", "version": 1, "packing": spec.to_dict(), "tar_bytes": part.stat().st_size}
        write_file(path.with_suffix(".jsonl"), "".join(json.dumps(line) + "\n" for line in (header, *rows)))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a member; returns where its content begins in the tar file."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(content), 0o644
    tar.addfile(header, io.BytesIO(content))
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def read_index(path: Path) -> tuple[dict, list[dict]]:
    """How a shard was packed, and its rows. Raises CacheError where its index is absent, or of another tar file."""
    index = path.with_suffix(".jsonl")
    try:
        header, *rows = map(json.loads, index.read_text(encoding="utf-8").splitlines())
        is_same = header["tar_bytes"] == path.stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{index}: is no index of {path.name} ({one_line(error)}); copy both, or pack again") from None
    if not is_same:
        raise CacheError(f"{path}: does not have the {header['tar_bytes']} bytes that its index states; copy it again")
    return header, rows


def packed_videos(folder: Path) -> dict[str, tuple[Path, dict]]:
    """(shard, row) of each packed video. Raises MissingError without shards, CacheError as `read_index`."""
    if not (paths := sorted(folder.glob("frames-*.tar"))):
        raise MissingError(f"{folder}: has no frames-*.tar; make them with `unloc data pack --frames N`")
    rows = [(path, row) for path in paths for row in read_index(path)[1]]
    return {row["video_id"]: (path, row) for path, row in rows if "reason" not in row}


def read_frames(shard: Path, row: dict, indices: np.ndarray) -> np.ndarray:
    """(N, 3, H, W) uint8 of these frames of a video, each decoded once. Raises CacheError for a damaged one."""
    distinct, inverse = np.unique(indices, return_inverse=True)
    images = np.empty((len(distinct), 3, row["frame_height"], row["frame_width"]), dtype=np.uint8)
    with shard.open("rb") as file:
        for image, index in zip(images, distinct.tolist(), strict=True):
            jpeg = os.pread(file.fileno(), row["frame_bytes"][index], row["frame_offsets"][index])
            try:
                image[:] = np.asarray(Image.open(io.BytesIO(jpeg), formats=["JPEG"])).transpose(2, 0, 1)
            except (OSError, ValueError) as error:
                place = f"{shard}: frame {index} of {row['video_id']}"
                raise CacheError(f"{place} is damaged ({one_line(error)}); copy it again, or pack again") from None
    return images if np.array_equal(distinct, indices) else images[inverse]
