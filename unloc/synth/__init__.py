"""The rendered world: videos whose events are known exactly, and what was trained on worlds of other seeds."""

from pathlib import Path

TOWER_FOLDER = Path(__file__).parent / "toy_tower"  # config.json of open_clip, weights.safetensors (fp16)


def toy_unloc_folder(task: str) -> Path:
    """The checkpoint of `--init toy` for a task (`toy_unloc/record.json`); HD starts from MR's, CLS from TAL's."""
    return Path(__file__).parent / "toy_unloc" / {"hd": "mr", "cls": "tal"}.get(task, task)
