"""Which packets must be decoded to have the wanted frames exactly, and which of them may lose their B-frames.

A frame needs the packets from the last key frame that comes before it both in decoding order and in presentation
(leading frames of an open GOP come after their key frame in the file, but need the group before it).
"""

from dataclasses import dataclass

import numpy as np

from unloc.video.facts import VideoFacts

TIME_TOLERANCE = 1e-4  # seconds; time stamps in milliseconds must not lose the frame that begins at the wanted time
SKIP_CODECS = {"h264", "mpeg4", "hevc"}  # their non-reference frames are marked, and ffmpeg's decoders pass them over
SKIP_CONTAINERS = ("mov", "matroska")
MIN_GAP = 3  # packets; a shorter gap is decoded through, which costs less than emptying the decoder


@dataclass(frozen=True)
class Stretch:
    """Packets first … last in the file's order, decoded from a fresh decoder that is emptied at the end."""

    first: int
    last: int


@dataclass(frozen=True)
class DecodePlan:
    """What to decode for some wanted times."""

    positions: dict[int, list[int]]
    """Time stamp of each frame to deliver → indices into the wanted times that it answers."""
    stretches: list[Stretch]
    """In the file's order, disjoint."""
    skip_unreferenced: bool
    """May frames that no other frame needs be passed over?"""


def shown_at(wanted_seconds: np.ndarray, frame_times: np.ndarray) -> np.ndarray:
    """Index of the frame shown at each time: the last that begins at or before it, else the first."""
    after = np.searchsorted(frame_times, np.asarray(wanted_seconds) + TIME_TOLERANCE, side="right")
    return np.maximum(after - 1, 0)


def make_plan(facts: VideoFacts, wanted_seconds: np.ndarray) -> DecodePlan | None:
    """The plan; None where the packets' facts do not say which frames they become, so that all must be decoded."""
    if not facts.has_pts or facts.stamps_in_output_order:
        return None
    if len(facts.packet_times) < facts.num_packets or facts.num_repeated or facts.num_damaged:
        return None
    stamps, order = facts.packet_stamps, np.argsort(facts.packet_stamps)
    targets = order[shown_at(wanted_seconds, facts.packet_times)]
    positions: dict[int, list[int]] = {}
    for position, packet_index in enumerate(targets.tolist()):
        positions.setdefault(int(stamps[packet_index]), []).append(position)
    stretches = []
    for packet_index in dict.fromkeys(targets.tolist()):
        first = _key_before(facts, packet_index)
        if first is None:
            return None
        # An H.264 frame may be two packets, one for each field.
        last = min(packet_index + (facts.codec == "h264"), facts.num_packets - 1)
        stretches.append(Stretch(first, last))
    return DecodePlan(positions, _merged(stretches), _can_skip_unreferenced(facts))


def _key_before(facts: VideoFacts, packet_index: int) -> int | None:
    keys = facts.key_indices[: np.searchsorted(facts.key_indices, packet_index, side="right")]
    for key in keys[::-1].tolist():
        if facts.packet_stamps[key] <= facts.packet_stamps[packet_index]:
            return key
    return None


def _merged(stretches: list[Stretch]) -> list[Stretch]:
    merged: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda one: one.first):
        if merged and stretch.first <= merged[-1].last + MIN_GAP:
            merged[-1] = Stretch(merged[-1].first, max(merged[-1].last, stretch.last))
        else:
            merged.append(stretch)
    return merged


def _can_skip_unreferenced(facts: VideoFacts) -> bool:
    """Fields of one frame may differ in being referenced; HEVC marks by temporal layer, so there must be one only."""
    if facts.interlaced or facts.codec not in SKIP_CODECS or not facts.container.startswith(SKIP_CONTAINERS):
        return False
    return facts.codec != "hevc" or facts.num_temporal_layers == 1
