"""Metrics of a model on a split, for the loop."""

from unloc.annotations.schema import Manifest
from unloc.cache.reading import Cache
from unloc.evaluation.evaluator import score
from unloc.inference.load import CheckpointInfo, LoadedModel
from unloc.inference.run import predict_split
from unloc.model.unloc import UnLoc


def validate(model: UnLoc, info: CheckpointInfo, manifest: Manifest, cache: Cache) -> dict[str, float]:
    """The task's metrics on an already selected manifest; the model is left in evaluation mode."""
    predictions = predict_split(LoadedModel(model.eval(), info), manifest, cache)
    return score(info.recipe.task, predictions, manifest)
