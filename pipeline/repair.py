"""Repair of a cache: the damaged videos are extracted again, and a shard is replaced once the new one is complete.

Videos with intact tokens and rows are copied. What cannot be repaired stays as it is and is reported.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from pipeline.aliases import add_aliases, split_by_file
from pipeline.cluster import ExtractOptions
from pipeline.decoding import Job
from pipeline.extract import results_of
from pipeline.ledger import MISSING, Ledger, Summary
from unloc.cache import OnProgress
from unloc.cache.audit import Audit, Damage, audit_cache
from unloc.cache.metadata import CHECKSUM_KEY, group_metadata, read_attributes, write_checked
from unloc.cache.opening import Home
from unloc.cache.reading import Cache, read_table
from unloc.cache.shards import FAILED, Failure, ShardWriter
from unloc.cache.writing import fingerprint_differences, stored_video, write_projections, write_texts
from unloc.errors import CacheError, FingerprintError, MissingError, UnlocError
from unloc.files import folder_lock, remove_leftovers, write_file
from unloc.inference.encode import EncodeConfig, Encoder
from unloc.video.video_file import VideoFile, file_hash


@dataclass
class Repair:
    """One repair: `run` does it, and then it says what was damaged and what of it is left."""

    home: Home
    find_file: Callable[[str, str | None], VideoFile | None]
    """The file of a video id, given the file name that the cache knows; None where there is none."""
    options: ExtractOptions
    files: dict[str, VideoFile] | None = None  # of a manifest; without one some losses cannot be repaired
    texts: Sequence[str] = ()  # of the manifest
    pretrained: str | None = None  # weights file of the tower that made the cache
    left: list[str] = field(default_factory=list)  # what could not be repaired: place, reason and what to do
    notes: list[str] = field(default_factory=list)  # what was repaired only as far as the manifest goes
    before: Audit = field(init=False)
    after: Audit = field(init=False)

    def run(self, on_progress: OnProgress = lambda done, total: None) -> "Repair":
        """Audit the cache and repair what can be repaired, locked for writing all the while; returns itself.

        Raises CacheError where another process writes the cache or not even its fingerprint can be read,
        FingerprintError where the tower that made it is needed and cannot be loaded.
        """
        self.path, root = self.home.folder, []
        with self.home.lock(), folder_lock(self.path):
            remove_leftovers(self.path)
            try:
                read_attributes(self.path)
            except CacheError:
                _copy_metadata(self.path / "shards", self.path)
                root = [Damage("zarr.json", "is not what was written")]
            before = audit_cache(self.path, on_progress)
            self.before = replace(before, damages=(*root, *before.damages))
            self._repair(before.damages)
            self.after = audit_cache(self.path)
            self.home.publish()
        return self

    @cached_property
    def encoder(self) -> Encoder:
        """The tower that made the cache. Partial videos are allowed: what is extracted here was cached before."""
        fingerprint = Cache(self.path).fingerprint
        config = EncodeConfig.from_fingerprint(fingerprint, pretrained=self.pretrained)
        encoder = Encoder(replace(config, allow_partial=True))
        if fingerprint_differences(encoder.fingerprint, fingerprint, names=("here", "cache")):
            raise FingerprintError(f"{self.path}: its tower is not available; give its weights file with --pretrained")
        return encoder

    def _repair(self, damages: Sequence[Damage]) -> None:
        """Repair each place or report why not: first what needs no tower, aliases last."""
        places = {damage.place for damage in damages}
        if "shards/zarr.json" in places:
            _copy_metadata(self.path, self.path / "shards")
        if "texts/zarr.json" in places:
            write_file(self.path / "texts" / "zarr.json", group_metadata({}))
        if "projections.json" in places:
            write_projections(self.path, self.encoder.tower.projections)
        tables = {}
        for folder in sorted((self.path / "shards").glob("[0-9]*")):
            try:
                tables[folder.name] = read_table(folder)
            except CacheError:
                continue
        if "plan.json" in places:  # which videos a stopped extraction had planned is written nowhere else
            plan = {
                name: table["videos"]["video_id"] + [row["video_id"] for row in table["failed"]]
                for name, table in tables.items()
            }
            write_checked(self.path / "plan.json", plan)
            if any((self.path / "staging").glob("*")):
                self.left.append("plan.json: the plan of unfinished videos is lost; run `unloc extract`")
        numbered = [damage for damage in damages if not damage.place.endswith(".json")]
        self._repair_texts([damage for damage in numbered if damage.place.startswith("texts/")])
        self._repair_shards([damage for damage in numbered if damage.place.startswith("shards/")], tables)
        if "aliases.json" in places:
            self._repair_aliases()

    def _repair_texts(self, damages: Sequence[Damage]) -> None:
        """Encode texts again: those in the damaged tables; where these are lost, those that only the manifest has."""
        texts: dict[str, list[str]] = {}  # of every table that can be read
        for folder in sorted((self.path / "texts").glob("[0-9]*")):
            try:
                texts[f"texts/{folder.name}"] = [text for text, _, _ in read_attributes(folder)["texts"]]
            except CacheError:
                continue
        lost = [text for damage in damages for text in texts.get(damage.place, ())]
        if nameless := [damage for damage in damages if damage.place not in texts]:
            known = {text for those in texts.values() for text in those}
            if new := [text for text in dict.fromkeys(self.texts) if text not in known]:
                lost += new
                self.notes.append(
                    f"{nameless[0].place}: has the manifest's {len(new)} texts again; run `unloc extract` with any "
                    "other manifest whose texts were here"
                )
            else:
                other = "none of the manifest's texts is missing: give the one they came from"
                advice = other if self.texts else "give --manifest"
                self.left += [f"{damage.place}: {damage.reason}; {advice}" for damage in nameless]
                damages = [damage for damage in damages if damage not in nameless]
        if lost:
            tokens = self.encoder.encode_texts(lost)
            write_texts(self.path, zip(lost, tokens, strict=True), self.encoder.config.dtype)
        for damage in damages:
            shutil.rmtree(self.path / damage.place)

    def _repair_shards(self, damages: Sequence[Damage], tables: dict[str, dict]) -> None:
        """Write each shard again, if every video that is lost can be extracted."""
        if not damages:
            return
        cache, places = Cache(self.path), {damage.place for damage in damages}
        cache.tables = {name: table for name, table in tables.items() if f"shards/{name}" not in places}
        writer, jobs = ShardWriter(cache), {}
        for damage in damages:
            name = Path(damage.place).name
            try:
                rows = self._stage_intact(writer, name, damage.broken, tables)
                absent = [video_id for video_id in writer.open[name] if video_id not in writer.done]
                jobs[name] = [Job(video_id, self._file_of(video_id, rows.get(video_id, {}))) for video_id in absent]
            except UnlocError as error:
                self.left.append(f"{damage.place}: {damage.reason}; {error}")
                writer.forget(writer.open.get(name, ()))
        if all_jobs := [job for those in jobs.values() for job in those]:
            with results_of(all_jobs, self.encoder, self.options, Summary()) as results:
                for result in results:
                    if not isinstance(result, Failure):
                        writer.put(result)
                        continue
                    name = next(name for name in jobs if result.video_id in writer.open[name])
                    reason = f"({result.reason}: {result.message})"
                    self.left.append(f"shards/{name}: video {result.video_id!r} cannot be extracted again {reason}")
        for name in jobs:
            if name in writer.complete:
                writer.write(name)
            else:
                writer.forget(writer.open[name])

    def _stage_intact(
        self, writer: ShardWriter, name: str, broken: Sequence[str], tables: dict[str, dict]
    ) -> dict[str, dict]:
        """Reopen a shard and stage what is intact of it; what is known of the broken videos' files.

        Raises CacheError where it is not known which videos the shard holds.
        """
        known, failures = {}, []
        later = [table for other, table in tables.items() if other > name]
        replaced = {video_id for table in later for video_id in table["videos"]["video_id"]}
        if name in tables:
            shard = Cache(self.path)
            shard.tables = {name: tables[name]}  # others may be damaged, or replace videos of it
            failures = [Failure.from_row(row) for row in tables[name]["failed"]]
            writer.reopen(name, [i for i in (*shard.rows, *(one.video_id for one in failures)) if i not in replaced])
            for video_id in set(writer.open[name]) & shard.rows.keys() - set(broken):
                writer.put(stored_video(shard, video_id))
            for video_id in broken:
                try:
                    known[video_id] = shard.rows[video_id]
                except CacheError:
                    known[video_id] = {"file_bytes": shard.column("file_bytes", video_id)}
        elif name in writer.plan:  # the ledger knows what failed, but a failure after a refresh is not of this shard
            writer.reopen(name, [video_id for video_id in writer.plan[name] if video_id not in replaced])
            noted = Ledger(self.path).last_rows()
            refreshed = {row["video_id"] for table in later for row in table["failed"]}
            for video_id in set(writer.open[name]) - refreshed:
                row = noted.get(video_id, {})
                if row.get("status") == FAILED and row["reason"] != MISSING:
                    failures.append(Failure.from_row(row))
        else:
            raise CacheError("no plan names its videos; remove the folder and run `unloc extract` with the manifest")
        for failure in failures:
            if failure.video_id in writer.open[name]:
                writer.put(failure)
        return known

    def _file_of(self, video_id: str, row: dict) -> VideoFile:
        """The file that was cached, as far as its row tells. Raises MissingError or CacheError."""
        found = self.find_file(video_id, row.get("file"))
        if found is None:
            file = row.get("file", "file name unknown")
            raise MissingError(f"video {video_id!r} ({file}) is not in the video folder; name the folder with --videos")
        num_bytes = found.stat().st_size
        if num_bytes != row.get("file_bytes", num_bytes) or (
            "content_sha256" in row and file_hash(found) != row["content_sha256"]
        ):
            raise CacheError(
                f"{found} is not the file that was cached as {video_id!r}; give the folder that has that one, or take "
                f"the new one: unloc extract … --refresh {video_id}"
            )
        return found

    def _repair_aliases(self) -> None:
        if self.files is None:
            self.left.append("aliases.json: the other ids of cached videos are lost; give --manifest and --videos")
        elif any(damage.place.startswith("shards/") for damage in audit_cache(self.path).damages):
            self.left.append("aliases.json: can be repaired once the shards are; run the same command again")
        else:
            (self.path / "aliases.json").unlink()
            aliases = add_aliases(self.path, *split_by_file(self.files)).aliases
            write_checked(self.path / "aliases.json", aliases)
            self.notes.append(
                f"aliases.json: has {len(aliases)} ids of the manifest again; run `unloc extract` with any other "
                "manifest of these videos"
            )


def _copy_metadata(source: Path, target: Path) -> None:
    attributes = read_attributes(source)
    del attributes[CHECKSUM_KEY]
    write_file(target / "zarr.json", group_metadata(attributes))
