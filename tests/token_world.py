"""A small learnable world of tokens, without videos: a class or query is a direction, its segments carry it."""

from pathlib import Path

import numpy as np

from unloc.annotations.schema import InstanceRow, QueryRow, VideoRow, build_manifest, save_manifest
from unloc.cache.writing import VideoTokens, create_or_check, token_checksum, write_texts, write_video_shard

DIM, FPS, SECONDS = 16, 2.0, 16.0
NAMES = ("red circle", "blue square", "green star")


def events_of(rng):
    """Two segments (start, end, class) of different classes that do not overlap."""
    edges = np.sort(rng.choice(np.arange(1, 15), size=4, replace=False)).astype(float)
    first, second = rng.permutation(3)[:2]
    return [(edges[0], edges[1], int(first)), (edges[2], edges[3], int(second))]


def rows_of(video_id, split, events):
    yield VideoRow(video_id, split, SECONDS)
    for number, (start, end, index) in enumerate(events):
        yield InstanceRow(video_id, split, NAMES[index], [start, end])
        clips = list(range(int(start // 2), int(np.ceil(end / 2))))
        yield QueryRow(
            video_id, split, f"{video_id}-{number}", NAMES[index], [[start, end]], clips, [[4, 3, 4]] * len(clips)
        )


def make_token_world(folder: Path) -> tuple[Path, Path]:
    """(manifest, cache) of 60 videos; the manifest serves all four tasks."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0][:3] * 3
    create_or_check(folder / "cache", {"tower.name": "made up", "sampling.fps": FPS}, {})
    videos, rows = [], []
    for number in range(60):
        video_id, split = f"v{number}", ("train" if number < 40 else "val" if number < 50 else "test")
        times = np.arange(int(SECONDS * FPS)) / FPS
        tokens = rng.normal(size=(len(times), DIM)) * 0.3
        events = events_of(rng)
        for start, end, index in events:
            tokens[(times >= start) & (times < end)] += directions[index]
        tokens = tokens[:, None].astype(np.float16)
        meta = {"video_id": video_id, "times_seconds": times.tolist(), "duration_seconds": SECONDS, "decoder": "none"}
        videos.append(VideoTokens(meta | {"tokens_sha256": token_checksum(tokens)}, tokens))
        rows += rows_of(video_id, split, events)
    write_video_shard(folder / "cache", "00000", videos, [], "float16")
    texts = [(name, np.stack([directions[n] * 0, directions[n]]).astype(np.float16)) for n, name in enumerate(NAMES)]
    write_texts(folder / "cache", texts, "float16")
    manifest = build_manifest(name="made up", tasks=("mr", "tal", "as", "hd"), rows=rows, classes=NAMES)
    save_manifest(manifest, folder / "manifest.jsonl")
    return folder / "manifest.jsonl", folder / "cache"
