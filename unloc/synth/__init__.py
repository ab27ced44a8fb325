"""The rendered world: videos whose events are known exactly, and the toy tower that was trained on its frames."""

from pathlib import Path

TOWER_FOLDER = Path(__file__).parent / "toy_tower"


def toy_tower_files() -> tuple[Path, Path]:
    """The toy tower's open_clip configuration (JSON) and its weights (safetensors, fp16). Imports no torch."""
    return TOWER_FOLDER / "config.json", TOWER_FOLDER / "weights.safetensors"
