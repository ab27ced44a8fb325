"""Scoring of predictions from files, without a model: the official metrics, and what blind constants score."""

from unloc.evaluation.detection import detection
from unloc.evaluation.retrieval import highlight_detection, moment_retrieval
from unloc.evaluation.segmentation import action_segmentation

__all__ = ["action_segmentation", "detection", "highlight_detection", "moment_retrieval"]
