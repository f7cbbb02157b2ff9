"""Metrics of scored items, equal scores as the official programs of ILIAS and INQUIRE take them."""

import numpy as np

from qat_jax.metrics.rankings import ratio


def average_precision_at_k(relevant_K: np.ndarray, score_K: np.ndarray, positives: int, k: int) -> np.ndarray | float:
  """Returns the step average precision at k over min(k, positives), tied scores as one step (ILIAS, INQUIRE).

  `relevant_K` is 0 or 1, `score_K` the scores, larger is better, in any order. Which of the tied items that straddle
  k count is left to NumPy's default sort, as the official programs leave it. Rows of several queries at once (QK,
  with `positives` of length Q) give Q values.
  """
  relevant_K, score_K = (x_K[..., :k] for x_K in _sorted(relevant_K, score_K))
  ends_K = _ends_of_ties(score_K)
  precision_K = np.take_along_axis(np.cumsum(relevant_K, axis=-1), ends_K, -1) / (ends_K + 1)
  return _plain(ratio(np.sum(relevant_K * precision_K, axis=-1), np.minimum(positives, k)))


def ndcg_at_k(relevant_K: np.ndarray, score_K: np.ndarray, positives: int, k: int) -> np.ndarray | float:
  """Returns DCG at k over that of min(k, positives) hits on top; items with tied scores share their mean gain.

  Arguments as in `average_precision_at_k`.
  """
  relevant_K, score_K = _sorted(relevant_K, score_K)
  ends_K = _ends_of_ties(score_K)
  starts_K = score_K.shape[-1] - 1 - _ends_of_ties(score_K[..., ::-1])[..., ::-1]
  until_K = np.concatenate([np.zeros_like(relevant_K[..., :1]), np.cumsum(relevant_K, axis=-1)], axis=-1)
  inside_K = np.take_along_axis(until_K, ends_K + 1, -1) - np.take_along_axis(until_K, starts_K, -1)
  gain_K = inside_K / (ends_K - starts_K + 1)
  ideal = np.concatenate([[0], np.cumsum(_discount(k))])[np.minimum(positives, k)]
  return _plain(ratio(gain_K[..., :k] @ _discount(min(k, gain_K.shape[-1])), ideal))


def reciprocal_rank(relevant_K: np.ndarray, score_K: np.ndarray) -> np.ndarray | float:
  """Returns 1 / rank of the first relevant item by score, 0 where there is none (INQUIRE)."""
  relevant_K, score_K = _checked(relevant_K, score_K)
  order_K = np.argsort(score_K, axis=-1)[..., ::-1]  # from the end, as the official program: it decides between ties
  relevant_K = np.take_along_axis(relevant_K, order_K, -1)
  return _plain(np.max(relevant_K / np.arange(1, relevant_K.shape[-1] + 1), axis=-1, initial=0.0))


def _sorted(relevant_K: np.ndarray, score_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  relevant_K, score_K = _checked(relevant_K, score_K)
  order_K = np.argsort(-score_K, axis=-1)
  return np.take_along_axis(relevant_K, order_K, -1), np.take_along_axis(score_K, order_K, -1)


def _checked(relevant_K: np.ndarray, score_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  relevant_K, score_K = np.asarray(relevant_K, np.float64), np.asarray(score_K)
  if relevant_K.shape != score_K.shape:
    raise ValueError(f"relevant is of shape {relevant_K.shape}, score of {score_K.shape}; give one score an item")
  if np.isnan(score_K).any():
    raise ValueError("a score is NaN; a ranking by it has no meaning")
  return relevant_K, score_K


def _ends_of_ties(score_K: np.ndarray) -> np.ndarray:
  """Returns for each item the place of the last item with the same score (scores sorted)."""
  size = score_K.shape[-1]
  last_K = np.ones(score_K.shape, bool)
  last_K[..., :-1] = score_K[..., 1:] != score_K[..., :-1]
  place_K = np.where(last_K, np.arange(size), size)
  return np.minimum.accumulate(place_K[..., ::-1], axis=-1)[..., ::-1]


def _discount(size: int) -> np.ndarray:
  return 1 / np.log2(np.arange(2, size + 2))


def _plain(value: np.ndarray) -> np.ndarray | float:
  return value if value.ndim else float(value)
