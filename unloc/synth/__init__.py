"""The rendered world: videos whose events are known exactly, and what was trained on worlds of other seeds."""

from pathlib import Path

TOWER_FOLDER = Path(__file__).parent / "toy_tower"
UNLOC_FOLDER = Path(__file__).parent / "toy_unloc"


def toy_tower_files() -> tuple[Path, Path]:
    """The toy tower's open_clip configuration (JSON) and its weights (safetensors, fp16). Imports no torch."""
    return TOWER_FOLDER / "config.json", TOWER_FOLDER / "weights.safetensors"


def toy_unloc_folder(task: str) -> Path:
    """The checkpoint that `--init toy` starts a task from: trained on worlds of another seed (`toy_unloc/record.json`).

    Highlight detection starts from moment retrieval's.
    """
    return UNLOC_FOLDER / {"hd": "mr"}.get(task, task)
