"""CPU seconds of PyAV by plan ÷ decord in order ÷ PyAV in order, side by side in one run, on rendered H.264, HEVC, …

    python benchmarks/decoding.py [--seconds 30] [--files a.mp4 b.webm]

The claim: `--decoder auto` uses the faster of the exact decoders. Ratios below 1 mean that PyAV by plan is faster.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from unloc.errors import VideoError
from unloc.video.decord_reader import DecordReader
from unloc.video.facts import VideoFacts, scan
from unloc.video.pyav_reader import PyAVReader

SIZE, RATE, REPEATS = (640, 360), 25, 3
KINDS = {
    "h264 GOP 12": (".mp4", "libx264", {"preset": "veryfast", "g": "12", "bf": "2"}),
    "h264 GOP 250": (".mp4", "libx264", {"preset": "veryfast", "g": "250"}),
    "h264 no B-frames": (".mp4", "libx264", {"preset": "veryfast", "g": "250", "bf": "0"}),
    "mpeg4": (".mp4", "mpeg4", {"g": "12", "q:v": "4"}),
    "hevc": (".mp4", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none"}),
    "vp9": (".webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "120", "crf": "30"}),
}


def render(path: Path, codec: str, options: dict[str, str], num_frames: int) -> Path:
    """Moving blocks with grain."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (SIZE[1] // 8, SIZE[0] // 8, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = options
        for number in range(num_frames):
            image = np.kron(np.roll(blocks, number // 2, 1), np.ones((8, 8, 1), np.uint8))
            image = image // 2 + rng.integers(0, 12, image.shape, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def best_cpu_seconds(work: Callable[[], object]) -> float:
    """The best of some repeats."""
    spent = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return min(spent)


def in_order(facts: VideoFacts, wanted: np.ndarray) -> None:
    """Decode with PyAV without a plan."""
    for _ in PyAVReader(facts)._in_order(list(enumerate(wanted.tolist()))):
        pass


def compare(name: str, path: Path) -> None:
    """One row per density of wanted frames."""
    facts = scan(path)
    samplings = {
        "32 frames": np.linspace(facts.first_seconds, facts.last_seconds, 32),
        "2 fps": np.arange(facts.first_seconds, facts.end_seconds, 0.5),
        "5 fps": np.arange(facts.first_seconds, facts.end_seconds, 0.2),
        "every frame": facts.packet_times,
    }
    for label, wanted in samplings.items():
        planned = best_cpu_seconds(lambda wanted=wanted: list(map(len_of, PyAVReader(facts).frames_at(wanted))))
        ordered = best_cpu_seconds(lambda wanted=wanted: in_order(facts, wanted))
        try:
            decord = best_cpu_seconds(lambda wanted=wanted: list(map(len_of, DecordReader(facts).frames_at(wanted))))
            against = f"{planned / decord:6.2f}"
        except VideoError:
            against = "unsound"
        print(f"{name:18s} {label:12s} {planned:7.2f} s {against:>8s} {planned / ordered:8.2f}", flush=True)


def len_of(shown: object) -> int:
    """Consume a frame without keeping it."""
    return len(shown.positions)


def main() -> None:
    """Render, or take the files given, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--files", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    print(f"{'stream':18s} {'wanted':12s} {'planned':>9s} {'÷decord':>8s} {'÷in order':>8s}")
    for path in arguments.files:
        compare(path.name[:18], path)
    if not arguments.files:
        with tempfile.TemporaryDirectory() as folder:
            for name, (suffix, codec, options) in KINDS.items():
                path = Path(folder) / (name.replace(" ", "_") + suffix)
                compare(name, render(path, codec, options, arguments.seconds * RATE))


if __name__ == "__main__":
    main()
