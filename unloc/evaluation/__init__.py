"""Files in, numbers out, never a model: the official metrics, and what a blind constant scores beside them."""

from unloc.evaluation.detection import detection
from unloc.evaluation.highlight import highlight_detection
from unloc.evaluation.retrieval import moment_retrieval
from unloc.evaluation.segmentation import action_segmentation

__all__ = ["action_segmentation", "detection", "highlight_detection", "moment_retrieval"]
