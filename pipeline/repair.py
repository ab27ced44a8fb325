"""Repair of a cache: damaged videos are extracted again, intact ones copied; what cannot be repaired is reported."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipeline.cluster import ExtractOptions
from pipeline.decoding import Job
from pipeline.extract import add_aliases, results_of, split_by_file
from pipeline.ledger import MISSING, Ledger, Summary
from unloc.cache.metadata import group_metadata, read_attributes, write_checked
from unloc.cache.opening import Home
from unloc.cache.reading import Cache, read_table
from unloc.cache.shards import FAILED, Failure, ShardWriter, last_failures
from unloc.cache.writing import Audit, Damage, audit_cache, stored_video, write_projections, write_texts
from unloc.callbacks import OnProgress
from unloc.errors import CacheError, FingerprintError, MissingError, UnlocError
from unloc.files import folder_lock, remove_leftovers, write_file
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.video_file import VideoFile, file_hash


@dataclass
class Repair:
    """One repair; after `run` it holds the damage that was found and what could not be repaired."""

    home: Home
    find_file: Callable[[str, str | None], VideoFile | None]  # as `VideoIndex.find`, for the file name in the cache
    options: ExtractOptions
    files: dict[str, VideoFile] | None = None  # of a manifest; without one some losses cannot be repaired
    texts: Sequence[str] = ()  # of the manifest
    pretrained: str | None = None  # weights file of the tower that made the cache
    left: list[str] = field(default_factory=list)  # what could not be repaired: place, reason and what to do
    notes: list[str] = field(default_factory=list)  # what was repaired only as far as the manifest goes
    shards: dict[str, Cache] = field(default_factory=dict)  # those with a readable table, each as a cache of its own
    before: Audit = field(init=False)
    after: Audit = field(init=False)

    def run(self, on_progress: OnProgress = lambda done, total: None) -> "Repair":
        """Audit the cache and repair what can be repaired; returns itself. Raises CacheError where another process
        writes it or its fingerprint is lost, FingerprintError: no tower.
        """
        path, root = self.home.folder, []
        with self.home.lock(), folder_lock(path):
            remove_leftovers(path)
            try:
                read_attributes(path)
            except CacheError:
                read_attributes(path / "shards")  # a copy of it
                write_file(path / "zarr.json", (path / "shards" / "zarr.json").read_bytes())
                root = [Damage("zarr.json", "is not what was written")]
            before = audit_cache(path, on_progress)
            self.before = replace(before, damages=(*root, *before.damages))
            places = {damage.place for damage in before.damages}
            if "shards/zarr.json" in places:
                write_file(path / "shards" / "zarr.json", (path / "zarr.json").read_bytes())
            if "texts/zarr.json" in places:
                write_file(path / "texts" / "zarr.json", group_metadata({}))
            if "projections.json" in places:
                write_projections(path, self.encoder.tower.projections)
            for folder in sorted((path / "shards").glob("[0-9]*")):
                with suppress(CacheError):
                    shard = Cache(path)
                    shard.tables = {folder.name: read_table(folder)}
                    self.shards[folder.name] = shard
            if "plan.json" in places:  # which videos a stopped extraction had planned is written nowhere else
                plan = {name: [*shard.places, *last_failures(shard)] for name, shard in self.shards.items()}
                write_checked(path / "plan.json", plan)
                if any((path / "staging").glob("*")):
                    self.left.append("plan.json: the plan of unfinished videos is lost; run `unloc extract`")
            folders = [damage for damage in before.damages if not damage.place.endswith(".json")]
            self._repair_texts([damage for damage in folders if damage.place.startswith("texts/")])
            self._repair_shards([damage for damage in folders if damage.place.startswith("shards/")])
            if "aliases.json" in places:
                if self.files is None:
                    self.left.append("aliases.json: other ids of cached videos are lost; give --manifest and --videos")
                elif any(damage.place.startswith("shards/") for damage in audit_cache(path).damages):
                    self.left.append("aliases.json: can be repaired once the shards are; run the same command again")
                else:
                    (path / "aliases.json").unlink()
                    aliases = add_aliases(path, *split_by_file(self.files)).aliases
                    write_checked(path / "aliases.json", aliases)
                    advice = "run `unloc extract` with any other manifest of these videos"
                    self.notes.append(f"aliases.json: has {len(aliases)} ids of the manifest again; {advice}")
            self.after = audit_cache(path)
            self.home.publish()
        return self

    @cached_property
    def encoder(self) -> Encoder:
        """The tower that made the cache. Partial videos are allowed: what is extracted here was cached before."""
        fingerprint = Cache(self.home.folder).fingerprint
        config = EncodeConfig.from_fingerprint(fingerprint, pretrained=self.pretrained)
        encoder = Encoder(replace(config, allow_partial=True))
        if encoder.fingerprint != fingerprint:
            raise FingerprintError(f"{self.home}: its tower is not available; give its weights file with --pretrained")
        return encoder

    def _repair_texts(self, damages: Sequence[Damage]) -> None:
        """Encode texts again: those in the damaged tables; where these are lost, those that only the manifest has."""
        path, texts = self.home.folder, {}
        for folder in sorted((path / "texts").glob("[0-9]*")):
            with suppress(CacheError):
                texts[f"texts/{folder.name}"] = [text for text, _, _ in read_attributes(folder)["texts"]]
        known = {text for those in texts.values() for text in those}
        new = [text for text in dict.fromkeys(self.texts) if text not in known]
        nameless = [damage for damage in damages if damage.place not in texts]
        lost = [text for damage in damages for text in texts.get(damage.place, ())]
        if nameless and new:
            lost += new
            what = f"has the manifest's {len(new)} texts again"
            self.notes.append(f"{nameless[0].place}: {what}; run `unloc extract` with any other manifest of this cache")
        elif nameless:
            advice = "give the --manifest that its texts came from"
            self.left += [f"{damage.place}: {damage.reason}; {advice}" for damage in nameless]
        if lost:
            tokens = self.encoder.encode_texts(lost)
            write_texts(path, zip(lost, tokens, strict=True), self.encoder.config.dtype)
        for damage in damages:
            if new or damage not in nameless:
                shutil.rmtree(path / damage.place)

    def _repair_shards(self, damages: Sequence[Damage]) -> None:
        """Write each shard again, if every video that is lost can be extracted."""
        if not damages:
            return
        cache, names = Cache(self.home.folder), {Path(damage.place).name for damage in damages}
        cache.tables = {name: shard.tables[name] for name, shard in self.shards.items() if name not in names}
        writer, jobs = ShardWriter(cache), {}
        for damage in damages:
            name = Path(damage.place).name
            try:
                jobs[name] = self._stage_intact(writer, name, damage.broken)
            except UnlocError as error:
                self.left.append(f"{damage.place}: {damage.reason}; {error}")
                writer.forget(writer.open.get(name, ()))
        if all_jobs := [job for those in jobs.values() for job in those]:
            with closing(results_of(all_jobs, self.encoder, self.options, Summary())) as results:
                for result in results:
                    if isinstance(result, Failure):
                        reason = f"({result.reason}: {result.message})"
                        self.left.append(f"video {result.video_id!r} cannot be extracted again {reason}")
                    else:
                        writer.put(result)
        for name in jobs:
            if name in writer.complete:
                writer.write(name)
            else:
                writer.forget(writer.open[name])

    def _stage_intact(self, writer: ShardWriter, name: str, broken: Sequence[str]) -> list[Job]:
        """Reopen a shard, stage what is intact of it; jobs of its other videos. Raises CacheError and MissingError."""
        shard, later = self.shards.get(name), [other for key, other in self.shards.items() if key > name]
        replaced = {video_id for other in later for video_id in other.places}
        if shard is not None:
            failures = last_failures(shard)
            ids = [*shard.places, *failures]
        elif name in writer.plan:  # the ledger knows what failed, but a failure after a refresh is not of this shard
            ids, rows = writer.plan[name], Ledger(self.home.folder).last_rows()
            refreshed = {video_id for other in later for video_id in last_failures(other)}
            noted = {i: rows[i] for i in ids if rows.get(i, {}).get("status") == FAILED and i not in refreshed}
            failures = {i: Failure.from_row(row) for i, row in noted.items() if row["reason"] != MISSING}
        else:
            raise CacheError("no plan names its videos; remove the folder and run `unloc extract` with the manifest")
        writer.assign({name: [video_id for video_id in ids if video_id not in replaced]})
        jobs = []
        for video_id in writer.open[name]:
            if video_id in failures:
                writer.put(failures[video_id])
            elif shard is not None and video_id not in broken:
                writer.put(stored_video(shard, video_id))
            else:
                jobs.append(Job(video_id, self._file_of(video_id, shard)))
        return jobs

    def _file_of(self, video_id: str, shard: Cache | None) -> VideoFile:
        """The file that was cached, as far as the shard tells. Raises MissingError or CacheError."""
        row = {}
        if shard is not None:
            row = {"file_bytes": shard.column("file_bytes", video_id)}
            with suppress(CacheError):
                row = shard.row(video_id)
        found = (self.files or {}).get(video_id) or self.find_file(video_id, row.get("file"))
        if found is None:
            file = row.get("file", "file name unknown")
            raise MissingError(f"video {video_id!r} ({file}) is not in the video folder; name the folder with --videos")
        has_size = found.stat().st_size == row.get("file_bytes", found.stat().st_size)
        if not has_size or ("content_sha256" in row and file_hash(found) != row["content_sha256"]):
            advice = f"give the folder that has that one, or take the new one: unloc extract … --refresh {video_id}"
            raise CacheError(f"{found} is not the file that was cached as {video_id!r}; {advice}")
        return found
