"""Metrics that are a mean over queries: one value per query, so that any weighting of the videos can be scored."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class QueryValues:
    """Values of every metric for every query, as fractions."""

    video_ids: list[str]
    """The video of each query."""
    values: dict[str, np.ndarray]
    """(queries,) for each metric; NaN where the query does not count in it."""

    def means(self) -> dict[str, float]:
        """Each metric in percent: the mean over the queries that count; NaN where none does."""
        counted = {name: values[~np.isnan(values)] for name, values in self.values.items()}
        return {name: 100.0 * float(kept.mean()) if len(kept) else np.nan for name, kept in counted.items()}

    def weighted_means(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """(draws,) of each metric in percent for weights (draws, queries)."""
        results = {}
        for name, values in self.values.items():
            counts = ~np.isnan(values)
            with np.errstate(invalid="ignore"):
                results[name] = 100.0 * (weights @ np.where(counts, values, 0.0)) / (weights @ counts)
        return results

    def joined(self, other: "QueryValues") -> "QueryValues":
        """Both sets of metrics; they must stand for the same queries."""
        assert self.video_ids == other.video_ids
        return QueryValues(self.video_ids, self.values | other.values)
