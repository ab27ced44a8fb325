"""Every scoring protocol: the official code it equals, the tasks it scores, its rules and what it does with ties."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from unloc.annotations.schema import Manifest
from unloc.errors import InputError

ACTIVITYNET_THRESHOLDS = np.linspace(0.5, 0.95, 10)
THUMOS_THRESHOLDS = np.linspace(0.3, 0.7, 5)
ROUNDING = 1e-6  # of frames: 12.3 s at 10 fps are 123 frames, despite rounding errors


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all protocols state."""

    name: str
    tie_rule: str = "of equal scores the later entry of the file goes first"


@dataclass(frozen=True, kw_only=True)
class DetectionProtocol(Protocol):
    """How one official code computes average precision of detections."""

    thresholds: np.ndarray
    averaged: slice = field(default_factory=lambda: slice(None))  # the thresholds that mAP@avg averages
    shortest_seconds: float = -np.inf  # of ground truth that counts (ActionFormer: 1 ms)
    drops_repeats: bool = False  # ground truth of one label within 1 ms of an earlier one does not count
    recall_multiples: tuple[int, ...] = ()  # k of recall@kx
    as_unloc: bool = False
    """Precision and recall are rounded to float32 before integration, and classes of the manifest without ground truth
    and predictions count as 0 in the mean."""


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol(Protocol):
    """How one official code compares windows with the ground truth of a query."""

    clamps_truth: bool = True  # ground truth is clamped to [0, duration]
    by_score: bool = True  # best score first, IoU over the union; else the file's order, IoU over the segments' hull
    nms_overlap: float | None = None
    """2D-TAN: windows that overlap an earlier kept one by more are dropped, and queries with reversed ground truth; IoU
    must be above the threshold instead of at least the threshold."""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    """(shortest, longest] seconds of ground truth that count, by name; R@n uses "full". Queries without any are left
    out. With ranges the official QVHighlights metrics are computed too."""


@dataclass(frozen=True, kw_only=True)
class RejectionProtocol(Protocol):
    """How one official code scores queries that may be nowhere in their video."""

    tie_rule: str = "the order of the file counts, not the score; mAP: of equal scores the earlier entry goes first"
    thresholds: tuple[float, ...]  # of existence, each reported; the first decides which windows are kept
    at_threshold: bool = False  # NA-VMR: a score equal to the threshold accepts, an IoU equal to its threshold misses
    ranks: tuple[int, ...] = (1, 3, 5)
    max_windows: int = 10  # of a list, for mAP and G-mIoU

    def accepts(self, existence: np.ndarray, threshold: float) -> np.ndarray:
        """Whether each query is said to be in its video."""
        return existence >= threshold if self.at_threshold else existence > threshold


@dataclass(frozen=True, kw_only=True)
class FrameProtocol(Protocol):
    """How one official code turns seconds into frames; each function takes a position in frames."""

    tie_rule: str = "mAP takes frames of equal score as one step; accuracy takes the labels of the file"
    num_frames: Callable[[float], int]
    first: Callable[[float], int]  # first frame of a segment that starts here
    after: Callable[[float], int]  # frame after the last one of a segment that ends here


def _floor(frames: float) -> int:
    return int(np.floor(frames + ROUNDING))


def _ceil(frames: float) -> int:
    return int(np.ceil(frames - ROUNDING))


MOMENT_DETR = {
    "by_score": False,
    "ranges": {"full": (-np.inf, np.inf), "short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, 150.0)},
    "tie_rule": "R1, R5, R10, mIoU, MR-R1: the order of the file counts, not the score; MR-mAP: of equal scores the "
    "earlier entry goes first; HL-: of equal clips the first is the best, AP takes ties as one",
}
LIGHTHOUSE = MOMENT_DETR | {"ranges": {"full": (0.0, 1500.0)}}
TWO_D_TAN = {"by_score": False, "tie_rule": "the order of the file counts, not the score"}
OPENTAD = {"shortest_seconds": np.nextafter(0.0, 1.0), "drops_repeats": True, "recall_multiples": (1, 5)}  # above 0 s
UNLOC = {"thresholds": np.linspace(0.05, 0.95, 19), "as_unloc": True}

_BY_TASK: dict[str, tuple[Protocol, ...]] = {  # the first is the default
    "tal": (
        DetectionProtocol(name="activitynet", thresholds=ACTIVITYNET_THRESHOLDS),
        DetectionProtocol(name="thumos14", thresholds=THUMOS_THRESHOLDS, **(OPENTAD | {"shortest_seconds": 1e-3})),
        DetectionProtocol(name="opentad", thresholds=ACTIVITYNET_THRESHOLDS, **OPENTAD),
        DetectionProtocol(name="opentad-thumos14", thresholds=THUMOS_THRESHOLDS, **OPENTAD),
        DetectionProtocol(name="unloc", averaged=slice(9, 19), **UNLOC),
        DetectionProtocol(name="unloc-thumos14", averaged=slice(5, 14, 2), **UNLOC),
    ),
    "mr": (
        RetrievalProtocol(name="default"),  # UnLoc
        RetrievalProtocol(name="raw", clamps_truth=False),
        RetrievalProtocol(name="2d-tan", nms_overlap=0.5, **TWO_D_TAN),
        RetrievalProtocol(name="2d-tan-nms-0.45", nms_overlap=0.45, **TWO_D_TAN),  # its Charades-STA pooling model
        RetrievalProtocol(name="2d-tan-no-nms", nms_overlap=1.0, **TWO_D_TAN),
        RetrievalProtocol(name="moment_detr", clamps_truth=False, **MOMENT_DETR),  # R1: MR-full-R1
        RetrievalProtocol(name="lighthouse", **LIGHTHOUSE),
        RetrievalProtocol(name="lighthouse-raw", clamps_truth=False, **LIGHTHOUSE),
    ),
    "hd": (RetrievalProtocol(name="moment_detr", clamps_truth=False, **MOMENT_DETR),),
    "rejection": (
        RejectionProtocol(name="gmr", thresholds=(0.4, 0.6)),
        RejectionProtocol(name="na-vmr", thresholds=(0.5,), at_threshold=True),
    ),
    "as": (
        FrameProtocol(name="coin", num_frames=_ceil, first=_floor, after=_ceil),
        FrameProtocol(name="unloc", num_frames=_floor, first=round, after=lambda frames: round(frames) + 1),
    ),
    "cls": (Protocol(name="kinetics", tie_rule="of equal scores the earlier entry of the file goes first"),),
}
PROTOCOLS = {task: {protocol.name: protocol for protocol in found} for task, found in _BY_TASK.items()}


def is_rated(manifest: Manifest) -> bool:
    """Whether queries of the manifest carry saliency ratings."""
    return bool(manifest.queries["saliency_scores"].map(lambda scores: isinstance(scores, list)).any())


def protocol_for(task: str, name: str | None, manifest: Manifest) -> Protocol:
    """The named protocol of a task, or the one that papers quote for the dataset. Raises InputError if it has none."""
    if name is None and task == "tal" and "thumos" in manifest.name.lower():
        name = "thumos14"
    if name is None and task == "mr" and is_rated(manifest):
        name = "moment_detr"
    if name is None and task == "rejection" and "na_vmr" in manifest.name:
        name = "na-vmr"
    names = PROTOCOLS[task]
    if name and name not in names:
        raise InputError(f"--protocol: got {name!r} for {task}, expected one of {', '.join(names)}")
    return names[name or next(iter(names))]
