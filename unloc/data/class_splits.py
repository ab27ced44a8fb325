"""Zero-shot class splits: lists of seen and unseen class names, one name a line, as EffPrompt and STALE publish them.

A folder of lists holds `train/split_0.list` (seen) and `test/split_0.list` (unseen); ten random splits for 50 % and for
75 % seen classes are customary (UnLoc §4.3, Table 7).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from unloc.data.official import read_lines
from unloc.data.schema import Manifest
from unloc.data.video_lists import only_videos
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
    """Raise ManifestError where the split's classes are not exactly the manifest's."""
    listed, known = {*split.seen, *split.unseen}, set(manifest.classes)
    unknown, left = sorted(listed - known), sorted(known - listed)
    if unknown:
        raise ManifestError(
            f"{split.name}: {len(unknown)} listed classes are not in manifest {manifest.name!r}, first {unknown[0]!r}"
        )
    if left:
        raise ManifestError(
            f"{split.name}: {len(left)} classes of manifest {manifest.name!r} are on no side, first {left[0]!r}"
        )


def restrict_to_classes(manifest: Manifest, classes: tuple[str, ...]) -> Manifest:
    """The manifest with these classes and their instances only, in the order given; all videos stay."""
    instances = manifest.instances[manifest.instances["label"].isin(classes)].reset_index(drop=True)
    return replace(manifest, classes=classes, instances=instances)


def seen_manifest(manifest: Manifest, split: ClassSplit) -> Manifest:
    """What may be trained on: the videos that show seen classes only.

    Videos that show an unseen class too are left out: their unseen actions would be taught as background.
    """
    check_class_split(split, manifest)
    instances = manifest.instances
    showing_unseen = set(instances[instances["label"].isin(split.unseen)]["video_id"])
    showing_seen = set(instances[instances["label"].isin(split.seen)]["video_id"])
    return restrict_to_classes(only_videos(manifest, showing_seen - showing_unseen), split.seen)


def unseen_manifest(manifest: Manifest, split: ClassSplit, test_split: str) -> Manifest:
    """What is tested on: unseen classes in the whole test split.

    Videos without an unseen class stay, so that predictions on them count as wrong, as in the per-class AP of the full
    evaluation. Raises MissingError for a split that does not exist.
    """
    check_class_split(split, manifest)
    return restrict_to_classes(manifest.select(test_split), split.unseen)
