"""The mutual nearest-neighbour graph of a gallery, and diffusion on it.

Offline O(N²·D) time for the exact neighbours, in blocks, and O(N·k) memory; one solve costs O(N·k) a step of conjugate
gradients, for each query.
"""

import jax
import numpy as np
from scipy import sparse

import qat_jax
from qat_jax.types import Ranking

BLOCK_ROWS = 1024  # gallery items in one search for neighbours
TOLERANCE = 1e-4  # length of the residual over that of the right side
STEPS = 50


def neighbours_of(gallery_ND: jax.Array, count: int) -> Ranking:
  """Returns the `count` nearest other items of each of the unit items, fewer in a smaller gallery."""
  count = min(count, len(gallery_ND) - 1)
  if count < 1:
    raise ValueError(f"a gallery of {len(gallery_ND)} has no neighbours; diffusion needs two items or more")
  blocks = []
  for start in range(0, len(gallery_ND), BLOCK_ROWS):
    rows = np.arange(start, min(start + BLOCK_ROWS, len(gallery_ND)))
    blocks.append(qat_jax.rank(qat_jax.plain(gallery_ND[rows]), gallery_ND, count, exclude=rows))
  return Ranking(np.concatenate([b.ids for b in blocks]), np.concatenate([b.scores for b in blocks]))


def mutual_graph(nearest: Ranking, count: int, gamma: float) -> sparse.csr_array:
  """Returns S = Δ^(−½) A Δ^(−½) (N×N, sparse, float32, symmetric), Δ the degrees, a row of zeros for a lone item.

  A has max(cosine, 0)^γ between items that are each among the other's first `count` neighbours.
  """
  ids_NK, cosine_NK = np.asarray(nearest.ids)[:, :count], np.asarray(nearest.scores)[:, :count]
  items, width = ids_NK.shape
  weight_NK = np.maximum(cosine_NK, 0.0) ** gamma
  ends = np.arange(0, items * width + 1, width)
  directed = sparse.csr_array((weight_NK.ravel(), ids_NK.ravel(), ends), shape=(items, items))
  mutual = directed.minimum(directed.T)
  degree_N = mutual.sum(axis=1)
  root = sparse.diags_array(np.where(degree_N > 0, 1 / np.sqrt(np.maximum(degree_N, 1e-12)), 0.0))
  return sparse.csr_array(root @ mutual @ root, dtype=np.float32)


def diffuse(
  graph: sparse.csr_array, right_NQ: np.ndarray, alpha: float, tolerance: float = TOLERANCE, steps: int = STEPS
) -> np.ndarray:
  """Returns f with (I − α S) f = y for each column y (NQ), by conjugate gradients, 0 ≤ α < 1.

  A column stops when its residual is below tolerance · |y|, all of them after `steps`.
  """
  solution_NQ, residual_NQ = np.zeros_like(right_NQ), right_NQ.copy()
  direction_NQ, square_Q = right_NQ.copy(), np.sum(np.square(right_NQ), axis=0)
  enough_Q = tolerance**2 * square_Q
  for _ in range(steps):
    active_Q = square_Q > enough_Q
    if not active_Q.any():
      break
    along_NQ = direction_NQ - alpha * (graph @ direction_NQ)
    step_Q = _ratio(square_Q, np.sum(direction_NQ * along_NQ, axis=0), active_Q)
    solution_NQ += step_Q * direction_NQ
    residual_NQ -= step_Q * along_NQ
    before_Q, square_Q = square_Q, np.sum(np.square(residual_NQ), axis=0)
    direction_NQ = residual_NQ + _ratio(square_Q, before_Q, active_Q) * direction_NQ
  return solution_NQ


def _ratio(above_Q: np.ndarray, below_Q: np.ndarray, active_Q: np.ndarray) -> np.ndarray:
  return np.divide(above_Q, below_Q, out=np.zeros_like(above_Q), where=active_Q & (below_Q > 0))
