"""The algebra of an adaptation: what one query's map does to scores.

A query's map is  T = diag(gate) + left @ rightᵀ.  Nothing here forms T: every function costs O(D·R) a query and item,
or less.
"""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from qat_jax.types import Adaptation

HIGHEST = jax.lax.Precision.HIGHEST  # GPUs and TPUs would otherwise round float32 products to tf32 or bf16
TINY = 1e-30
EPSILON = float(jnp.finfo(jnp.float32).eps)
EXACT_SIZE = 16  # up to here the eigenproblem itself is cheap
ROUNDS, STEPS = 3, 2  # of subspace iteration: steps before vectors are made orthogonal again


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
  """Returns what `normalise` does of a NumPy array (…D), on the host and in `dtype`; a zero vector stays zero."""
  x = np.asarray(x, dtype)
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def fold(adaptation: Adaptation) -> jax.Array:
  """Returns vectors (QD) whose inner product with a gallery item is its adapted numerator.

  q'·(T z) = (Tᵀ q')·z, so one ordinary inner-product index serves adapted queries. The length of T z is not in it;
  `qat_jax.score` has it.

  >>> left_QDR, right_QDR = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0], [2.0]]])  # T = [[1, 2], [0, 1]]
  >>> print(fold(Adaptation(jnp.array([[1.0, 0.0]]), jnp.ones((1, 1)), left_QDR, right_QDR)))
  [[1. 2.]]
  """
  chex.assert_rank([adaptation.query, adaptation.gate, adaptation.left, adaptation.right], [2, 2, 3, 3])
  low_QR = _einsum("QD,QDR->QR", adaptation.query, adaptation.left)
  return adaptation.gate * adaptation.query + _einsum("QR,QDR->QD", low_QR, adaptation.right)


@jax.jit
def score(adaptation: Adaptation, gallery_ND: jax.Array) -> jax.Array:
  """Returns cosine(q', T z) for every query and every unit gallery item (QN, float32).

  By the factors, never by T: |T z|² = (g∘g)·(z∘z) + 2 (Lᵀ(g∘z))·(Rᵀz) + |L Rᵀz|², O(D·R) a query and item.
  An item that T maps to zero, as far as float32 can tell, scores near zero. Differentiable; keeps Q×N×R numbers.

  >>> left_QDR, right_QDR = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0], [0.75]]])  # T = [[1, 0.75], [0, 1]]
  >>> adaptation = Adaptation(jnp.array([[1.0, 0.0]]), jnp.ones((1, 1)), left_QDR, right_QDR)
  >>> [f"{cosine:.3f}" for cosine in score(adaptation, jnp.eye(2))[0]]  # the second item is mapped to (0.75, 1)
  ['1.000', '0.600']
  """
  gate, left, right = adaptation.gate, adaptation.left, adaptation.right
  gallery_ND = gallery_ND.astype(jnp.float32)
  numerator_QN = jnp.matmul(fold(adaptation), gallery_ND.T, precision=HIGHEST)
  if gate.shape[1] == 1:
    square_QN = jnp.square(gate) * jnp.sum(jnp.square(gallery_ND), axis=1)
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


@jax.jit
def score_own(adaptation: Adaptation, item_QKD: jax.Array) -> jax.Array:
  """Returns cosine(q', T z) for K items of each query's own (QK, float32).

  T z is written out, K×D numbers a query: as many operations as `score`, and no squares that cancel.
  """
  gate_Q1D, left, right = adaptation.gate[:, None], adaptation.left, adaptation.right
  item_QKD = item_QKD.astype(jnp.float32)
  gated_QKD = gate_Q1D * item_QKD
  low_QKD = _einsum("QKR,QDR->QKD", _einsum("QKD,QDR->QKR", item_QKD, right), left)
  mapped_QKD = gated_QKD + low_QKD
  length_QK = jnp.linalg.norm(mapped_QKD, axis=-1)
  scale_QK = jnp.linalg.norm(gated_QKD, axis=-1) + jnp.linalg.norm(low_QKD, axis=-1)
  return _einsum("QKD,QD->QK", mapped_QKD, adaptation.query) / jnp.maximum(length_QK, 1e-6 * scale_QK + TINY)


def spectrum(adaptation: Adaptation) -> tuple[jax.Array, jax.Array]:
  """Returns orthonormal directions (QDE) and eigenvalues (QE) with |T z|² = (g∘g)·(z∘z) + Σ λ_i (e_i·z)², |λ| falling.

  E = min(2R, D). The low-rank part of TᵀT is P S Pᵀ with P = [right, g∘left] and S = [[LᵀL, I], [I, 0]]; P = Q C by a
  QR leaves the eigenproblem of C S Cᵀ. Zero or rank-deficient factors give zero eigenvalues, still orthonormal.
  """
  wide_QDS, core_QSS = _low_rank_part(adaptation)
  basis_QDE, inner_QES = jnp.linalg.qr(wide_QDS)
  value_QE, rotation_QEE = jnp.linalg.eigh(_symmetric(_einsum("QES,QST,QFT->QEF", inner_QES, core_QSS, inner_QES)))
  order_QE = jnp.argsort(-jnp.abs(value_QE), axis=1)
  direction_QDE = jnp.take_along_axis(_einsum("QDE,QEF->QDF", basis_QDE, rotation_QEE), order_QE[:, None], axis=2)
  return direction_QDE, jnp.take_along_axis(value_QE, order_QE, axis=1)


@struct.dataclass
class Leading:
  """A few directions of the spectrum, and what the rest can do: enough to bound every length.

  With k = Σ (directions·z)² and r = |z|² − k, |T z|² lies within
  (g∘g)·(z∘z) + Σ values (directions·z)² + [low, high]·r ± (2 mixed √(k r) + slack).
  """

  directions: jax.Array  # QDM, orthonormal
  values: jax.Array  # QM
  low: jax.Array  # Q, ≤ 0
  high: jax.Array  # Q, ≥ 0
  mixed: jax.Array  # Q: how far the directions are from eigenvectors, |A E − E EᵀA E|
  slack: jax.Array  # Q: rounding


def leading(adaptation: Adaptation, kept: int) -> Leading:
  """Returns `kept` directions of the spectrum, 0 < kept ≤ 2R, and bounds of the rest.

  Half of them are the most negative: these are what makes items short, and what makes the lower bound of a length
  loose everywhere.
  """
  if 2 * adaptation.left.shape[2] > EXACT_SIZE:
    return _iterated(adaptation, kept)
  direction_QDE, value_QE = spectrum(adaptation)
  order_QE = jnp.argsort(value_QE, axis=1)
  value_QE = jnp.take_along_axis(value_QE, order_QE, axis=1)
  lowest, highest = _ends(value_QE.shape[1], kept)
  direction_QDM = jnp.take_along_axis(direction_QDE, order_QE[:, None, np.r_[lowest, highest]], axis=2)
  value_QM, rest_QE = value_QE[:, np.r_[lowest, highest]], value_QE[:, lowest.stop : highest.start]
  gate_Q = jnp.square(adaptation.gate).max(axis=1)
  rounding_Q = 4 * direction_QDE.shape[1] * EPSILON * (jnp.abs(value_QE).max(axis=1) + gate_Q)
  low_Q = jnp.maximum(rest_QE.min(axis=1, initial=0), -gate_Q)
  return Leading(direction_QDM, value_QM, low_Q, rest_QE.max(axis=1, initial=0), jnp.zeros_like(gate_Q), rounding_Q)


def _iterated(adaptation: Adaptation, kept: int) -> Leading:
  """Returns what `leading` does, by iteration, for ranks whose `spectrum` costs more than a first pass.

  A = P S Pᵀ is met through the 2R×2R matrix S PᵀP, whose eigenvalues it shares. The directions are nearly
  eigenvectors, by a few steps of subspace iteration; `mixed` allows for the rest, so that the bounds hold regardless.
  """
  wide_QDS, core_QSS = _low_rank_part(adaptation)
  width, size = wide_QDS.shape[1:]
  tried = min(kept + 4, size, width)
  gram_QSS = _einsum("QDS,QDT->QST", wide_QDS, wide_QDS)
  step_QST = _einsum("QST,QTU->QSU", core_QSS, gram_QSS)
  gate_Q = jnp.square(adaptation.gate).max(axis=1)
  start_SB = np.random.default_rng(0).standard_normal((size, tried)).astype(np.float32)
  guess_QSB = jnp.broadcast_to(start_SB, (len(adaptation), size, tried))
  shift_Q11 = jnp.zeros((len(adaptation), 1, 1))
  for _ in range(ROUNDS):
    for _ in range(STEPS):
      guess_QSB = _einsum("QST,QTB->QSB", step_QST, guess_QSB) - shift_Q11 * guess_QSB
    basis_QDB = jnp.linalg.qr(_einsum("QDS,QSB->QDB", wide_QDS, guess_QSB)).Q
    inner_QSB = _einsum("QDS,QDB->QSB", wide_QDS, basis_QDB)
    guess_QSB = _einsum("QST,QTB->QSB", core_QSS, inner_QSB)
    value_QB, rotation_QBB = jnp.linalg.eigh(_symmetric(_einsum("QSB,QSC->QBC", inner_QSB, guess_QSB)))
    shift_Q11 = ((value_QB[:, 0] + value_QB[:, -1]) / 2)[:, None, None]  # so that both ends grow alike
  lowest, highest = _ends(tried, kept)
  chosen = np.r_[lowest, highest]
  rotation_QBM, value_QM = rotation_QBB[:, :, chosen], value_QB[:, chosen]
  direction_QDM = _einsum("QDB,QBM->QDM", basis_QDB, rotation_QBM)
  image_QDM = _einsum("QDS,QSM->QDM", wide_QDS, _einsum("QSB,QBM->QSM", guess_QSB, rotation_QBM))
  mixed_Q = jnp.linalg.norm(image_QDM - direction_QDM * value_QM[:, None], axis=(1, 2))

  inner_QSM = _einsum("QSB,QBM->QSM", inner_QSB, rotation_QBM)
  rest_QSS = step_QST - _einsum("QSM,QTM->QST", _einsum("QST,QTM->QSM", core_QSS, inner_QSM), inner_QSM)
  others_QB = value_QB[:, lowest.stop : highest.start]
  low_Q, high_Q = _enclose(rest_QSS, others_QB.min(axis=1, initial=0), others_QB.max(axis=1, initial=0))
  scale_Q = jnp.abs(value_QM).max(axis=1) + high_Q - low_Q
  # S PᵀP is not symmetric: its eigenvalues carry the square root of the rounding. TᵀT has no eigenvalue below zero.
  low_Q = jnp.maximum(jnp.minimum(low_Q - 1e-3 * scale_Q, 0), -gate_Q)
  high_Q = jnp.maximum(high_Q + 1e-3 * scale_Q, 0)
  rounding_Q = 4 * width * EPSILON * (scale_Q + gate_Q)
  return Leading(direction_QDM, value_QM, low_Q, high_Q, mixed_Q, rounding_Q)


def truncated(adaptation: Adaptation, rank: int) -> tuple[Adaptation, jax.Array]:
  """Returns the adaptation with left @ rightᵀ cut down to `rank`, and by how much |T z| differs at most (Q), |z| = 1.

  The part kept is right's projection on V, orthonormal and nearly its leading singular vectors, by a few steps of
  subspace iteration on the R×R matrix LᵀL RᵀR. The spectral norm of what is cut off is bounded by a trace of a power,
  whether V is good or not.
  """
  left, right = adaptation.left, adaptation.right
  if left.shape[2] <= rank:
    return adaptation, jnp.zeros(len(adaptation))
  gram_left_QRR, gram_right_QRR = _einsum("QDR,QDS->QRS", left, left), _einsum("QDR,QDS->QRS", right, right)
  step_QRR = _einsum("QRS,QST->QRT", gram_left_QRR, gram_right_QRR)
  step_QRR /= jnp.maximum(jnp.trace(step_QRR, axis1=1, axis2=2), TINY)[:, None, None]
  tried = min(rank + 4, left.shape[2])
  start_RB = np.random.default_rng(0).standard_normal((left.shape[2], tried)).astype(np.float32)
  guess_QRB = jnp.broadcast_to(start_RB, (len(adaptation), *start_RB.shape))
  for _ in range(ROUNDS):
    for _ in range(STEPS):
      guess_QRB = _einsum("QRS,QSB->QRB", step_QRR, guess_QRB)
    guess_QRB = jnp.linalg.qr(guess_QRB).Q
  basis_QDB = jnp.linalg.qr(_einsum("QDR,QRB->QDB", right, guess_QRB)).Q
  along_QRB = _einsum("QDR,QDB->QRB", right, basis_QDB)
  _, rotation_QBB = jnp.linalg.eigh(_symmetric(_einsum("QRB,QRS,QSC->QBC", along_QRB, gram_left_QRR, along_QRB)))
  rotation_QBM = rotation_QBB[:, :, tried - rank :]
  along_QRM = _einsum("QRB,QBM->QRM", along_QRB, rotation_QBM)
  kept_left_QDM = _einsum("QDR,QRM->QDM", left, along_QRM)
  kept_right_QDM = _einsum("QDB,QBM->QDM", basis_QDB, rotation_QBM)
  cut_QRR = gram_right_QRR - _einsum("QRM,QSM->QRS", along_QRM, along_QRM)
  largest_Q = _largest(_einsum("QRS,QST->QRT", gram_left_QRR, cut_QRR))
  sizes_Q = jnp.linalg.norm(gram_left_QRR, axis=(1, 2)) * jnp.linalg.norm(gram_right_QRR, axis=(1, 2))
  error_Q = jnp.sqrt(largest_Q + 4 * left.shape[2] * EPSILON * sizes_Q)
  return adaptation.replace(left=kept_left_QDM, right=kept_right_QDM), error_Q


def _largest(matrix_QRR: jax.Array) -> jax.Array:
  """Returns a bound (Q) of eigenvalues that are real and not negative: the 16th root of the trace of the 16th power."""
  scale_Q = jnp.maximum(jnp.linalg.norm(matrix_QRR, axis=(1, 2)), TINY)
  power_QRR = matrix_QRR / scale_Q[:, None, None]
  for _ in range(3):
    power_QRR = _einsum("QRS,QST->QRT", power_QRR, power_QRR)
  trace_Q = jnp.abs(jnp.sum(power_QRR * power_QRR.transpose(0, 2, 1), axis=(1, 2)))
  rounding_Q = 1e-4 * jnp.sum(jnp.square(power_QRR), axis=(1, 2))  # of a sum that cancels
  return scale_Q * (trace_Q + rounding_Q) ** (1 / 16)


def bounds(
  leading: Leading, along: Sequence[jax.Array], gated_NQ: jax.Array, square_N1: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns what |T z|² lies between (two NQ); the lower may be negative, and then bounds nothing.

  Queries are the innermost axis, as a product with the gallery on its left leaves them.

  Args:
    leading: of `leading`, M directions.
    along: M arrays NQ, one direction·z each (apart, since XLA's CPU code for a short axis in the middle is slow).
    gated_NQ: (g∘g)·(z∘z).
    square_N1: |z|².
  """
  known_NQ, kept_NQ = gated_NQ, jnp.zeros_like(gated_NQ)
  for i, along_NQ in enumerate(along):
    energy_NQ = jnp.square(along_NQ)
    known_NQ += leading.values[:, i] * energy_NQ
    kept_NQ += energy_NQ
  rest_NQ = jnp.maximum(square_N1 - kept_NQ, 0)
  slack_NQ = 2 * leading.mixed * jnp.sqrt(kept_NQ * rest_NQ) + leading.slack
  return known_NQ + leading.low * rest_NQ - slack_NQ, known_NQ + leading.high * rest_NQ + slack_NQ


def _ends(size: int, kept: int) -> tuple[slice, slice]:
  """Returns where the kept ones lie among `size` eigenvalues in rising order."""
  lowest = (kept + 1) // 2
  return slice(0, lowest), slice(size - (kept - lowest), size)


def _low_rank_part(adaptation: Adaptation) -> tuple[jax.Array, jax.Array]:
  """Returns P (QDS) and S (QST), S = 2R, of TᵀT = diag(g∘g) + P S Pᵀ, each pair of factors scaled to equal lengths."""
  left_length_QR = jnp.linalg.norm(adaptation.left, axis=1)
  right_length_QR = jnp.linalg.norm(adaptation.right, axis=1)
  dead_QR = (left_length_QR < TINY) | (right_length_QR < TINY)
  ratio_QR = jnp.sqrt(jnp.where(dead_QR, 1, left_length_QR) / jnp.where(dead_QR, 1, right_length_QR))
  left_QDR = adaptation.left * jnp.where(dead_QR, 0, 1 / ratio_QR)[:, None]
  right_QDR = adaptation.right * jnp.where(dead_QR, 0, ratio_QR)[:, None]
  gram_QRR = _einsum("QDR,QDS->QRS", left_QDR, left_QDR)
  eye_QRR = jnp.broadcast_to(jnp.eye(gram_QRR.shape[1]), gram_QRR.shape)
  wide_QDS = jnp.concatenate([right_QDR, adaptation.gate[:, :, None] * left_QDR], axis=2)
  core_QSS = jnp.block([[gram_QRR, eye_QRR], [eye_QRR, jnp.zeros_like(gram_QRR)]])
  return wide_QDS, core_QSS


def _enclose(matrix_QST: jax.Array, low_Q: jax.Array, high_Q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns bounds (two Q) of the eigenvalues of matrices whose eigenvalues are real, near a guess of the bounds.

  Chebyshev's polynomial of degree 16 is at most 1 on the guessed interval and grows steeply outside, so the trace of
  its square says how far outside any eigenvalue can lie, whether the guess was good or not.
  """
  size = matrix_QST.shape[1]
  middle_Q = (low_Q + high_Q) / 2
  half_Q = jnp.maximum((high_Q - low_Q) / 2, 0.1 * jnp.linalg.norm(matrix_QST, axis=(1, 2)) / size**0.5) + TINY
  eye_ST = jnp.eye(size)
  power_QST = (matrix_QST - middle_Q[:, None, None] * eye_ST) / half_Q[:, None, None]
  for _ in range(4):
    power_QST = 2 * _einsum("QST,QTU->QSU", power_QST, power_QST) - eye_ST
  trace_Q = jnp.sum(power_QST * power_QST.transpose(0, 2, 1), axis=(1, 2))
  trace_Q = jnp.abs(trace_Q) + 1e-4 * jnp.sum(jnp.square(power_QST), axis=(1, 2)) + 1  # rounding of a sum that cancels
  reach_Q = half_Q * jnp.cosh(jnp.arccosh(jnp.sqrt(trace_Q)) / 16)
  reach_Q = jnp.where(jnp.isfinite(reach_Q), reach_Q, jnp.inf)
  return middle_Q - reach_Q, middle_Q + reach_Q


def _symmetric(matrix_QEF: jax.Array) -> jax.Array:
  return 0.5 * (matrix_QEF + matrix_QEF.transpose(0, 2, 1))


def _einsum(formula: str, *operands: jax.Array) -> jax.Array:
  return jnp.einsum(formula, *operands, precision=HIGHEST)
