"""Mending a cache: what bit-rot took is extracted again, and nothing else.

A damaged shard goes back to what a stopped run leaves: its intact videos staged, its place in the plan open. Then the
ordinary job settles the rest and writes the shard in the planned order, so the mended cache has the bytes of a clean
one, and a repair that is killed is finished by `unloc extract` or by the next repair.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import google_crc32c

from pipeline.extract import ExtractOptions, Progress, Summary, extract
from pipeline.ledger import Failure, Plan, Staging
from unloc.data.audit import Audit, Damage
from unloc.data.cache import CHECKSUM_KEY, Cache, open_cache, read_attributes
from unloc.data.cache_writer import (
    VideoTokens,
    create_array,
    file_checksum,
    fingerprint_differences,
    group_metadata,
    layout,
    write_atomically,
    write_checked,
    write_text_shard,
)
from unloc.data.lease import lease
from unloc.data.tar_shards import VideoFile
from unloc.errors import CacheError, FingerprintError, MissingError
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.inference.reading import file_hash

FindFile = Callable[[str, str | None], VideoFile | None]
"""The file of a video id, given the file name that the cache knows; None where there is none."""


def repair(
    path: Path,
    audit: Audit,
    find_file: FindFile,
    options: ExtractOptions,
    *,
    pretrained: str | None = None,
    on_progress: Progress | None = None,
) -> Summary:
    """Mend every damage of an audit, and finish planned shards whose videos are found.

    All that is needed is looked for before anything is touched.

    Raises MissingError where a video to extract has no file, CacheError where it has changed or where what is lost
    cannot be told, FingerprintError where the tower is not the one that made the cache.
    """
    config = EncodeConfig.from_fingerprint(open_cache(path).fingerprint, pretrained=pretrained)
    encoder = Encoder(config)
    if fingerprint_differences(encoder.fingerprint, open_cache(path).fingerprint, names=("here", "cache")):
        raise FingerprintError(f"{path}: its tower cannot be had here; give its weights file with --pretrained")
    shards = [damage for damage in audit.damages if _is_shard(damage, "shards")]
    plan = {} if any(damage.place == "plan.json" for damage in audit.damages) else Plan(path).shards
    files = waiting_files(path, find_file) if plan else {}
    files |= _files_to_extract(path, shards, plan, find_file)
    with lease(path):
        _mend_small_files(path, audit.damages)
        for damage in audit.damages:
            if _is_shard(damage, "texts"):
                _encode_texts_again(path, Path(damage.place).name, encoder)
        for damage in shards:
            _release(path, damage)
    return extract(path, config, replace(options, release=False), files, [], [], on_progress)


def waiting(path: Path) -> list[str]:
    """Videos that are planned and neither written nor staged: of an extraction, or a repair, that was stopped."""
    there = {item.name for item in (path / "shards").iterdir()}  # their tables may be damaged
    planned = [video_id for name, ids in Plan(path).shards.items() if name not in there for video_id in ids]
    return [video_id for video_id in planned if Staging(path).get(video_id) is None]


def waiting_files(path: Path, find_file: FindFile) -> dict[str, VideoFile]:
    """The files of those that are found."""
    found = {video_id: find_file(video_id, None) for video_id in waiting(path)}
    return {video_id: file for video_id, file in found.items() if file is not None}


def _is_shard(damage: Damage, kind: str) -> bool:
    folder, _, name = damage.place.partition("/")
    return folder == kind and name.isdigit()


def _files_to_extract(
    path: Path, shards: Sequence[Damage], plan: dict[str, list[str]], find_file: FindFile
) -> dict[str, VideoFile]:
    """The file of every video whose tokens are lost; each is the one that was cached, as far as its row is readable."""
    files = {}
    for damage in shards:
        name = Path(damage.place).name
        table = _table(path, name)
        if table is None and name not in plan:
            raise CacheError(
                f"{path}/{damage.place}: {damage.reason}, and no plan names its videos; remove the folder and run "
                "`unloc extract` with the manifest"
            )
        rows = {row["video_id"]: row for row in table["videos"]} if table else {}
        for video_id in damage.broken if table else plan[name]:
            files[video_id] = _file_of(video_id, rows.get(video_id, {}), find_file)
    return files


def _table(path: Path, name: str) -> dict | None:
    try:
        return read_attributes(path / "shards" / name)
    except CacheError:
        return None


def _file_of(video_id: str, row: dict, find_file: FindFile) -> VideoFile:
    found = find_file(video_id, row.get("file"))
    if found is None:
        file = row.get("file", "file unknown")
        raise MissingError(f"video {video_id!r} ({file}) is not in the video folder; name the folder with --videos")
    if row and file_hash(found) != row["content_sha256"]:
        raise CacheError(f"{found}: is not the file that was cached as {video_id!r}; give the folder that has that one")
    return found


def _mend_small_files(path: Path, damages: Sequence[Damage]) -> None:
    places = {damage.place for damage in damages}
    if "shards/zarr.json" in places:
        _copy_metadata(path, path / "shards")
    if "texts/zarr.json" in places:
        write_atomically(path / "texts" / "zarr.json", group_metadata({}))
    for name in ("aliases.json", "plan.json", "projections.json"):
        if name in places:
            (path / name).unlink()  # the next extract finds them again


def mend_root(path: Path) -> bool:
    """Write a cache's own `zarr.json` again from its copy, if it is damaged; True if it was.

    Raises CacheError where the copy is damaged too, or is of a version that kept none.
    """
    try:
        read_attributes(path)
    except CacheError:
        if "fingerprint" not in read_attributes(path / "shards"):
            raise
        _copy_metadata(path / "shards", path)
        return True
    return False


def mend_array_metadata(path: Path) -> int:
    """Write again what describes a shard's array, where only that is damaged: no token of it is lost. How many were."""
    cache, mended = Cache(path), 0
    for folder in sorted((path / "shards").glob("[0-9]*")):
        table, file = _table(path, folder.name), folder / "frames" / "zarr.json"
        stated = table["files"].get("frames/zarr.json") if table else None
        if stated is None or (file.is_file() and file_checksum(file) == stated):
            continue
        rebuilt = _array_metadata(cache, [row["num_tokens"] for row in table["videos"]])
        if f"{google_crc32c.value(rebuilt):08x}" == stated:
            write_atomically(file, rebuilt.decode())
            mended += 1
    return mended


def _array_metadata(cache: Cache, lengths: Sequence[int]) -> bytes:
    fingerprint, (firsts, chunk) = cache.fingerprint, layout(lengths)
    frame_dim = fingerprint.get("tower.frame_dim") or fingerprint["import.frame_dim"]
    with tempfile.TemporaryDirectory() as folder:
        create_array(Path(folder) / "x", (firsts[-1], len(fingerprint["views"]), frame_dim), chunk, cache.dtype)
        return (Path(folder) / "x" / "zarr.json").read_bytes()


def _copy_metadata(source: Path, target: Path) -> None:
    attributes = read_attributes(source)
    del attributes[CHECKSUM_KEY]
    write_atomically(target / "zarr.json", group_metadata(attributes))


def _encode_texts_again(path: Path, name: str, encoder: Encoder) -> None:
    """The texts of a shard, in their order; where its table is lost the shard goes, and extract adds them again."""
    folder = path / "texts" / name
    try:
        texts = [text for text, _, _ in read_attributes(folder)["texts"]]
    except CacheError:
        texts = []
    tokens = encoder.encode_texts(texts)
    _remove(folder)
    if texts:
        write_text_shard(path, list(zip(texts, tokens, strict=True)), encoder.config.dtype, name=name)


def _release(path: Path, damage: Damage) -> None:
    """Make a damaged shard one that is planned and not written, with its intact videos and its failures staged."""
    name = Path(damage.place).name
    table = _table(path, name)
    if table is not None:
        _stage_intact(path, name, table, set(damage.intact))
        plan = Plan(path)
        if name not in plan.shards:
            plan.shards[name] = [row["video_id"] for row in [*table["videos"], *table["failed"]]]
            write_checked(plan.path, plan.shards)
    _remove(path / "shards" / name)


def _stage_intact(path: Path, name: str, table: dict, intact: set[str]) -> None:
    staging, cache = Staging(path), Cache(path)
    for row in table["videos"]:
        if row["video_id"] in intact:
            meta = {key: value for key, value in row.items() if key not in ("first_row", "num_tokens")}
            staging.put(VideoTokens(meta, cache.stored_tokens(row | {"shard": name})))
    for row in table["failed"]:
        staging.put(Failure(**{key: value for key, value in row.items() if key != "status"}))


def _remove(folder: Path) -> None:
    """Out of sight in one step, then off the disk; of a kill between the two `remove_rests` takes what is left."""
    hidden = folder.with_name(f".{folder.name}.broken.part")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden)
