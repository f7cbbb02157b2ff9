"""How sure a mean over queries is: bootstrap intervals, paired ones, and an error by group."""

import numpy as np


def bootstrap_interval(values_Q: np.ndarray, seed: int = 0, samples: int = 10_000) -> tuple[float, float]:
  """Returns the 95% bootstrap interval (lo, hi) of the mean over queries; NaN queries are left out."""
  values_Q = np.asarray(values_Q, np.float64)
  values_Q = values_Q[~np.isnan(values_Q)]
  if not len(values_Q):
    return float("nan"), float("nan")
  rng = np.random.default_rng(seed)
  means = np.empty(samples)
  step = max(1, 2_000_000 // len(values_Q))
  for start in range(0, samples, step):
    size = min(step, samples - start)
    drawn = rng.integers(0, len(values_Q), (size, len(values_Q)), dtype=np.int32)
    means[start : start + size] = values_Q[drawn].mean(axis=1)
  low, high = np.percentile(means, [2.5, 97.5])
  return float(low), float(high)


def paired_interval(
  a_Q: np.ndarray, b_Q: np.ndarray, seed: int = 0, samples: int = 10_000
) -> tuple[float, float, float]:
  """Returns the mean of a − b over queries and its 95% bootstrap interval (mean, lo, hi), query by query."""
  a_Q, b_Q = np.asarray(a_Q, np.float64), np.asarray(b_Q, np.float64)
  if a_Q.shape != b_Q.shape:
    raise ValueError(f"paired values of {a_Q.shape} and {b_Q.shape}; give both for the same queries, in the same order")
  difference_Q = a_Q - b_Q
  difference_Q = difference_Q[~np.isnan(difference_Q)]
  mean = float(difference_Q.mean()) if len(difference_Q) else float("nan")
  return mean, *bootstrap_interval(difference_Q, seed, samples)


def clustered_error(values_Q: np.ndarray, group_Q: np.ndarray) -> float:
  """Returns the standard error of the mean of values of which those of one group go together (NaN: no values).

  Queries that ask for the same instance are right and wrong together, so they count for less than as many others. With
  a group for each value it is the ordinary standard error.

  >>> clustered_error(np.array([1.0, 3.0]), np.array([0, 1])), clustered_error(np.array([1.0, 3.0]), np.array([0, 0]))
  (1.0, 0.0)
  """
  deviation_Q = np.asarray(values_Q, np.float64) - np.mean(values_Q)
  _, code_Q = np.unique(group_Q, return_inverse=True)
  groups = int(code_Q.max()) + 1
  total = float(np.sum(np.square(np.bincount(code_Q, deviation_Q))))
  return float(np.sqrt(total * groups / max(groups - 1, 1)) / len(deviation_Q))
