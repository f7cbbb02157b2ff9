"""Metrics of a ranking, each by the rule of the benchmark that it comes from.

There are three average precisions in use, and they differ: the step form (`average_precision`, and
`average_precision_at_k` with tied scores grouped), the trapezoid of Oxford/Paris (`trapezoid_average_precision`) and
that of GLDv2 (`landmark_average_precision`). All are fractions of 1. A query without positives has NaN, and means and
intervals leave it out.
"""

from qat_jax.metrics.intervals import (
  bootstrap_interval,
  clustered_error,
  paired_interval,
)
from qat_jax.metrics.rankings import (
  average_precision,
  average_precision_of_parts,
  average_precision_of_scores,
  landmark_average_precision,
  precision_at_shrinking,
  recall_at,
  trapezoid_average_precision,
)
from qat_jax.metrics.scores import (
  average_precision_at_k,
  ndcg_at_k,
  reciprocal_rank,
)

__all__ = [
  "average_precision",
  "average_precision_at_k",
  "average_precision_of_parts",
  "average_precision_of_scores",
  "bootstrap_interval",
  "clustered_error",
  "landmark_average_precision",
  "ndcg_at_k",
  "paired_interval",
  "precision_at_shrinking",
  "recall_at",
  "reciprocal_rank",
  "trapezoid_average_precision",
]
