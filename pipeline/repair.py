"""Mending a cache: a damaged shard is extracted again, and the new one replaces it once it is whole.

Videos of which tokens and row are still those that were written are copied, so only what is lost is decoded.
What cannot be mended stays as it is and is told: nothing is removed that does not come back.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.aliases import add_aliases, share_tokens, split_by_file
from pipeline.decode_child import Job
from pipeline.extract import ExtractOptions, results_of, write_staged
from pipeline.ledger import FAILED, MISSING, Failure, Ledger, Plan, Staging
from pipeline.summary import Summary
from unloc.cache.audit import Audit, Damage, audit_cache
from unloc.cache.mirror import Home
from unloc.cache.reading import CHECKSUM_KEY, Cache, Table, open_cache, read_attributes
from unloc.cache.writing import (
    fingerprint_differences,
    group_metadata,
    stored_video,
    write_checked,
    write_projections,
    write_text_shard,
)
from unloc.errors import CacheError, FingerprintError, MissingError, UnlocError
from unloc.files import folder_lock, remove_leftovers, write_file
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.video_file import VideoFile, file_hash

FindFile = Callable[[str, str | None], VideoFile | None]
"""The file of a video id, given the file name that the cache knows; None where there is none."""


@dataclass(frozen=True)
class ManifestContent:
    """What a manifest names: some losses can be made good by it only."""

    files: dict[str, VideoFile]
    texts: Sequence[str]


@dataclass(frozen=True)
class Repair:
    """What was damaged and what of it is left."""

    before: Audit
    after: Audit
    left: tuple[str, ...]
    """What could not be mended: place, reason and what to do."""
    told: tuple[str, ...]
    """What was mended as far as the manifest goes."""


def repair(
    home: Home,
    find_file: FindFile,
    options: ExtractOptions,
    *,
    manifest: ManifestContent | None = None,
    pretrained: str | None = None,
) -> Repair:
    """Audit a cache and mend what can be mended, held for writing all the while.

    Raises CacheError where another process writes the cache or not even its fingerprint can be read, FingerprintError
    where the tower that made it is needed and cannot be had.
    """
    path = home.folder
    with home.lease(), folder_lock(path):
        remove_leftovers(path)
        root = _mend_root(path)
        before = audit_cache(path)
        before = replace(before, damages=(*root, *before.damages))
        mender = _Mender(path, find_file, options, manifest, pretrained)
        mender.mend(before.damages)
        after = audit_cache(path)
        home.publish()
    return Repair(before, after, tuple(mender.left), tuple(mender.told))


def _mend_root(path: Path) -> list[Damage]:
    """Write a cache's own `zarr.json` again from its copy, if it is damaged. Raises CacheError where both are."""
    try:
        read_attributes(path)
    except CacheError:
        _copy_metadata(path / "shards", path)
        return [Damage("zarr.json", "is not what was written")]
    return []


def _copy_metadata(source: Path, target: Path) -> None:
    attributes = read_attributes(source)
    del attributes[CHECKSUM_KEY]
    write_file(target / "zarr.json", group_metadata(attributes))


@dataclass
class _Redo:
    """A shard that is written again."""

    name: str
    ids: list[str]
    """Its videos, in order, with those that failed."""
    jobs: list[Job]
    """Those that are extracted again; what became of the others is staged."""


class _Mender:
    """One repair; `left` and `told` as in Repair."""

    def __init__(
        self,
        path: Path,
        find_file: FindFile,
        options: ExtractOptions,
        manifest: ManifestContent | None,
        pretrained: str | None,
    ) -> None:
        self.path, self.find_file, self.options, self.manifest = path, find_file, options, manifest
        self.pretrained, self.left, self.told = pretrained, [], []
        self.staging = Staging(path)

    @cached_property
    def encoder(self) -> Encoder:
        """The tower that made the cache. Partial videos are allowed: what is extracted here was cached before."""
        stated = open_cache(self.path).fingerprint
        encoder = Encoder(
            replace(EncodeConfig.from_fingerprint(stated, pretrained=self.pretrained), allow_partial=True)
        )
        if fingerprint_differences(encoder.fingerprint, stated, names=("here", "cache")):
            raise FingerprintError(
                f"{self.path}: its tower cannot be had here; give its weights file with --pretrained"
            )
        return encoder

    def mend(self, damages: Sequence[Damage]) -> None:
        """Mend each place or note why not: first what needs no tower, the aliases when the tables are whole."""
        places = {damage.place: damage for damage in damages}
        if "shards/zarr.json" in places:
            _copy_metadata(self.path, self.path / "shards")
        if "texts/zarr.json" in places:
            write_file(self.path / "texts" / "zarr.json", group_metadata({}))
        if "projections.json" in places:
            write_projections(self.path, self.encoder.tower.projections)
        if "plan.json" in places:
            self._mend_plan()
        numbered = [damage for damage in damages if not damage.place.endswith(".json")]
        self._mend_texts([damage for damage in numbered if damage.place.startswith("texts/")])
        self._mend_shards([damage for damage in numbered if damage.place.startswith("shards/")])
        if "aliases.json" in places:
            self._mend_aliases()

    def _mend_plan(self) -> None:
        """From the tables. Which videos a stopped extraction had planned is known by nothing else."""
        plan = {
            name: [*table.number_of, *(row["video_id"] for row in table.failed[name])]
            for name, table in self._tables().items()
        }
        write_checked(self.path / "plan.json", plan)
        if any(self.staging.folder.iterdir()):
            self.left.append("plan.json: the places of videos that are not written yet are lost; run `unloc extract`")

    def _tables(self) -> dict[str, Table]:
        """Of every shard whose table is whole, in order."""
        found = {}
        for folder in sorted((self.path / "shards").glob("[0-9]*")):
            try:
                found[folder.name] = Table.read([folder])
            except CacheError:
                continue
        return found

    def _mend_texts(self, damages: Sequence[Damage]) -> None:
        nameless = []
        for damage in damages:
            try:
                texts = [text for text, _, _ in read_attributes(self.path / damage.place)["texts"]]
            except CacheError:
                nameless.append(damage)
            else:
                self._write_texts(damage, texts)
        if nameless and self.manifest is None:
            self.left += [f"{damage.place}: {damage.reason}; give --manifest" for damage in nameless]
        elif nameless:
            self._mend_texts_by_manifest(nameless)

    def _write_texts(self, damage: Damage, texts: Sequence[str]) -> None:
        tokens, dtype = self.encoder.encode_texts(list(texts)), self.encoder.config.dtype
        write_text_shard(self.path, list(zip(texts, tokens, strict=True)), dtype, name=Path(damage.place).name)

    def _mend_texts_by_manifest(self, damages: Sequence[Damage]) -> None:
        """The texts of the manifest that no other shard holds take the place of those that are not known any more."""
        places = {damage.place for damage in damages}
        whole = [folder for folder in (self.path / "texts").glob("[0-9]*") if f"texts/{folder.name}" not in places]
        known = {text for folder in whole for text, _, _ in read_attributes(folder)["texts"]}
        texts = [text for text in dict.fromkeys(self.manifest.texts) if text not in known]
        if not texts:
            words = "none of the manifest's texts is missing: give the manifest that they came from"
            self.left += [f"{damage.place}: {damage.reason}; {words}" for damage in damages]
            return
        self._write_texts(damages[0], texts)
        for damage in damages[1:]:
            shutil.rmtree(self.path / damage.place)
        self.told.append(
            f"{damages[0].place}: has the manifest's {len(texts)} texts again; run `unloc extract` with any other "
            "manifest whose texts were here"
        )

    def _mend_aliases(self) -> None:
        if self.manifest is None:
            self.left.append("aliases.json: the other ids of cached videos are lost; give --manifest and --videos")
            return
        if any(damage.place.startswith("shards/") for damage in audit_cache(self.path).damages):
            self.left.append("aliases.json: is mended once the shards are; run the same command again")
            return
        (self.path / "aliases.json").unlink()
        unique, same = split_by_file(self.manifest.files)
        add_aliases(self.path, unique)
        found = share_tokens(self.path, same).aliases
        write_checked(self.path / "aliases.json", found)
        self.told.append(
            f"aliases.json: has {len(found)} ids of the manifest again; run `unloc extract` with any other manifest "
            "of these videos"
        )

    def _mend_shards(self, damages: Sequence[Damage]) -> None:
        redone = [redo for damage in damages if (redo := self._prepared(damage)) is not None]
        jobs, failed = [job for redo in redone for job in redo.jobs], {}
        if jobs:
            with results_of(jobs, self.encoder, self.options, Summary()) as results:
                for result in results:
                    if isinstance(result, Failure):
                        failed[result.video_id] = result
                    else:
                        self.staging.put(result)
        dtype = Cache(self.path).dtype
        for redo in redone:
            lost = next((failed[job.video_id] for job in redo.jobs if job.video_id in failed), None)
            if lost is None:
                write_staged(self.path, redo.name, self.staging, redo.ids, dtype)
            else:
                words = f"video {lost.video_id!r} cannot be extracted again ({lost.reason}: {lost.message})"
                self.left.append(f"shards/{redo.name}: {words}")
            self.staging.drop(redo.ids)

    def _prepared(self, damage: Damage) -> _Redo | None:
        """A shard with all that is left of it staged; None where what is needed for the rest is not there."""
        name, tables = Path(damage.place).name, self._tables()
        later = {video_id for other, table in tables.items() if other > name for video_id in table.number_of}
        if name in tables:
            shard = Cache(self.path)
            shard.table = tables[name]  # of this shard alone: others may be damaged, or replace videos of it
            settled, rows = self._staged(shard, damage.broken)
            ids = [*shard.rows, *(row["video_id"] for row in tables[name].failed[name])]
        elif (ids := Plan(self.path).shards.get(name)) is not None:
            settled, rows = self._staged_failures(ids, name, tables), {}
        else:
            self.left.append(
                f"{damage.place}: {damage.reason}, and no plan names its videos; remove the folder and run "
                "`unloc extract` with the manifest"
            )
            return None
        ids = [video_id for video_id in ids if video_id not in later]
        try:
            jobs = [
                Job(video_id, self._file_of(video_id, rows.get(video_id, {})))
                for video_id in ids
                if video_id not in settled
            ]
        except UnlocError as error:
            self.left.append(f"{damage.place}: {damage.reason}; {error}")
            self.staging.drop(ids)
            return None
        return _Redo(name, ids, jobs)

    def _staged(self, shard: Cache, broken: Sequence[str]) -> tuple[set[str], dict[str, dict]]:
        """Stage what is intact of a shard: (ids that are staged, what is known of the broken ones)."""
        (name,) = shard.shards
        intact = shard.rows.keys() - set(broken)
        failures = [Failure.from_row(row) for row in shard.table.failed[name]]
        for result in (*failures, *(stored_video(shard, video_id) for video_id in intact)):
            self.staging.put(result)
        try:
            rows = {video_id: shard.rows[video_id] for video_id in broken}
        except CacheError:
            rows = {video_id: {"file_bytes": shard.column("file_bytes", video_id)} for video_id in broken}
        return intact | {failure.video_id for failure in failures}, rows

    def _staged_failures(self, ids: Sequence[str], name: str, tables: dict[str, Table]) -> set[str]:
        """Where only the plan tells what a shard held: the videos that had failed, as the ledger has it."""
        noted, refreshed = Ledger(self.path).last_rows(), set()
        for other, table in tables.items():
            if other > name:  # a failure of a later try says nothing of this shard
                refreshed |= {row["video_id"] for row in table.failed[other]}
        failures = [
            Failure.from_row(row)
            for video_id in set(ids) - refreshed
            if (row := noted.get(video_id, {})).get("status") == FAILED and row["reason"] != MISSING
        ]
        for failure in failures:
            self.staging.put(failure)
        return {failure.video_id for failure in failures}

    def _file_of(self, video_id: str, row: dict) -> VideoFile:
        """The file that was cached, as far as its row tells. Raises MissingError or CacheError."""
        found = self.find_file(video_id, row.get("file"))
        if found is None:
            file = row.get("file", "file name unknown")
            raise MissingError(f"video {video_id!r} ({file}) is not in the video folder; name the folder with --videos")
        is_other = found.stat().st_size != row.get("file_bytes", found.stat().st_size) or (
            "content_sha256" in row and file_hash(found) != row["content_sha256"]
        )
        if is_other:
            raise CacheError(
                f"{found} is not the file that was cached as {video_id!r}; give the folder that has that one, or take "
                f"the new one: unloc extract … --refresh {video_id}"
            )
        return found
