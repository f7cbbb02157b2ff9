"""Metrics of a ranking, each by the rule of the benchmark that it comes from.

There are three average precisions in use, and they differ: the step form (`average_precision`, and
`average_precision_at_k` with tied scores grouped), the trapezoid of Oxford/Paris (`trapezoid_average_precision`) and
that of GLDv2 (`landmark_average_precision`). All are fractions of 1. A query without positives has NaN, and means and
intervals leave it out.
"""

from qat_jax.metrics.intervals import bootstrap_interval as bootstrap_interval
from qat_jax.metrics.intervals import clustered_error as clustered_error
from qat_jax.metrics.intervals import paired_interval as paired_interval
from qat_jax.metrics.rankings import average_precision as average_precision
from qat_jax.metrics.rankings import average_precision_of_parts as average_precision_of_parts
from qat_jax.metrics.rankings import average_precision_of_scores as average_precision_of_scores
from qat_jax.metrics.rankings import landmark_average_precision as landmark_average_precision
from qat_jax.metrics.rankings import precision_at_shrinking as precision_at_shrinking
from qat_jax.metrics.rankings import recall_at as recall_at
from qat_jax.metrics.rankings import trapezoid_average_precision as trapezoid_average_precision
from qat_jax.metrics.scores import average_precision_at_k as average_precision_at_k
from qat_jax.metrics.scores import ndcg_at_k as ndcg_at_k
from qat_jax.metrics.scores import reciprocal_rank as reciprocal_rank
