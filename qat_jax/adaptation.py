"""The algebra of an adaptation: what one query's map does to scores.

A query's map is  T = diag(gate) + left @ rightᵀ.  Nothing here forms T: every function costs O(D·R) a query and item,
or less.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from qat_jax.types import Adaptation

HIGHEST = jax.lax.Precision.HIGHEST  # GPUs and TPUs would otherwise round float32 products to tf32 or bf16
TINY = 1e-30
SUMMED = 64  # numbers that are added up in a row, at most; a longer sum is a sum of such sums


def power_of_two(n: int) -> int:
  """Returns the smallest power of two that is at least n and at least 1."""
  return 1 << max(0, n - 1).bit_length()


def plain(query_QD: jax.Array, space: str = "frozen") -> Adaptation:
  """Returns the adaptation that changes nothing: q' = normalise(q), T = I."""
  chex.assert_rank(query_QD, 2)
  empty_QDR = jnp.zeros((*query_QD.shape, 0), jnp.float32)
  return Adaptation(normalise(query_QD), jnp.ones((query_QD.shape[0], 1), jnp.float32), empty_QDR, empty_QDR, space)


def normalise(x: jax.Array) -> jax.Array:
  """Returns x (…D) scaled to unit length, in float32. A zero vector stays zero, its gradient finite; NaN stays NaN."""
  x = jnp.asarray(x, jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.where(square == 0, 1.0, square))


def unit(x: np.ndarray, dtype: type = np.float64) -> np.ndarray:
  """Returns what `normalise` does of a NumPy array (…D), on the host and in `dtype`; a zero vector stays zero.

  >>> unit(np.array([[3e-20, 4e-20], [0.0, 0.0]])).round(6).tolist()
  [[0.6, 0.8], [0.0, 0.0]]
  """
  x = np.asarray(x, dtype)
  length = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(length == 0, 1, length)


def fold(adaptation: Adaptation) -> jax.Array:
  """Returns vectors (QD) whose inner product with a gallery item is its adapted numerator.

  q'·(T z) = (Tᵀ q')·z, so one ordinary inner-product index serves adapted queries. The length of T z is not in it;
  `qat_jax.score` has it.

  >>> left_QDR, right_QDR = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0], [2.0]]])  # T = [[1, 2], [0, 1]]
  >>> print(fold(Adaptation(jnp.array([[1.0, 0.0]]), jnp.ones((1, 1)), left_QDR, right_QDR)))
  [[1. 2.]]
  """
  chex.assert_rank([adaptation.query, adaptation.gate, adaptation.left, adaptation.right], [2, 2, 3, 3])
  gated_QD = adaptation.gate * adaptation.query
  if not adaptation.left.shape[2]:
    return gated_QD
  low_QR = _einsum("QD,QDR->QR", adaptation.query, adaptation.left)
  return gated_QD + _einsum("QR,QDR->QD", low_QR, adaptation.right)


@jax.jit
def score(adaptation: Adaptation, gallery_ND: jax.Array) -> jax.Array:
  """Returns cosine(q', T z) for every query and every unit gallery item (QN, float32); differentiable, for training.

  By the factors, never by T: |T z|² = (g∘g)·(z∘z) + 2 (Lᵀ(g∘z))·(Rᵀz) + |L Rᵀz|², O(D·R) a query and item. The map's
  size does not matter. Squares cancel where T makes an item short: a length is off by the rounding of float32 times
  (|g| + Σ |l||r|)² / |T z|², which `qat_jax.score` is not; what T maps to zero scores near zero. Keeps Q×N×R numbers.

  >>> left_QDR, right_QDR = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0], [0.75]]])  # T = [[1, 0.75], [0, 1]]
  >>> adaptation = Adaptation(jnp.array([[1.0, 0.0]]), jnp.ones((1, 1)), left_QDR, right_QDR)
  >>> [f"{cosine:.3f}" for cosine in score(adaptation, jnp.eye(2))[0]]  # the second item is mapped to (0.75, 1)
  ['1.000', '0.600']
  """
  gate, left, right = _of_size_one(adaptation)
  gallery_ND = gallery_ND.astype(jnp.float32)
  numerator_QN = jnp.matmul(
    fold(adaptation.replace(gate=gate, left=left, right=right)), gallery_ND.T, precision=HIGHEST
  )
  if gate.shape[1] == 1:
    square_QN = jnp.square(gate) * jnp.sum(jnp.square(gallery_ND), axis=1)[None]
  else:
    square_QN = jnp.matmul(jnp.square(gate), jnp.square(gallery_ND).T, precision=HIGHEST)
  scale_QN = square_QN
  if left.shape[2]:
    along_right_QNR = _einsum("ND,QDR->QNR", gallery_ND, right)
    along_left_QNR = _einsum("ND,QDR->QNR", gallery_ND, gate[:, :, None] * left)
    mapped_QNR = _einsum("QNR,QRS->QNS", along_right_QNR, _einsum("QDR,QDS->QRS", left, left))
    scale_QN += jnp.sum(mapped_QNR * along_right_QNR, axis=-1)
    square_QN += jnp.sum((2 * along_left_QNR + mapped_QNR) * along_right_QNR, axis=-1)
  return numerator_QN * jax.lax.rsqrt(jnp.maximum(square_QN, 1e-6 * scale_QN + 1e-12))


def _of_size_one(adaptation: Adaptation) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns gate, left and right of T over its size, columns of left about 1 long: moved by powers of two alone."""
  power = lambda x: jnp.where(x > 0, x / jnp.frexp(jnp.where(x > 0, x, 1))[0], 1)  # of two, the next above
  greatest = lambda x: jnp.abs(jax.lax.stop_gradient(x)).max(axis=1, initial=0)
  left_QR = power(greatest(adaptation.left))
  strength_Q = (left_QR * greatest(adaptation.right)).max(axis=1, initial=0)
  size_Q = power(jnp.maximum(greatest(adaptation.gate), strength_Q))
  scale_QR = left_QR / size_Q[:, None]
  return adaptation.gate / size_Q[:, None], adaptation.left / left_QR[:, None], adaptation.right * scale_QR[:, None]


def cosine(
  query_D: jax.Array, gate_D: jax.Array, left_DR: jax.Array, right_DR: jax.Array, item_BD: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the cosine of q' and T z, and |T z| (two B), of items under one map: T z written out, no squares cancel."""
  mapped_BD = gate_D[None] * item_BD
  if left_DR.shape[1]:
    mapped_BD += _einsum("BR,DR->BD", sums("BD,DR->BR", item_BD, right_DR), left_DR)
  length_B = jnp.sqrt(sums("BD,BD->B", mapped_BD, mapped_BD))
  return sums("BD,D->B", mapped_BD, query_D) / jnp.maximum(length_B, TINY), length_B


def sums(formula: str, x: jax.Array | np.ndarray, y: jax.Array | np.ndarray) -> jax.Array:
  """Returns an einsum of two arrays over D, some of D at a time: the rounding of many like numbers in a row adds up."""
  (of_x, of_y), of_result = formula.split("->")[0].split(","), formula.split("->")[1]
  width = x.shape[of_x.index("D")]
  if width <= SUMMED:
    return _einsum(formula, x, y)
  pieces = -(-width // SUMMED)

  def cut(z: jax.Array | np.ndarray, axis: int) -> jax.Array:
    padding = [(0, pieces * SUMMED - width if i == axis else 0) for i in range(z.ndim)]
    return jnp.pad(z, padding).reshape(*z.shape[:axis], pieces, SUMMED, *z.shape[axis + 1 :])

  in_pieces = f"{of_x.replace('D', 'PD')},{of_y.replace('D', 'PD')}->P{of_result}"
  part_P = _einsum(in_pieces, cut(x, of_x.index("D")), cut(y, of_y.index("D")))
  return jax.lax.optimization_barrier(part_P).sum(axis=0)  # else the compiler makes one sum of it again


def _einsum(formula: str, *operands: jax.Array | np.ndarray) -> jax.Array:
  return jnp.einsum(formula, *operands, precision=HIGHEST)
