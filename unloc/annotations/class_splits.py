"""Zero-shot class splits: lists of seen and unseen class names, one name a line, as EffPrompt and STALE publish them.

A folder of lists holds `train/split_0.list` (seen) and `test/split_0.list` (unseen); ten random splits for 50 % and for
75 % seen classes are customary (UnLoc §4.3, Table 7).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from unloc.annotations.official import read_lines
from unloc.annotations.schema import Manifest
from unloc.annotations.video_lists import only_videos
from unloc.errors import ManifestError, MissingError


@dataclass(frozen=True, kw_only=True)
class ClassSplit:
    """One division of a dataset's classes. Raises ManifestError where both sides share a class (a leak)."""

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]

    def __post_init__(self) -> None:
        leaked = sorted(set(self.seen) & set(self.unseen))
        if leaked:
            raise ManifestError(f"{self.name}: {len(leaked)} classes are both seen and unseen, first {leaked[0]!r}")


def read_class_list(path: Path) -> tuple[str, ...]:
    """Class names of a list file in its order. Raises ManifestError where one stands twice or none stands there."""
    names: dict[str, int] = {}
    for number, line in read_lines(path):
        name = line.strip()
        if name in names:
            raise ManifestError(f"{path}:{number}: {name!r} stands in line {names[name]} too")
        names[name] = number
    if not names:
        raise ManifestError(f"{path}: no class name in this list")
    return tuple(names)


def read_class_splits(folder: Path) -> list[ClassSplit]:
    """All splits below a folder, in order of their numbers, named by their path, such as `train_50_test_50/split_3`.

    Raises MissingError where there is none or a side is missing, ManifestError for a leak, with the place.
    """
    if not folder.is_dir():
        raise MissingError(f"class lists: folder {folder} does not exist")
    found = []
    for path in sorted(folder.rglob("train/*.list"), key=lambda item: (str(item.parent), _number(item), item.name)):
        other = path.parent.parent / "test" / path.name
        if not other.is_file():
            raise MissingError(f"{path}: its unseen side {other} does not exist")
        name = (path.parent.parent.relative_to(folder) / path.stem).as_posix()
        found.append(ClassSplit(name=name, seen=read_class_list(path), unseen=read_class_list(other)))
    if not found:
        raise MissingError(f"class lists: no train/*.list below {folder}")
    return found


def _number(path: Path) -> int:
    digits = "".join(filter(str.isdigit, path.stem))
    return int(digits) if digits else -1


def check_class_split(split: ClassSplit, manifest: Manifest) -> None:
    """Raise ManifestError where a class of the manifest is on no side, or one side has none of its classes.

    Listed classes that the manifest lacks are no error: a manifest may hold some of a dataset's videos only.
    """
    left = [name for name in manifest.classes if name not in {*split.seen, *split.unseen}]
    if left:
        raise ManifestError(
            f"{split.name}: {len(left)} classes of manifest {manifest.name!r} are on no side, first {left[0]!r}"
        )
    for side, names in (("seen", split.seen), ("unseen", split.unseen)):
        if not set(names) & set(manifest.classes):
            raise ManifestError(f"{split.name}: manifest {manifest.name!r} has none of the {side} classes")


def restrict_to_classes(manifest: Manifest, names: tuple[str, ...]) -> Manifest:
    """The manifest with those of its classes that are named, in the order of the names; all videos stay."""
    classes = tuple(name for name in names if name in manifest.classes)
    instances = manifest.instances[manifest.instances["label"].isin(classes)].reset_index(drop=True)
    return replace(manifest, classes=classes, instances=instances)


def seen_manifest(manifest: Manifest, split: ClassSplit) -> Manifest:
    """What may be trained on: the videos that show seen classes only. Raises ManifestError where there is none.

    Videos that show an unseen class too are left out: their unseen actions would be taught as background.
    """
    check_class_split(split, manifest)
    instances = manifest.instances
    showing_unseen = set(instances[instances["label"].isin(split.unseen)]["video_id"])
    showing_seen = set(instances[instances["label"].isin(split.seen)]["video_id"])
    if not showing_seen - showing_unseen:
        raise ManifestError(f"{split.name}: no video of manifest {manifest.name!r} shows seen classes only")
    return restrict_to_classes(only_videos(manifest, showing_seen - showing_unseen), split.seen)


def unseen_manifest(manifest: Manifest, split: ClassSplit, test_split: str) -> Manifest:
    """What is tested on: unseen classes in the whole test split.

    Videos without an unseen class stay, so that predictions on them count as wrong, as in the per-class AP of the full
    evaluation. Raises MissingError for a split that does not exist.
    """
    check_class_split(split, manifest)
    return restrict_to_classes(manifest.select(test_split), split.unseen)
